"""Reading and writing one split: what is accepted, and what every bad input is answered with."""

import copy
import json
import logging
import math
import os
from pathlib import Path

import pytest
from detectron2.structures import BoxMode
from jaxtyping import TypeCheckError
from PIL import Image

from v2idetr.data import coco_vid
from v2idetr.data.coco_vid import load_split, write_split

WIDTH, HEIGHT = 40, 30


def content() -> dict:
    """Two videos; frames listed out of order; the third frame of the first is lesion-free."""
    frames = [(12, 1, 1), (11, 1, 0), (13, 1, 2), (21, 2, 0)]
    return {
        "info": {"description": "toy", "source": "test", "box_policy": "raise"},
        "videos": [{"id": 1, "name": "case1"}, {"id": 2, "name": "case2", "group": "unseen"}],
        "images": [
            {
                "id": image_id,
                "file_name": f"case{video}/{index}.jpg",
                "width": WIDTH,
                "height": HEIGHT,
                "video_id": video,
                "frame_index": index,
                "scene_id": 0,
            }
            for image_id, video, index in frames
        ],
        "annotations": [
            annotation(1, 11, [1, 2, 10, 12]),
            annotation(2, 12, [0, 0, 40, 30], instance_id=7),
            annotation(3, 21, [5, 5, 3, 4]),
        ],
        "categories": [{"id": 1, "name": "polyp"}],
    }


def annotation(number: int, image_id: int, bbox: object, **more: object) -> dict:
    return {"id": number, "image_id": image_id, "category_id": 1, "bbox": bbox, **more}


@pytest.fixture
def frames(tmp_path: Path) -> Path:
    root = tmp_path / "frames"
    for image in content()["images"]:
        path = root / image["file_name"]
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (WIDTH, HEIGHT), (120, 60, 50)).save(path)
    return root


@pytest.fixture
def save(tmp_path: Path):
    def write(data: object) -> Path:
        path = tmp_path / "sun" / "train.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(data if isinstance(data, str) else json.dumps(data))
        return path

    return write


def test_records_are_detectron2_dicts_in_order_of_time(frames, save):
    split = load_split(save(content()), frames, class_names=["polyp"])
    assert [record["image_id"] for record in split.records] == [11, 12, 13, 21]
    assert split.records[1] == {
        "file_name": str((frames / "case1/1.jpg").resolve()),
        "height": HEIGHT,
        "width": WIDTH,
        "image_id": 12,
        "video_id": 1,
        "frame_index": 1,
        "scene_id": 0,
        "annotations": [
            {
                "bbox": [0.0, 0.0, 40.0, 30.0],
                "bbox_mode": BoxMode.XYWH_ABS,
                "category_id": 0,
                "iscrowd": 0,
                "instance_id": 7,
            }
        ],
    }
    assert split.records[2]["annotations"] == []
    assert split.class_names == ["polyp"]
    assert split.videos[2]["group"] == "unseen"


def test_counts_are_logged_in_one_line(frames, save, caplog):
    with caplog.at_level(logging.INFO, logger="v2idetr"):
        split = load_split(save(content()), frames)
    assert caplog.messages == [
        f"{split.json_path}: 2 videos, 4 frames (1 lesion-free), 3 boxes (polyp 3)"
    ]


def test_foreign_file_with_frame_id_and_without_optional_keys_is_accepted(frames, save):
    data = content()
    del data["info"]
    for image in data["images"]:
        image["frame_id"] = image.pop("frame_index")
        del image["scene_id"]
    split = load_split(save(data), frames)
    assert [(r["frame_index"], r["scene_id"]) for r in split.records][:2] == [(0, 0), (1, 0)]


def test_a_byte_order_mark_before_the_json_is_accepted(frames, save):
    assert len(load_split(save("\ufeff" + json.dumps(content())), frames).records) == 4


def test_null_is_as_absent(frames, save):
    data = content()
    data["videos"][1]["group"] = None
    data["images"][0] |= {"scene_id": None, "frame_id": data["images"][0].pop("frame_index")}
    data["images"][0]["frame_index"] = None
    data["annotations"][1] |= {"id": None, "iscrowd": None, "area": None, "instance_id": None}
    split = load_split(save(data), frames)
    assert split.report.boxes == 3
    assert (split.records[1]["scene_id"], split.records[1]["frame_index"]) == (0, 1)
    assert "group" not in split.videos[2]


def test_sizes_within_a_scene_matter_only_where_frames_are_looked_at_together(frames, save):
    data = content()
    another_size(data)
    Image.new("RGB", (50, HEIGHT)).save(frames / data["images"][2]["file_name"])
    assert len(load_split(save(data), frames, together="frame").records) == 4
    data["images"][2]["scene_id"] = 1
    assert len(load_split(save(data), frames).records) == 4


