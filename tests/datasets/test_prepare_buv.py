"""BUV's layout by hand, with its published faults, and as the generator writes it."""

import json
from pathlib import Path

import pytest

from tests.datasets.layouts import HEIGHT, WIDTH, boxes_by_file, names, picture
from v2idetr.data.coco_vid import load_split

TRAIN, VAL = "imagenet_vid_train_15frames.json", "imagenet_vid_val.json"
BOX = [4, 5, 10, 12]
Videos = dict[str, dict[int, list]]  # frame numbers and their boxes, by video


def published(root: Path, name: str, videos: Videos) -> None:
    """One of the published files, with the pictures that it lists."""
    content: dict[str, list] = {"videos": [], "images": [], "annotations": []}
    for video_id, (video, frames) in enumerate(videos.items(), start=1):
        content["videos"].append({"id": video_id, "name": video})
        for number, box in frames.items():
            file_name = f"{video}/{number:06d}.png"
            picture(root / "rawframes" / file_name)
            content["images"].append(
                {
                    "id": len(content["images"]) + 1,
                    "file_name": file_name,
                    "height": HEIGHT,
                    "width": WIDTH,
                    "frame_id": number,
                    "video_id": video_id,
                }
            )
            content["annotations"].append(
                {
                    "id": len(content["annotations"]) + 1,
                    "image_id": len(content["images"]),
                    "category_id": 1 if video.startswith("benign") else 2,
                    "instance_id": video_id,
                    "bbox": box,
                    "area": box[2] * box[3],
                    "iscrowd": False,
                }
            )
    categories = [{"id": 1, "name": "benign"}, {"id": 2, "name": "malignant"}]
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({**content, "categories": categories}))


def plain(*videos: str) -> Videos:
    return {video: {0: BOX, 8: BOX} for video in videos}


FAULTY = (
    "benign/x66ef02e7f1b9a0ef",
    "benign/63c9ba1377f35bf6",
    "benign/x5a1c46ec6377e946",
    "benign/x1282311c38f808f",
    "benign/786ebd9dada09453",
)


@pytest.fixture
def buv(tmp_path: Path) -> Path:
    root = tmp_path / "BUV"
    train = plain("benign/aa", "benign/bb", "benign/cc", "malignant/dd", "malignant/ee", *FAULTY)
    published(root, TRAIN, train)
    published(root, VAL, plain("benign/ff", "malignant/gg"))
    return root


def test_published_validation_set_is_the_test_split(convert, buv):
    written = convert("buv", buv)
    assert names(written["test"]) == ["benign/ff", "malignant/gg"]
    assert names(written["val"]) == ["benign/bb", "malignant/ee"]
    assert names(written["train"]) == ["benign/aa", "benign/cc", "malignant/dd"]
    assert [c["name"] for c in written["train"]["categories"]] == ["benign", "malignant"]


def test_written_splits_can_be_trained_on(convert, buv, tmp_path):
    convert("buv", buv)
    split = load_split(tmp_path / "out" / "train.json", buv, class_names=["benign", "malignant"])
    assert split.report.boxes_per_class == {"benign": 4, "malignant": 2}
    assert [r["frame_index"] for r in split.records] == [0, 8] * 3


def test_faulty_videos_are_left_out_with_their_reason(convert, buv):
    written = convert("buv", buv)
    note = written["audit"]["notes"]["video with a known fault is left out"]
    assert note["count"] == len(FAULTY)
    assert any("x66ef02e7f1b9a0ef" in e and "x3b88488853e8b7d1" in e for e in note["examples"])
    assert not set(FAULTY) & set(names(written["train"]))


def test_raw_keeps_all_videos_and_boxes(convert, buv, tmp_path):
    published(buv, VAL, {"benign/ff": {0: [20, 20, -10, 5], 1: [-5, 7, 20, 10]}})
    written = convert("buv", buv, "--raw", "--val-share", "0")
    assert set(FAULTY) < set(names(written["train"])) and "val" not in written
    kept = [(a["bbox"], a["area"]) for a in written["test"]["annotations"]]
    assert kept == [([20, 20, -10, 5], -50), ([-5, 7, 20, 10], 200)]
    assert written["audit"]["splits"]["test"]["bad_boxes"] == {"negative": 1, "outside": 1}
    with pytest.raises(ValueError, match="negative width"):
        load_split(tmp_path / "out" / "test.json", buv)


