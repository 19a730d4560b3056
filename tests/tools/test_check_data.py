"""tools/check_data.py: what it prints, writes and exits with."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image

from v2idetr.data.coco_vid import load_split

TOOLS = Path(__file__).resolve().parents[2] / "tools"
WIDTH, HEIGHT = 64, 48


@pytest.fixture
def check(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The program as a module; its folder is on the path, as when it is run."""
    monkeypatch.syspath_prepend(TOOLS)
    return importlib.import_module("check_data")


def write(root: Path, name: str, seed: int, **changes: object) -> Path:
    """A split of two videos of two frames; the last frame is lesion-free."""
    images, annotations = [], []
    for number in range(4):
        video, index = divmod(number, 2)
        file_name = f"{name}/{video}/{index}.png"
        path = root / file_name
        path.parent.mkdir(parents=True, exist_ok=True)
        noise = np.random.default_rng(seed + number).integers(0, 256, (6, 8, 3), dtype=np.uint8)
        Image.fromarray(noise).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC).save(path)
        place = {"video_id": video + 1, "frame_index": index, "id": number + 1}
        images.append({"file_name": file_name, "width": WIDTH, "height": HEIGHT, **place})
        if number < 3:
            box = {"bbox": [10 + number, 8, 20, 16], "category_id": 1, "image_id": number + 1}
            annotations.append({"id": number + 1, **box})
    content = {
        "info": {"image_root_hint": str(root)},
        "videos": [{"id": 1, "name": "case1"}, {"id": 2, "name": "<case2>", "group": "seen"}],
        "images": images,
        "annotations": annotations,
        "categories": [{"id": 1, "name": "polyp"}],
        **changes,
    }
    path = root / f"{name}.json"
    path.write_text(json.dumps(content))
    return path


def damage(path: Path, *boxes: list[float]) -> None:
    content = json.loads(path.read_text())
    for annotation, box in zip(content["annotations"], boxes, strict=False):
        annotation["bbox"] = box
    path.write_text(json.dumps(content))