def test_own_data_is_told_what_a_file_holds_and_not_to_run_a_converter(frames, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "train.json").write_text('{"images": []}')
    for name in ("train", "val"):
        with pytest.raises(ValueError, match='"Your own data"') as error:
            load_split(tmp_path / "mine" / f"{name}.json", frames)
        assert "prepare_" not in str(error.value)


def test_relative_paths_give_absolute_file_names(frames, save, monkeypatch):
    save(content())
    monkeypatch.chdir(frames.parent)
    split = load_split("sun/train.json", "frames")
    assert all(Path(record["file_name"]).is_absolute() for record in split.records)


# ---------------------------------------------------------------- nothing can be read


def test_missing_json_is_named_with_the_command_that_makes_it(frames, tmp_path):
    with pytest.raises(
        ValueError, match=r"train\.json: does not exist\. .*prepare_sun\.py --source"
    ) as error:
        load_split(tmp_path / "sun" / "train.json", frames)
    assert str(tmp_path / "sun" / "train.json") in str(error.value)


def test_missing_synthetic_json_names_both_commands(frames, tmp_path):
    with pytest.raises(
        ValueError, match=r"make_synthetic\.py --layout sunseg .*prepare_sunseg\.py"
    ):
        load_split(tmp_path / "synthetic_json" / "train.json", frames)


def test_missing_image_root_names_the_key(save, tmp_path):
    with pytest.raises(ValueError, match=r"nowhere: no such folder.*data\.<split>\.image_root"):
        load_split(save(content()), tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"images": [', "is not JSON"),
        ("", "is not JSON"),
        ("[1, 2]", "holds a list"),
        ('{"images": [], "annotations": [], "categories": []}', "has no key `videos`"),
        (json.dumps({**content(), "annotations": {}}), "needs a list of objects .*`annotations`"),
        (json.dumps({**content(), "images": [1]}), "needs a list of objects .*`images`"),
        (json.dumps({**content(), "images": []}), "split is empty"),
        ('{"info": {}, "images": [], "annotation": []}', r"SUN-SEG's own file.*prepare_sunseg"),
    ],
)
def test_file_that_is_no_coco_vid_json_says_so(frames, save, text, message):
    path = save(text)
    with pytest.raises(ValueError, match=message) as error:
        load_split(path, frames)
    assert str(path) in str(error.value)


def test_binary_file_is_refused(frames, tmp_path):
    path = tmp_path / "train.json"
    path.write_bytes(b"\xff\xd8\xff\xe0\x00")
    with pytest.raises(ValueError, match=r"train\.json: is not UTF-8"):
        load_split(path, frames)


def test_unknown_policy_is_refused(frames, save):
    # beartype, which runs in tests only, comes before our own check of the value
    with pytest.raises((ValueError, TypeCheckError), match="ignore"):
        load_split(save(content()), frames, on_bad_box="ignore")  # pyright: ignore


# ---------------------------------------------------------------- problems, all shown together


def group_is_a_number(data: dict) -> None:
    data["videos"][1]["group"] = 1
    data["images"] = [image for image in data["images"] if image["video_id"] == 1]
    kept = {image["id"] for image in data["images"]}
    data["annotations"] = [a for a in data["annotations"] if a["image_id"] in kept]


def double_image_id(data: dict) -> None:
    data["images"][1]["id"] = 12


def twice_the_same_time(data: dict) -> None:
    data["images"][0]["frame_index"] = 0


def twice_the_same_file(data: dict) -> None:
    data["images"][0]["file_name"] = "case1/0.jpg"


def unknown_video(data: dict) -> None:
    data["images"][0]["video_id"] = 9


def no_width(data: dict) -> None:
    del data["images"][0]["width"]


def no_time(data: dict) -> None:
    del data["images"][0]["frame_index"]


def id_is_a_word(data: dict) -> None:
    data["images"][0]["id"] = "case1-a2-image0001"


def unknown_image(data: dict) -> None:
    data["annotations"][0]["image_id"] = 99


def double_annotation_id(data: dict) -> None:
    data["annotations"][0]["id"] = 2


def unknown_category(data: dict) -> None:
    data["annotations"][0]["category_id"] = 2


def category_is_a_word(data: dict) -> None:
    data["annotations"][0]["category_id"] = "1"


def crowd(data: dict) -> None:
    data["annotations"][0]["iscrowd"] = 1


def no_box(data: dict) -> None:
    del data["annotations"][0]["bbox"]


def crowd_of_a_brush(data: dict) -> None:
    data["annotations"][0] |= {"iscrowd": 1, "segmentation": {"counts": [1, 2], "size": [30, 40]}}