def test_bad_boxes_are_put_right_and_counted(convert, buv):
    bad = {0: [20, 20, -10, 5], 1: [-5, 7, 20, 10], 2: [6, 6, 0, 9]}
    published(buv, VAL, {"malignant/gg": bad})
    written = convert("buv", buv)
    assert list(boxes_by_file(written["test"]).values()) == [
        [[10, 20, 10, 5]],
        [[0, 7, 15, 10]],
        [],
    ]
    assert [a["area"] for a in written["test"]["annotations"]] == [50, 150]
    report = written["audit"]["splits"]["test"]
    assert report["bad_boxes"] == {"negative": 1, "outside": 1, "empty": 1}
    assert (report["clipped"], report["dropped"]) == (2, 1)


def test_patient_of_a_test_video_is_not_trained_on(convert, buv):
    published(buv, TRAIN, plain("benign/aa", "benign/bb", "malignant/2390fbea047347b", "benign/ff"))
    published(buv, VAL, plain("benign/ff", "malignant/x7a39ab5d4970bf89"))
    written = convert("buv", buv)
    note = written["audit"]["notes"]["training video is left out"]
    assert sorted(note["examples"]) == [
        "benign/ff: in test too",
        "malignant/2390fbea047347b: same patient as a test video",
    ]


@pytest.mark.parametrize(
    ("train", "val"),
    [
        (f"annotations/instances_{TRAIN}", f"annotations/instances_{VAL}"),
        ("trainval.json", "test.json"),
    ],
)
def test_other_names_of_the_files_are_known(convert, tmp_path, train, val):
    root = tmp_path / "download" / "Miccai 2022 BUV Dataset"
    published(root, train, plain("benign/aa", "benign/bb", "malignant/cc", "malignant/dd"))
    published(root, val, plain("benign/ff"))
    assert names(convert("buv", root.parent)["test"]) == ["benign/ff"]


def test_missing_pictures_are_left_out_and_noted(convert, buv):
    (buv / "rawframes/benign/aa/000000.png").unlink()
    written = convert("buv", buv)
    assert written["audit"]["splits"]["train"]["frames"] == 5
    assert written["audit"]["notes"]["frame cannot be used and is left out"]["examples"] == [
        "rawframes/benign/aa/000000.png no such file"
    ]


def test_a_byte_order_mark_is_read_and_frames_without_a_box_are_noted(convert, buv):
    path = next(buv.glob("*val*.json"))
    content = json.loads(path.read_text())
    gone = content["annotations"].pop()["image_id"]
    path.write_text(json.dumps(content), encoding="utf-8-sig")
    notes = convert("buv", buv)["audit"]["notes"]
    file = next(image["file_name"] for image in content["images"] if image["id"] == gone)
    assert notes["frame without a box counts as lesion-free"]["examples"] == [file]


def test_label_that_contradicts_the_folder_is_noted(convert, buv):
    content = json.loads((buv / VAL).read_text())
    content["annotations"][0]["category_id"] = 2
    (buv / VAL).write_text(json.dumps(content))
    notes = convert("buv", buv)["audit"]["notes"]
    assert notes["box of another class than its video's folder"]["count"] == 1


def test_other_folders_files_and_shares_are_refused(convert, buv):
    with pytest.raises(SystemExit, match=r"not the expected layout.*\s*rawframes/benign"):
        convert("buv", buv / "rawframes")
    with pytest.raises(SystemExit, match=r"--val-share 1\.0"):
        convert("buv", buv, "--val-share", "1")
    (buv / VAL).write_text('{"images": [{"id": 1}]}')
    with pytest.raises(SystemExit, match="is not BUV's annotation file"):
        convert("buv", buv)


def test_generator_and_converter_agree(convert, synthetic, tmp_path):
    options = ("--train-clips", "4", "--test-easy-clips", "3", "--frames-per-clip", "3")
    source = synthetic("buv", *options, "--defects")
    written = convert("buv", source)
    assert written["audit"]["notes"]["video with a known fault is left out"]["count"] == 3
    assert sum(s["clipped"] for s in written["audit"]["splits"].values()) >= 2
    for split in ("train", "val", "test"):
        load_split(tmp_path / "out" / f"{split}.json", source)
