"""Cholec80, M2CAI16, CholecT50 and folders of frames -> splits with phases, by their programs."""

from __future__ import annotations

import importlib.util
import json
import shutil
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import ModuleType

import pytest

from free_lunch.prepare.phase_files import CHOLEC80_PHASES, M2CAI16_PHASES
from tests.free_lunch.tiny_surgery import write_frames, write_phases, write_triplets
from tests.runtime.tiny_videos import write_video
from v2idetr.data.coco_vid import load_split
from v2idetr.prepare.command_line import numbers_of

DATASETS = Path(__file__).parents[2] / "datasets"
LISTS = ("--train-videos", "1", "--val-videos", "2", "--test-videos", "41")
CHOLECT50_NAMES = ["preparation", "carlot-triangle-dissection", "clipping-and-cutting"]


@cache
def program(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"program_{name}", DATASETS / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def prepare(tmp_path: Path) -> Callable[..., dict[str, dict]]:
    """``prepare("cholec80", source, *options)`` -> content of every JSON, audit included."""

    def run(name: str, source: Path, *options: str) -> dict[str, dict]:
        output = tmp_path / "out"
        arguments = ["--source", str(source), "--output", str(output), *options]
        program(f"prepare_{name}").main(arguments)
        return {path.stem: json.loads(path.read_text()) for path in output.glob("*.json")}

    return run


def phases_of(split: dict) -> list[str]:
    return [image["phase"] for image in split["images"]]


def names_of(split: dict) -> list[str]:
    return [video["name"] for video in split["videos"]]


@pytest.fixture
def cholec80(tmp_path: Path) -> Path:
    """Videos 1 and 2 of 3 and 2 s, video 41 of 2 s; the second phase starts after a second."""
    root = tmp_path / "Cholec80"
    (root / "videos").mkdir(parents=True)
    for number, seconds in ((1, 3), (2, 2), (41, 2)):
        write_video(root / "videos" / f"video{number:02d}.mp4", frames=25 * seconds)
        phases = [CHOLEC80_PHASES[0]] * 25 + [CHOLEC80_PHASES[1]] * 25 * (seconds - 1)
        write_phases(root / "phase_annotations" / f"video{number:02d}-phase.txt", phases)
    return root


def test_cholec80_videos_give_frames_with_their_phases(prepare, cholec80, tmp_path) -> None:
    written = prepare("cholec80", cholec80, *LISTS)
    train = written["train"]
    assert train["phases"] == list(CHOLEC80_PHASES)
    assert (train["categories"], train["annotations"]) == ([], [])
    assert train["videos"] == [{"id": 1, "name": "video01", "frame_rate": 1.0}]
    assert phases_of(train) == [CHOLEC80_PHASES[0], *[CHOLEC80_PHASES[1]] * 2]
    assert [image["frame_index"] for image in train["images"]] == [0, 1, 2]
    assert train["images"][1]["file_name"] == "video01/000002.jpg"
    assert [names_of(written[split]) for split in ("val", "test")] == [["video02"], ["video41"]]
    split = load_split(tmp_path / "out" / "train.json", tmp_path / "out" / "frames")
    assert len(split.records) == 3


def test_other_rates_are_those_of_the_list(prepare, cholec80) -> None:
    train = prepare("cholec80", cholec80, *LISTS, "--rate", "5")["train"]
    assert train["videos"][0]["frame_rate"] == 5.0
    assert phases_of(train) == [CHOLEC80_PHASES[0]] * 5 + [CHOLEC80_PHASES[1]] * 10


@pytest.mark.parametrize("rate", [1, 25])
def test_cholec80_frames_on_disk_are_used(prepare, cholec80, rate: int) -> None:
    shutil.rmtree(cholec80 / "videos")
    for number, seconds in ((1, 3), (2, 2), (41, 2)):
        name = f"video{number:02d}"
        write_frames(cholec80 / "frames" / name, rate * seconds, prefix=f"{name}_", suffix="png")
    train = prepare("cholec80", cholec80, *LISTS, "--frame-rate", str(rate))["train"]
    assert phases_of(train) == [CHOLEC80_PHASES[0], *[CHOLEC80_PHASES[1]] * 2]


def test_a_wrong_frame_rate_is_noticed_by_the_labels(prepare, cholec80) -> None:
    for number in (1, 2, 41):
        write_frames(cholec80 / "frames" / f"video{number:02d}", 75)
    with pytest.raises(SystemExit, match=r"labels 3\.0 s.*lasts 75\.0 s.*--frame-rate"):
        prepare("cholec80", cholec80, *LISTS)


def test_defaults_are_the_published_split(prepare, cholec80, tmp_path) -> None:
    with pytest.raises(SystemExit, match=r"--val-videos 33-40: none .* exists; there are 1, 2, 41"):
        prepare("cholec80", cholec80)
    assert not (tmp_path / "out" / "frames").exists()
    written = prepare("cholec80", cholec80, "--val-videos", "")
    assert names_of(written["train"]) == ["video01", "video02"]
    assert names_of(written["test"]) == ["video41"]
    assert "val" not in written
    assert written["audit"]["notes"]["video does not exist"]["count"] == 30 + 39


def test_a_video_belongs_to_one_split_and_the_unused_are_noted(prepare, cholec80) -> None:
    with pytest.raises(SystemExit, match="--test-videos 1-2: video 1 is in train already"):
        prepare("cholec80", cholec80, *LISTS[:4], "--test-videos", "1-2")
    with pytest.raises(SystemExit, match="--val-videos two: 'two' is neither a number nor"):
        prepare("cholec80", cholec80, "--val-videos", "two")
    written = prepare("cholec80", cholec80, *LISTS[:4], "--test-videos", "")
    notes = written["audit"]["notes"]["video is in no split"]
    assert notes["examples"] == ["41; see --train-videos and others"]


def test_a_phase_file_without_its_video_or_the_reverse_is_refused(prepare, cholec80) -> None:
    (cholec80 / "videos" / "video02.mp4").unlink()
    (cholec80 / "phase_annotations" / "video41-phase.txt").unlink()
    with pytest.raises(SystemExit) as refusal:
        prepare("cholec80", cholec80, *LISTS)
    assert "phase file without a video: 1" in str(refusal.value)
    assert "video without a phase file: 1" in str(refusal.value)


def test_labels_of_another_length_are_refused(prepare, cholec80) -> None:
    write_phases(cholec80 / "phase_annotations" / "video02-phase.txt", [0] * 100)
    with pytest.raises(SystemExit, match=r"video02-phase\.txt: labels 4\.0 s.*lasts 2\.0 s"):
        prepare("cholec80", cholec80, *LISTS)


def test_frames_after_the_last_label_are_left_out_and_noted(prepare, cholec80) -> None:
    write_phases(cholec80 / "phase_annotations" / "video02-phase.txt", [0] * 25)
    written = prepare("cholec80", cholec80, *LISTS)
    assert phases_of(written["val"]) == [CHOLEC80_PHASES[0]]
    notes = written["audit"]["notes"]["frame is later than the last label: left out"]
    assert notes["examples"] == ["video02/000002.jpg"]


def test_an_unknown_phase_is_refused_before_anything_is_decoded(
    prepare, cholec80, tmp_path
) -> None:
    write_phases(cholec80 / "phase_annotations" / "video02-phase.txt", ["Clipping"] * 50)
    with pytest.raises(SystemExit, match=r"line 2: 'Clipping' is none.*mean ClippingCutting"):
        prepare("cholec80", cholec80, *LISTS)
    assert not (tmp_path / "out" / "frames").exists()


def test_other_folders_are_refused_with_the_layout(prepare, cholec80) -> None:
    with pytest.raises(SystemExit, match=r"(?s)not the expected layout.*phase_annotations/"):
        prepare("cholec80", cholec80 / "videos")


def test_m2cai16_has_a_folder_of_training_and_one_of_test_videos(prepare, tmp_path) -> None:
    root = tmp_path / "m2cai16"
    for prefix, folder, number in (
        ("", "train_dataset", 1),
        ("", "train_dataset", 3),
        ("test_", "test_dataset", 1),
    ):
        name = f"{prefix}workflow_video_{number:02d}"
        write_phases(root / folder / f"{name}.txt", [M2CAI16_PHASES[number]] * 50)
        (root / folder / f"{name}_timestamp.txt").write_text("00:00:00.00 Preparation")
        if number == 3:
            write_frames(root / "frames" / name, 2)
        else:
            write_video(root / folder / f"{name}.mp4", frames=50)
    written = prepare("m2cai16", root)
    assert {split: names_of(written[split]) for split in ("train", "val", "test")} == {
        "train": ["workflow_video_01"],
        "val": ["workflow_video_03"],
        "test": ["test_workflow_video_01"],
    }
    assert written["test"]["phases"] == list(M2CAI16_PHASES)
    assert phases_of(written["val"]) == ["ClippingCutting"] * 2


@pytest.fixture
def cholect50(tmp_path: Path) -> Path:
    root = tmp_path / "CholecT50"
    for number in (1, 8, 6, 111):
        write_frames(root / "videos" / f"VID{number:02d}", 4, first=0, suffix="png")
        write_triplets(root / "labels" / f"VID{number:02d}.json", [0, 1, None, 2], CHOLECT50_NAMES)
    return root


def test_cholect50_has_a_phase_for_each_frame_with_triplets(prepare, cholect50) -> None:
    written = prepare("cholect50", cholect50)
    assert names_of(written["test"]) == ["VID06", "VID111"]
    train = written["train"]
    assert train["phases"] == CHOLECT50_NAMES
    assert phases_of(train) == CHOLECT50_NAMES
    assert [image["frame_index"] for image in train["images"]] == [0, 1, 3]
    assert written["audit"]["notes"]["frame has no phase: left out"]["count"] == 4


def test_cholect50_has_the_official_folds(prepare, cholect50) -> None:
    module = program("prepare_cholect50")
    of_folds = sorted(number for fold in module.FOLDS for number in fold)
    of_default = sorted(n for text in module.DEFAULTS.values() for n in numbers_of(text))
    assert of_folds == of_default
    assert len(set(of_folds)) == 50
    lists = module._lists(module.parse(["--source", "x", "--output", "y", "--fold", "1"]))
    assert (lists["val"], lists["test"][:9]) == ("1,56,4,13,92", "79,2,51,6")
    with pytest.raises(SystemExit, match="--fold 1 chooses the videos"):
        prepare("cholect50", cholect50, "--fold", "1", "--val-videos", "8")


def test_cholect50_files_of_two_releases_are_refused(prepare, cholect50) -> None:
    write_triplets(cholect50 / "labels" / "VID08.json", [0] * 4, ["preparation", "other", "third"])
    with pytest.raises(SystemExit, match=r"VID08\.json: has the phases preparation, other"):
        prepare("cholect50", cholect50)


@pytest.fixture
def videos(tmp_path: Path) -> Path:
    root = tmp_path / "videos"
    root.mkdir()
    for name in ("VID1_a", "VID1_b", "VID2_a", "VID3_a", "VID4_a"):
        write_video(root / f"{name}.mp4", frames=26)
    return root


def test_any_folder_gives_a_list_without_labels(prepare, videos, tmp_path) -> None:
    written = prepare("frames", videos)
    assert set(written) == {"unlabelled", "audit"}
    assert len(written["unlabelled"]["images"]) == 10
    assert written["unlabelled"]["videos"][0] == {"id": 1, "name": "VID1_a", "frame_rate": 1.0}
    assert not written["unlabelled"].keys() & {"phases"}
    assert "phase" not in written["unlabelled"]["images"][0]
    load_split(tmp_path / "out" / "unlabelled.json", tmp_path / "out" / "frames")


def test_whole_videos_are_set_aside(prepare, videos) -> None:
    written = prepare("frames", videos, "--val", "1", "--test-videos", "VID1_*,VID4_a")
    assert names_of(written["test"]) == ["VID1_a", "VID1_b", "VID4_a"]
    assert len(written["val"]["videos"]) == len(written["unlabelled"]["videos"]) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--val", "3", "--test", "2"], "of 5 videos none would be left for training"),
        (["--val-videos", "VID9"], r"--val-videos VID9: no video has this name; there are VID"),
        (["--val-videos", "VID1_a", "--test-videos", "VID*"], "VID1_a is in val already"),
        (["--test", "-1"], "must not be negative"),
        (["--rate", "0"], "--rate 0: must be above 0"),
    ],
)
def test_impossible_splits_and_settings_are_refused(prepare, videos, options, message) -> None:
    with pytest.raises(SystemExit, match=message):
        prepare("frames", videos, *options)