def mask_alone(data: dict) -> None:
    del data["annotations"][0]["bbox"]
    data["annotations"][0]["segmentation"] = [[1, 1, 9, 1, 9, 9]]


def not_unicode(data: dict) -> None:
    data["images"][0]["file_name"] = "case1/caf\udce9.jpg"


def twice_the_same_path(data: dict) -> None:
    data["images"][0]["file_name"] = "case1/./0.jpg"


def another_size(data: dict) -> None:
    data["images"][2]["width"] = 50


def categories_from_zero(data: dict) -> None:
    data["categories"] = [{"id": 0, "name": "polyp"}]


def categories_with_a_gap(data: dict) -> None:
    data["categories"] = [{"id": 1, "name": "a"}, {"id": 3, "name": "b"}]


def categories_with_one_name(data: dict) -> None:
    data["categories"] = [{"id": 1, "name": "a"}, {"id": 2, "name": "a"}]


def no_categories(data: dict) -> None:
    data["categories"] = []


def double_video_id(data: dict) -> None:
    data["videos"][1]["id"] = 1


def missing_frame(data: dict) -> None:
    data["images"][0]["file_name"] = "case1/one.jpg"


def missing_folder(data: dict) -> None:
    data["images"][0]["file_name"] = "case3/1.jpg"


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (double_image_id, r"image id is used twice: 1 \(12 by case1/1.jpg and case1/0.jpg"),
        (twice_the_same_time, "same frame_index: 1 .*0 of video 1: case1/1.jpg and case1/0.jpg"),
        (twice_the_same_file, r"file is listed twice: 1 \(case1/0.jpg"),
        (unknown_video, r"image of a video that is not under `videos`: 1 \(images\[0\]"),
        (no_width, "image without width"),
        (no_time, "image without frame_index"),
        (id_is_a_word, "image whose id is not an integer"),
        (unknown_image, r"annotation of an unknown image: 1 \(annotations\[0\]"),
        (double_annotation_id, "annotation id is used twice"),
        (unknown_category, "category_id is not under `categories`"),
        (category_is_a_word, "category_id is not an integer"),
        (crowd, "iscrowd"),
        (crowd_of_a_brush, "run-length mask, as some programs export .*set iscrowd to 0"),
        (no_box, "annotation without bbox"),
        (mask_alone, "without bbox, with a mask alone: add the box around it"),
        (not_unicode, "file_name is not UTF-8: rename the file"),
        (twice_the_same_path, "file is listed twice"),
        (another_size, r"one scene have different sizes.*scene_id.*resize.*1 \(case1/0.jpg is 40"),
        (categories_from_zero, r"category ids are not 1..K: 1 \(they are \[0\], not 1..1"),
        (categories_with_a_gap, r"they are \[1, 3\], not 1..2"),
        (categories_with_one_name, "category names are not distinct"),
        (no_categories, "category_id is not under `categories`"),
        (double_video_id, "video id is used twice"),
        (group_is_a_number, r"group is not a text: put it in quotes: 1 \(videos\[1\]"),
        (missing_frame, r"frame is not in .*frames \(data.<split>.image_root\): 1 \(case1/one"),
        (missing_folder, r"frame is not in .*frames .*: 1 \(case3/1"),
    ],
)
def test_problem_in_the_file_is_named(frames, save, spoil, message):
    data = content()
    spoil(data)
    path = save(data)
    with pytest.raises(ValueError, match=message) as error:
        load_split(path, frames)
    assert str(path) in str(error.value)


def test_problems_are_shown_together_counted_and_capped(frames, save):
    data = content()
    data["images"] += [
        {**data["images"][0], "id": 100 + k, "frame_index": 10 + k, "file_name": f"x/{k}.jpg"}
        for k in range(30)
    ]
    unknown_category(data)
    with pytest.raises(ValueError) as error:
        load_split(save(data), frames)
    text = str(error.value)
    assert "31 problems" in text
    assert "): 30 (x/0.jpg; x/1.jpg; x/2.jpg; x/3.jpg; x/4.jpg; ... and 25 more)" in text
    assert "category_id is not under `categories`: 1 (" in text


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["benign", "malignant"], r"the file has 1 \(polyp\), the model 2 \(benign, mal"),
        (["lesion"], r"the file has 1 \(polyp\), the model 1 \(lesion\)"),
    ],
)
def test_classes_other_than_the_models_are_refused(frames, save, names, message):
    with pytest.raises(ValueError, match=message):
        load_split(save(content()), frames, class_names=names)


def test_classes_are_ordered_by_id(frames, save):
    data = content()
    data["categories"] = [{"id": 2, "name": "malignant"}, {"id": 1, "name": "benign"}]
    split = load_split(save(data), frames, class_names=["benign", "malignant"])
    assert split.report.boxes_per_class == {"benign": 3, "malignant": 0}