def test_sound_splits_pass_and_are_counted(check, tmp_path, capsys):
    train, val = write(tmp_path, "train", 0), write(tmp_path, "val", 50)
    assert check.main([str(train), str(val), "--output", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr().out
    assert "no errors" in printed
    found = json.loads((tmp_path / "out" / "check_data.json").read_text())
    assert found["copies"] == []
    assert found["splits"]["train"]["boxes_per_class"] == {"polyp": 3}
    assert found["splits"]["val"]["per_video"][1] == {
        "name": "<case2>",
        "group": "seen",
        "frames": 2,
        "scenes": 1,
        "lesion_free": 1,
        "boxes": 1,
        "median_size_percent": 32.3,
        "picture_sizes": ["64 x 48"],
    }


def test_what_lies_beside_splits_is_left_out_aloud(check, tmp_path, capsys):
    write(tmp_path, "train", 0)
    (tmp_path / "audit.json").write_text("{}")
    for _ in range(2):  # the second time check_data.json is there as well
        assert check.main([str(path) for path in sorted(tmp_path.glob("*.json"))]) == 0
    said = f"not a split: {tmp_path / 'audit.json'}, {tmp_path / 'check_data.json'}\n"
    assert said in capsys.readouterr().out
    with pytest.raises(SystemExit):
        check.main([str(tmp_path / "audit.json")])


def test_page_stands_alone_and_shows_frames_with_boxes(check, tmp_path):
    train = write(tmp_path, "train", 0)
    check.main([str(train)])
    page = (tmp_path / "check_data.html").read_text()
    assert page.count("data:image/jpeg;base64,") == 4
    assert page.count('class="box class0"') == 3
    assert '<rect class="halo" x="10.0" y="8.0" width="20.0" height="16.0"/>' in page
    assert "&lt;case2&gt;" in page and "<case2>" not in page
    assert "http://" not in page and "https://" not in page


def test_bad_boxes_are_errors_and_shown_as_they_are(check, tmp_path, capsys):
    train = write(tmp_path, "train", 0)
    damage(train, [40, 8, -20, 16], [-5, 8, 20, 16], [1, 1, float("nan"), 5])
    assert check.main([str(train)]) == 1
    printed = capsys.readouterr().out
    assert "error: train: box has a negative width or height: 1 (annotation 1" in printed
    assert "3 errors" in printed
    page = (tmp_path / "check_data.html").read_text()
    assert page.count('class="box bad"') == 2
    assert '<rect class="box bad" x="20.0" y="8.0" width="20.0" height="16.0">' in page
    assert "has NaN or infinite numbers</span>" in page


def test_damaged_and_missing_frames_are_errors(check, tmp_path, capsys):
    train = write(tmp_path, "train", 0)
    path = tmp_path / "train/0/0.png"
    path.write_bytes(path.read_bytes()[:150])
    Image.new("RGB", (9, 9)).save(tmp_path / "train/0/1.png")
    (tmp_path / "train/1/0.png").unlink()
    assert check.main([str(train)]) == 1
    printed = capsys.readouterr().out
    assert "0/0.png: cannot be read as an image" in printed
    assert "0/1.png: is 9 x 9 px" in printed
    assert "frame is not in" in printed and "1 (train/1/0.png)" in printed
    assert "3 errors" in printed


def test_frames_shared_by_two_splits_are_errors(check, tmp_path, capsys):
    train, val = write(tmp_path, "train", 0), write(tmp_path, "val", 2)
    assert check.main([str(train), str(val)]) == 1
    printed = capsys.readouterr().out
    assert "error: 2 frames are the same in two videos: train: <case2> = val: case1" in printed
    page = (tmp_path / "check_data.html").read_text()
    assert "Frames that two videos share" in page and "across splits" in page


def test_a_file_in_two_splits_is_one_error_whatever_it_is_called(check, tmp_path, capsys):
    train, val = write(tmp_path, "train", 0), write(tmp_path, "val", 50)
    frame = tmp_path / "val/0/0.png"
    frame.unlink()
    frame.symlink_to(tmp_path / "train/1/1.png")
    assert check.main([str(train), str(val)]) == 1
    printed = capsys.readouterr().out
    assert "error: file is a frame of train and of val" in printed and "train/1/1.png)" in printed
    assert printed.splitlines()[-2] == "1 error"
    found = json.loads((tmp_path / "check_data.json").read_text())
    assert found["copies"] == [] and len(found["together"]["problems"]) == 1
    assert "file is a frame of train and of val" in (tmp_path / "check_data.html").read_text()


def test_splits_of_different_classes_are_an_error(check, tmp_path, capsys):
    val = write(tmp_path, "val", 50, categories=[{"id": 1, "name": "adenoma"}])
    assert check.main([str(write(tmp_path, "train", 0)), str(val)]) == 1
    assert "train has polyp; val has adenoma" in capsys.readouterr().out


def test_a_training_split_without_boxes_is_an_error_and_another_is_not(check, tmp_path, capsys):
    test = write(tmp_path, "test", 50, annotations=[])
    assert check.main([str(test)]) == 0
    assert check.main([str(write(tmp_path, "train", 0, annotations=[])), str(test)]) == 1
    assert "error: no box to train on" in capsys.readouterr().out


def test_a_class_without_a_box_in_train_is_noted(check, tmp_path, capsys):
    categories = [{"id": 1, "name": "polyp"}, {"id": 2, "name": "serrated"}]
    assert check.main([str(write(tmp_path, "train", 0, categories=categories))]) == 0
    said = "note: class without a box to train on, which cannot be learned: 1 (serrated)"
    assert said in capsys.readouterr().out


def test_sizes_within_a_scene_are_checked_from_the_json(check, tmp_path, capsys):
    train = write(tmp_path, "train", 0)
    content = json.loads(train.read_text())
    content["images"][1]["width"] = 32
    train.write_text(json.dumps(content))
    Image.new("RGB", (32, HEIGHT), (9, 90, 9)).save(tmp_path / "train/0/1.png")
    assert check.main([str(train)]) == 1
    assert "frames of one scene have different sizes" in capsys.readouterr().out


def test_an_unreadable_json_does_not_hide_what_is_found_in_the_others(check, tmp_path, capsys):
    broken, val = tmp_path / "broken.json", write(tmp_path, "val", 50)
    broken.write_bytes(json.dumps({"name": "ä"}, ensure_ascii=False).encode("latin-1"))
    damage(val, [40, 8, -20, 16])
    assert check.main([str(broken), str(tmp_path / "gone.json"), str(val)]) == 1
    printed = capsys.readouterr().out
    assert "split cannot be read: 2" in printed
    assert f"{broken}: is not UTF-8" in printed and "gone.json: does not exist" in printed
    assert "negative width" in printed and "3 errors" in printed


@pytest.mark.parametrize("option", ["--output", "--write-clipped"])
def test_an_output_that_cannot_be_written_is_refused_before_frames_are_read(
    check, tmp_path, monkeypatch, capsys, option
):
    train = write(tmp_path, "train", 0)
    (tmp_path / "notes").write_text("")
    monkeypatch.setattr("v2idetr.prepare.frame_checks.read_frame", lambda *_, **__: pytest.fail())
    assert check.main([str(train), option, str(tmp_path / "notes" / "out.json")]) == 2
    assert f"{option} {tmp_path}/notes/out.json: {tmp_path}/notes is no" in capsys.readouterr().err


def test_a_disk_that_fills_up_is_said_with_the_file(check, tmp_path, monkeypatch, capsys):
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    train = write(tmp_path, "train", 0)
    monkeypatch.setattr("os.fsync", full)
    assert check.main([str(train)]) == 2
    said = f"check_data: {tmp_path}/check_data.html: No space left on device (make doctor"
    assert said in capsys.readouterr().err


def test_clipped_copy_can_be_trained_on(check, tmp_path, capsys):
    train = write(tmp_path, "train", 0)
    damage(train, [40, 8, -20, 16], [-5, 8, 20, 16], [1, 1, 0, 5])
    out = tmp_path / "clipped.json"
    assert check.main([str(train), "--write-clipped", str(out)]) == 1
    assert f"{out}: 2 boxes, 2 clipped, 1 dropped" in capsys.readouterr().out
    split = load_split(out, tmp_path)
    assert [a["bbox"] for r in split.records for a in r["annotations"]] == [
        [20, 8, 20, 16],
        [0, 8, 15, 16],
    ]
    assert check.main([str(out)]) == 0
    assert check.main([str(train), "--write-clipped", str(train)]) == 2
    assert "exists already" in capsys.readouterr().err


def test_clipped_copy_of_a_file_with_other_faults_is_refused(check, tmp_path, capsys):
    categories = [{"id": 2, "name": "polyp"}]
    train = write(tmp_path, "train", 0, categories=categories)
    assert check.main([str(train), "--write-clipped", str(tmp_path / "out.json")]) == 2
    assert "category_id is not under" in capsys.readouterr().err
    assert not (tmp_path / "out.json").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["missing.json"],
            "check_data: missing.json: does not exist. datasets/README.md says what",
        ),
        (["train.json", "train.json"], "a JSON is given twice"),
        (
            ["train.json", "--image-root", "nowhere"],
            "nowhere: no such folder, but the frames of train",
        ),
        (["train.json", "--every", "0"], "--every must be 1 or more"),
        (["train.json", "val.json", "--write-clipped", "o.json"], "takes one JSON at a time"),
    ],
)
def test_what_cannot_be_checked_exits_with_2(
    check, tmp_path, monkeypatch, capsys, arguments, message
):
    write(tmp_path, "train", 0)
    write(tmp_path, "val", 50)
    monkeypatch.chdir(tmp_path)
    assert check.main(arguments) == 2
    assert message in capsys.readouterr().err


