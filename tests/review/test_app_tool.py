"""tools/app.py refuses what does not fit together, before anything is read."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import Mock

import pytest

from tests.review.tiny_review import write_video
from tools.app import main

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def handler_of_sigterm_stays() -> Iterator[None]:
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nowhere"], "nowhere: no such file or folder"),
        (["RUN", "--model", "a.onnx"], "--model is for a video"),
        (["--model", "a.onnx"], "--model is for a video"),
        (["VIDEO"], "is no run (no config.yaml); for a video give --model"),
        (["VIDEO", "--model", "a.onnx", "--against", "RUN"], "--against compares runs"),
        (["--port", "70000"], "--port 70000: must be 0 to 65535"),
        (["--max-upload-mib", "0"], "--max-upload-mib 0: must be at least 1"),
        (["--fps", "0"], "--fps 0.0: must be above 0"),
        (["--fps", "nan"], "--fps nan: must be above 0"),
        (["--root", "nowhere"], "--root nowhere: no such folder"),
        (["VIDEO", "--model", "gone.onnx"], "--model gone.onnx: no such file"),
        (["BROKEN", "--model", "MODEL", "--port", "0"], "notes.mp4: cannot be read as a video"),
        (["RUN", "--port", "0"], "run.json"),
    ],
)
def test_what_does_not_fit_is_said_and_nothing_is_served(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.yaml").touch()
    (tmp_path / "notes.mp4").write_text("no video")
    (tmp_path / "model.onnx").touch()
    names = {
        "RUN": str(run),
        "VIDEO": str(write_video(tmp_path / "a.mp4", frames=2)),
        "BROKEN": str(tmp_path / "notes.mp4"),
        "MODEL": str(tmp_path / "model.onnx"),
    }
    root = [] if "--root" in arguments else ["--root", str(tmp_path)]
    full = [names.get(argument, argument) for argument in arguments]
    assert main([*full, *root, "--no-browser"]) == 2
    printed = capsys.readouterr()
    assert said in printed.err
    assert printed.err.startswith("app: ")
    assert not printed.out


def test_a_port_that_is_taken_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        assert main(["--root", str(tmp_path), "--port", str(port), "--no-browser"]) == 2
    assert f"--port {port}: cannot be used" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_page_is_served_until_a_signal_and_leaves_nothing_behind(
    tmp_path: Path, number: signal.Signals
) -> None:
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    command = [sys.executable, str(ROOT / "tools" / "app.py"), "--port", "0", "--no-browser"]
    with subprocess.Popen(
        [*command, "--root", str(tmp_path)],
        env={**os.environ, "TMPDIR": str(temporary)},
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        address = process.stdout.readline().split()[0]
        with urllib.request.urlopen(address, timeout=60) as answer:
            assert b"V2I-DETR" in answer.read()
        assert [path.name[:11] for path in temporary.iterdir()] == ["v2i_review_"]
        process.send_signal(number)
        assert process.wait(60) == 0
    assert not list(temporary.iterdir())


@pytest.mark.parametrize("error", [ValueError("no video"), OSError("disk is full")])
def test_an_upload_that_cannot_be_opened_is_removed(tmp_path: Path, error: Exception) -> None:
    page = pytest.importorskip("v2idetr.review.page", exc_type=ImportError)
    place = tmp_path / "upload.video"
    place.touch()
    card = page._VideoCard.__new__(page._VideoCard)
    card.desk, card.models = Mock(), Mock(value=[])
    card.desk.open_video.side_effect = error
    card.uploaded = place, "a.mp4"
    with pytest.raises(type(error)):
        card.work()
    assert not place.exists()
