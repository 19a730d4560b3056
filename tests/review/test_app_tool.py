"""tools/app.py refuses what does not fit together, before anything is read."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest

from tests.review.tiny_review import write_video
from tools.app import main
from v2i_runtime.stop_signals import stop_signals

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def handlers_of_signals_stay() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in stop_signals()}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


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
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
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


@pytest.fixture
def card(tmp_path: Path) -> Any:
    """What takes uploads, without a page around it."""
    page = pytest.importorskip("v2idetr.review.page", exc_type=ImportError)
    card = page._VideoCard.__new__(page._VideoCard)
    card.desk, card.problem = Mock(folder=tmp_path), Mock(text="")
    card.uploaded, card.was_left = None, False
    return card


def upload(card: Any, name: str, *, size: int = 3, error: Exception | None = None) -> None:
    async def save(path: Path) -> None:
        path.write_bytes(b"one")
        if name == "late.mp4":
            card.leave()
        if error is not None:
            raise error

    file = Mock(save=save, size=lambda: size)
    file.name = name
    with ThreadPoolExecutor(1) as other:  # in this thread Playwright's loop may be running
        other.submit(asyncio.run, card.receive(Mock(file=file))).result()


def test_an_upload_that_fails_leaves_nothing_and_is_told(card: Any, tmp_path: Path) -> None:
    upload(card, "a.mp4")
    assert card.uploaded[1] == "a.mp4"
    upload(card, "b.mp4", error=OSError("No space left on device"))
    assert card.uploaded is None and not list(tmp_path.iterdir())
    assert card.problem.text == "b.mp4 was not taken: No space left on device"


def test_an_upload_for_which_there_is_no_room_is_not_taken(card: Any, tmp_path: Path) -> None:
    upload(card, "a.mp4", size=2**62)
    assert card.uploaded is None and not list(tmp_path.iterdir())
    assert "a.mp4 was not taken: " in card.problem.text and "of disk are free" in card.problem.text


def test_an_upload_is_removed_when_its_page_is_left_meanwhile(card: Any, tmp_path: Path) -> None:
    upload(card, "late.mp4")
    assert card.uploaded is None and not list(tmp_path.iterdir())