def test_splits_of_one_name_are_told_apart_by_their_folders(check, tmp_path):
    first, second = write(tmp_path / "a", "train", 0), write(tmp_path / "b", "train", 50)
    check.main([str(first), str(second), "--output", str(tmp_path), "--samples", "0"])
    found = json.loads((tmp_path / "check_data.json").read_text())
    assert set(found["splits"]) == {"a/train", "b/train"}


def test_samples_are_spread_over_videos_with_some_lesion_free(check, tmp_path):
    train = write(tmp_path, "train", 0)
    sheet = importlib.import_module("data_sheet")
    split = load_split(train, tmp_path)
    shown = [(c["video"], c["frame_index"]) for c in sheet.samples(split, {}, 3)]
    assert shown == [("case1", 1), ("<case2>", 0), ("<case2>", 1)]
    assert sheet.samples(split, {}, 0) == []


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"categories": [{"id": 16, "name": "polyp"}]}, "category"),
        ({"image_id": [1]}, "image_id"),
    ],
)
def test_ids_that_no_training_takes_are_reported_not_stumbled_over(
    check: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str], changes: dict, told: str
) -> None:
    path = write(tmp_path, "train", 0, **{k: v for k, v in changes.items() if k == "categories"})
    content = json.loads(path.read_text())
    content["annotations"][0] |= {k: v for k, v in changes.items() if k == "image_id"}
    for annotation in content["annotations"]:
        annotation["category_id"] = content["categories"][0]["id"]
    path.write_text(json.dumps(content))
    assert check.main([str(path), "--output", str(tmp_path / "out")]) == 1
    assert told in capsys.readouterr().out