# ---------------------------------------------------------------- pictures


def test_truncated_picture_is_named(frames, save):
    path = frames / "case2/0.jpg"
    path.write_bytes(path.read_bytes()[:400])
    with pytest.raises(ValueError, match=r"frame cannot be used: 1 \(.*case2/0.jpg.*truncated"):
        load_split(save(content()), frames)


def test_picture_of_another_size_is_named(frames, save):
    Image.new("RGB", (50, 30)).save(frames / "case2/0.jpg")
    with pytest.raises(ValueError, match=r"case2/0.jpg: is 50 x 30 px .*says 40 x 30"):
        load_split(save(content()), frames)


def test_few_frames_are_decoded_at_the_start(frames, save, monkeypatch):
    assert load_split(save(content()), frames).report.frames_decoded == 2
    monkeypatch.setattr(coco_vid, "MAX_FRAMES_DECODED", 1)
    assert load_split(save(content()), frames).report.frames_decoded == 1


# ---------------------------------------------------------------- boxes


def with_bad_boxes() -> dict:
    data = content()
    data["annotations"] += [
        annotation(4, 11, [35, 25, 10, 10]),
        annotation(5, 11, [20, 20, -10, 5]),
        annotation(6, 13, [5, 5, 0, 8]),
        annotation(7, 12, [math.nan, 5, 3, 8]),
    ]
    return data


def test_bad_boxes_stop_the_run_by_default_and_say_what_to_do(frames, save):
    with pytest.raises(ValueError) as error:
        load_split(save(with_bad_boxes()), frames)
    text = str(error.value)
    assert "outside its frame: 1 (annotation 4 of case1/0.jpg: bbox [35, 25, 10, 10] in 40" in text
    assert "negative width or height: 1 (annotation 5" in text
    assert "no width or no height: 1 (annotation 6" in text
    assert "NaN or infinite numbers: 1 (annotation 7" in text
    assert "data.on_bad_box" in text and "--write-clipped" in text


def test_clip_mends_what_can_be_mended_and_counts_the_rest(frames, save, caplog):
    with caplog.at_level(logging.INFO, logger="v2idetr"):
        split = load_split(save(with_bad_boxes()), frames, on_bad_box="clip")
    boxes = [a["bbox"] for a in split.records[0]["annotations"]]
    assert boxes == [[1, 2, 10, 12], [35, 25, 5, 5], [10, 20, 10, 5]]
    assert (split.report.clipped, split.report.dropped) == (2, 2)
    assert split.report.frames_left_without_box == 1  # frame 13 had only the empty box
    assert (
        "bad boxes 4 (outside 1, negative 1, empty 1, not_finite 1): policy clip, 2 clipped"
        in (caplog.messages[0])
    )
    assert "1 frame lost all boxes" in caplog.messages[1]


def test_drop_leaves_bad_boxes_out_and_keeps_the_frames(frames, save):
    split = load_split(save(with_bad_boxes()), frames, on_bad_box="drop")
    assert [len(record["annotations"]) for record in split.records] == [1, 1, 0, 1]
    assert split.report.dropped == 4


# ---------------------------------------------------------------- writing


def test_written_split_is_read_back(frames, tmp_path):
    path = tmp_path / "new" / "train.json"
    write_split(path, **content())
    assert json.loads(path.read_text()) == content()
    assert load_split(path, frames).report.boxes == 3
    assert [p.name for p in path.parent.iterdir()] == ["train.json"]


def test_bad_split_is_not_written_and_the_old_file_stays(tmp_path):
    path = tmp_path / "train.json"
    write_split(path, **content())
    before = path.read_bytes()
    bad = content()
    bad["annotations"].append(annotation(4, 11, [35, 25, 10, 10]))
    double_image_id(bad)
    with pytest.raises(ValueError, match="image id is used twice"):
        write_split(path, **bad)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["train.json"]


def test_empty_split_is_not_written(tmp_path):
    empty = {**content(), "images": [], "annotations": []}
    with pytest.raises(ValueError, match="the split is empty"):
        write_split(tmp_path / "train.json", **empty)


def test_raw_split_keeps_its_bad_boxes(tmp_path):
    raw = copy.deepcopy(content())
    raw["annotations"].append(annotation(4, 11, [20, 20, -10, 5], area=-50))
    raw["info"]["box_policy"] = "raw"
    write_split(tmp_path / "raw.json", **raw)
    assert json.loads((tmp_path / "raw.json").read_text())["annotations"][-1]["area"] == -50


def test_failed_write_leaves_nothing_behind(tmp_path, monkeypatch):
    def full_disk(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OSError, match="No space left"):
        write_split(tmp_path / "train.json", **content())
    assert list(tmp_path.iterdir()) == []
