"""The generator of operations: bytes, layout of Cholec80, course, ambiguity, its folders."""

import hashlib
import json
import sys
from collections import Counter
from itertools import groupby, pairwise
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[2] / "datasets"))

import make_surgery
import prepare_cholec80
from synthetic import surgery
from synthetic.surgery import PHASES, phase_lines, plan_operation
from synthetic.surgery_view import Theatre

SMALL = ["--size", "64x48", "--operations", "2", "--seconds", "14-16", "--workers", "1"]
MANY = [plan_operation(0, number, (60, 120)) for number in range(1, 41)]


def run(output: Path, *extra: str) -> int:
    return make_surgery.main(["--output", str(output), *SMALL, *extra])


def digest(root: Path) -> dict[str, str]:
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


def phases_in(path: Path) -> list[str]:
    return [line.split("\t")[1] for line in path.read_text().splitlines()[1:]]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("surgery") / "data"
    assert run(output) == 0
    return output


def test_layout_is_that_of_cholec80(made: Path) -> None:
    for name in ("video01", "video02"):
        lines = (made / "phase_annotations" / f"{name}-phase.txt").read_text().splitlines()
        assert lines[:2] == ["Frame\tPhase", "0\tPreparation"]
        frames = sorted(path.name for path in (made / "frames" / name).iterdir())
        assert len(lines) - 1 == 25 * len(frames)
        assert frames[0] == f"{name}_000001.jpg"
        assert Image.open(made / "frames" / name / frames[0]).size == (64, 48)


def test_the_converter_of_cholec80_reads_it(made: Path, tmp_path: Path) -> None:
    splits = ["--train-videos", "1", "--val-videos", "2", "--test-videos", ""]
    prepare_cholec80.main(["--source", str(made), "--output", str(tmp_path), *splits])
    train = json.loads((tmp_path / "train.json").read_text())
    labels = phases_in(made / "phase_annotations" / "video01-phase.txt")
    assert [image["phase"] for image in train["images"]] == labels[::25]


def test_same_arguments_give_same_bytes_with_any_number_of_workers(
    made: Path, tmp_path: Path
) -> None:
    assert run(tmp_path / "again", "--workers", "2") == 0
    assert digest(tmp_path / "again") == digest(made)


def test_another_seed_gives_other_operations(made: Path, tmp_path: Path) -> None:
    assert run(tmp_path / "other", "--seed", "1", "--operations", "1") == 0
    first, second = (
        np.asarray(Image.open(root / "frames" / "video01" / "video01_000001.jpg"))
        for root in (made, tmp_path / "other")
    )
    assert not np.array_equal(first, second)


def test_videos_have_25_frames_a_second_and_the_same_content(made: Path, tmp_path: Path) -> None:
    options = ["--mp4", "--operations", "1", "--seconds", "7-7", "--size", "64x48"]
    assert make_surgery.main(["--output", str(tmp_path / "v"), *options, "--workers", "1"]) == 0
    with av.open(tmp_path / "v" / "videos" / "video01.mp4") as container:
        stream = container.streams.video[0]
        pixels = [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]
        assert (stream.average_rate, len(pixels)) == (25, 175)
    theatre = Theatre(plan_operation(0, 1, (7, 7)), (64, 48))
    assert np.abs(pixels[75].astype(int) - theatre.frame(3.0)).mean() < 8
    labels = phases_in(tmp_path / "v" / "phase_annotations" / "video01-phase.txt")
    assert len(labels) == 175
    assert set(labels) == set(PHASES)


def test_phases_follow_each_other_as_in_reality() -> None:
    for operation in MANY:
        order = [phase for phase, _ in groupby(phase for _, phase in operation.phases)]
        assert order[:4] == [0, 1, 2, 3]
        assert set(order[4:]) == {4, 5, 6}
        assert 60 <= operation.duration_s <= 120
        assert operation.phases[-1][0] == operation.duration_s
        ends = [0.0, *(end_s for end_s, _ in operation.phases)]
        assert min(after - before for before, after in pairwise(ends)) > 2.9
    assert len({tuple(phase for _, phase in operation.phases[4:]) for operation in MANY}) > 3


