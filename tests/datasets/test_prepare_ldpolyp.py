"""LDPolypVideo: the release and the one-clip layout by hand, and the real clip where it is."""

import json
import os
from pathlib import Path

import pytest

from tests.datasets.layouts import HEIGHT, WIDTH, boxes_by_file, names, picture
from v2idetr.data.coco_vid import load_split


def video(part: Path, name: str, texts: dict[str, str]) -> None:
    """Frames of a video and their text files; frames with an empty text have none."""
    for stem, text in texts.items():
        picture(part / "Images" / name / f"{stem}.jpg")
        path = part / "Annotations" / name / f"{stem}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        if text:
            path.write_text(text)


TWO_FRAMES = {"1_1": "1\n20 4 28 16\n", "1_2": "0\n"}


@pytest.fixture
def release(tmp_path: Path) -> Path:
    root = tmp_path / "LDPolypVideo"
    for name in ("1", "2", "10"):
        video(root / "TrainValid", name, TWO_FRAMES)
    video(root / "Test", "1", TWO_FRAMES)
    return root


def test_release_keeps_its_test_set(convert, release, tmp_path):
    written = convert("ldpolyp", release)
    assert names(written["train"]) == ["TrainValid/1", "TrainValid/10"]
    assert (names(written["val"]), names(written["test"])) == (["TrainValid/2"], ["Test/1"])
    assert boxes_by_file(written["test"]) == {
        "Test/Images/1/1_1.jpg": [[20, 4, 8, 12]],
        "Test/Images/1/1_2.jpg": [],
    }
    load_split(tmp_path / "out" / "train.json", release, class_names=["polyp"])


def test_frames_are_in_natural_order(convert, release):
    video(release / "Test", "1", {f"1_{k}": "0\n" for k in (3, 10)})
    images = convert("ldpolyp", release)["test"]["images"]
    assert [Path(i["file_name"]).stem for i in images] == ["1_1", "1_2", "1_3", "1_10"]
    assert [i["frame_index"] for i in images] == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("", "frame without a text file is left out"),
        ("polyp\n", "frame whose text file cannot be read is left out"),
        ("\n", "frame whose text file cannot be read is left out"),
        ("2\n1 2 3 4\n", "frame whose text file does not have the boxes that it counts"),
        ("1\n1 2 3\n", "frame whose text file does not have the boxes that it counts"),
    ],
)
def test_frames_without_usable_text_are_left_out_and_noted(convert, release, text, kind):
    video(release / "Test", "1", {"1_3": text})
    written = convert("ldpolyp", release)
    assert len(written["test"]["images"]) == 2
    assert [note["count"] for k, note in written["audit"]["notes"].items() if kind in k] == [1]


def test_texts_with_a_byte_order_mark_are_read(convert, release):
    text = release / "Test" / "Annotations" / "1" / "1_1.txt"
    text.write_text(TWO_FRAMES["1_1"], encoding="utf-8-sig")
    text.with_name("1_2.txt").write_text(TWO_FRAMES["1_2"], encoding="utf-16")
    written = convert("ldpolyp", release)
    assert boxes_by_file(written["test"]) == {"Test/Images/1/1_1.jpg": [[20, 4, 8, 12]]}
    notes = written["audit"]["notes"]["frame whose text file is not UTF-8 is left out"]
    assert notes["examples"] == ["Test/Images/1/1_2.jpg"]


def test_folder_without_a_test_set_is_divided(convert, release):
    for name in ("3", "4"):
        video(release / "TrainValid", name, TWO_FRAMES)
    written = convert("ldpolyp", release / "TrainValid")
    assert names(written["train"]) == ["1", "2", "10"]
    assert (names(written["val"]), names(written["test"])) == (["4"], ["3"])


def test_folder_without_a_test_set_is_divided_70_10_20(convert, release):
    for number in range(11, 38):
        video(release / "TrainValid", str(number), TWO_FRAMES)
    written = convert("ldpolyp", release / "TrainValid")
    sizes = {split: len(names(written[split])) for split in ("train", "val", "test")}
    assert sizes == {"train": 21, "val": 3, "test": 6}


def test_one_clip_is_a_test_split(convert, tmp_path):
    root = tmp_path / "clip"
    for number in range(3):
        picture(root / "frames" / f"{number:06d}.jpg")
    frames = [{"frame": 2, "boxes_xyxy": [[20, 4, 28, 16], [1, 1, 5, 50]]}]
    frames += [{"frame": k, "boxes_xyxy": []} for k in (0, 7)]
    content = {"width": WIDTH, "height": HEIGHT, "frames": frames}
    (root / "annotations.json").write_text(json.dumps(content))
    written = convert("ldpolyp", root)
    assert set(written) == {"test", "audit"}
    assert boxes_by_file(written["test"]) == {
        "frames/000000.jpg": [],
        "frames/000002.jpg": [[20, 4, 8, 12], [1, 1, 4, 29]],
    }
    assert written["audit"]["notes"]["frame is not in frames/ and is left out"]["count"] == 1
    (root / "annotations.json").write_text("[]")
    with pytest.raises(SystemExit, match="not the expected annotations"):
        convert("ldpolyp", root)


def test_other_folder_is_refused(convert, release):
    with pytest.raises(SystemExit, match="not the expected layout; it holds 1, 10, 2"):
        convert("ldpolyp", release / "TrainValid" / "Images")


@pytest.mark.skipif("V2I_REAL_DATA" not in os.environ, reason="V2I_REAL_DATA is not set")
def test_real_clip_is_read(convert, tmp_path):
    source = Path(os.environ["V2I_REAL_DATA"]) / "ldpolyp_seq1"
    if not source.is_dir():
        pytest.skip(f"no ldpolyp_seq1 in V2I_REAL_DATA={os.environ['V2I_REAL_DATA']}")
    convert("ldpolyp", source)
    report = load_split(tmp_path / "out" / "test.json", source).report
    assert (report.frames, report.boxes, report.lesion_free_frames) == (53, 61, 0)