def test_a_single_video_cannot_be_split(prepare, videos) -> None:
    with pytest.raises(SystemExit, match=r"a single video cannot be split \(--test\)"):
        prepare("frames", videos / "VID1_a.mp4", "--test", "1")


def test_a_damaged_video_is_an_error_or_a_note(prepare, videos) -> None:
    (videos / "VID2_a.mp4").write_bytes(b"damaged")
    with pytest.raises(SystemExit, match=r"VID2_a\.mp4: cannot be read as a video"):
        prepare("frames", videos)
    notes = prepare("frames", videos, "--skip-unreadable")["audit"]["notes"]
    assert notes["video cannot be read: left out"]["count"] == 1


LABELS = """file,patient,instrument
VID1_a.mp4,1,hook
VID1_b.mp4,1,grasper
VID2_a.mp4,2,hook
VID3_a.mp4,3,grasper
VID4_a.mp4,4,hook
"""


def labelled(tmp_path: Path, text: str, *others: str) -> list[str]:
    (tmp_path / "labels.csv").write_text(text)
    options = ["--labels", str(tmp_path / "labels.csv"), "--label", "instrument", *others]
    return [*options, "--val-videos", "VID3_a", "--test-videos", "VID4_a"]


def test_labels_of_whole_videos_are_the_phases_of_their_frames(prepare, videos, tmp_path) -> None:
    written = prepare("frames", videos, *labelled(tmp_path, LABELS, "--group", "patient"))
    assert set(written) == {"train", "val", "test", "audit"}
    assert written["train"]["phases"] == written["test"]["phases"] == ["grasper", "hook"]
    phases = [image["phase"] for image in written["train"]["images"]]
    assert phases == ["hook"] * 2 + ["grasper"] * 2 + ["hook"] * 2


@pytest.mark.parametrize(
    ("text", "others", "message"),
    [
        (LABELS.replace("4,hook", "1,hook"), ["--group", "patient"], "patient 1 is in two splits"),
        (
            LABELS.replace("instrument", "tool"),
            [],
            "has no column instrument; it has file, patient",
        ),
        (LABELS.replace("VID2_a.mp4,2,hook\n", ""), [], r"0 lines for VID2_a\.mp4, but one"),
        (LABELS + "VID2_a,2,grasper\n", [], r"2 lines for VID2_a\.mp4, but one"),
        ("", [], "has no column file, instrument; it has none"),
    ],
)
def test_labels_that_do_not_fit_the_videos_are_refused(
    prepare, videos, tmp_path, text, others, message
) -> None:
    with pytest.raises(SystemExit, match=message):
        prepare("frames", videos, *labelled(tmp_path, text, *others))


def test_the_output_may_lie_in_the_source(videos) -> None:
    arguments = ["--source", str(videos), "--output", str(videos / "cache")]
    for _ in range(2):
        program("prepare_frames").main(arguments)
    assert len(json.loads((videos / "cache" / "unlabelled.json").read_text())["videos"]) == 5