def test_a_single_frame_often_does_not_say_its_phase() -> None:
    seen: dict[object, Counter[int]] = {}
    for operation in MANY:
        for second in range(operation.duration_s):
            segment = operation.segment_at(float(second))
            key = (segment.left, segment.right, segment.bag)
            seen.setdefault(key, Counter())[operation.phase_at(float(second))] += 1
    total = sum(counts.total() for counts in seen.values())
    # Of the best rule that knows the instruments exactly, without anatomy and time.
    best = sum(max(counts.values()) for counts in seen.values()) / total
    assert 0.35 < best < 0.65
    assert len(seen[False, None, False]) == len(PHASES)
    by_phase = sum(seen.values(), Counter())
    assert max(by_phase.values()) / total < 0.35


def test_every_operation_has_its_own_look() -> None:
    frames = [
        Theatre(operation, (64, 48)).frame(8.0).reshape(-1, 3).mean(0) for operation in MANY[:6]
    ]
    distances = [np.abs(a - b).sum() for i, a in enumerate(frames) for b in frames[:i]]
    assert min(distances) > 2
    assert np.median(distances) > 15


@pytest.mark.parametrize("event", ["", "trocar", "smoke", "defocus", "fluid"])
def test_every_event_can_be_rendered(event: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for phase in surgery.EVENTS:
        monkeypatch.setitem(surgery.EVENTS, phase, {event: 1.0})
    operation = plan_operation(0, 1, (14, 14))
    theatre = Theatre(operation, (64, 48))
    for end_s, _ in operation.phases:
        pixels = theatre.frame(end_s - 0.5)
        assert (pixels.shape, pixels.dtype) == ((48, 64, 3), np.uint8)
        assert pixels.std() > 5


def test_labels_change_where_the_phase_does() -> None:
    operation = MANY[0]
    lines = phase_lines(operation).splitlines()[1:]
    end_s, _ = operation.phases[0]
    frame = round(25 * end_s)
    assert lines[frame - 1] == f"{frame - 1}\t{PHASES[0]}"
    assert lines[frame] == f"{frame}\t{PHASES[1]}"


def test_an_interrupted_run_goes_on_behind_its_finished_operations(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "data"
    rendered = []

    class Interrupting(Theatre):
        def __init__(self, operation: surgery.Operation, size: tuple[int, int]) -> None:
            rendered.append(operation.number)
            super().__init__(operation, size)

        def frame(self, time_s: float) -> np.ndarray:
            if rendered == [1, 2] and time_s > 3:
                raise KeyboardInterrupt
            return super().frame(time_s)

    monkeypatch.setattr(make_surgery, "Theatre", Interrupting)
    with pytest.raises(KeyboardInterrupt):
        run(output)
    assert not output.exists()
    assert run(output) == 0
    assert rendered == [1, 2, 2]
    assert digest(output) == digest(made)


def test_a_finished_result_is_kept_and_others_are_not_touched(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = digest(made)
    assert run(made) == 0
    assert "already made" in capsys.readouterr().out
    assert run(made, "--seed", "3") == 2
    assert "seed 0 -> 3" in capsys.readouterr().err
    assert digest(made) == before
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("")
    assert run(tmp_path / "mine") == 2
    assert "was not made by this program" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--size", "64", "expected WxH"),
        ("--size", "65x48", "even numbers"),
        ("--size", "16x16", "at least 32"),
        ("--seconds", "9", "expected MIN-MAX"),
        ("--seconds", "20-10", "MIN up to MAX"),
        ("--seconds", "3-10", "at least 7"),
        ("--operations", "0", "expected 1 to 99"),
        ("--seed", "-1", "must not be negative"),
    ],
)
def test_invalid_options_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], option: str, value: str, message: str
) -> None:
    assert run(tmp_path / "out", option, value) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
