"""Ground truth for the evaluation of any detector: plain COCO, frame rates, lesion ids."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from v2idetr.data.ground_truth import GroundTruth, read_ground_truth

BOX = {"bbox": [1, 2, 10, 10], "iscrowd": 0}


def image(number: int, file_name: str, **more: Any) -> dict[str, Any]:
    return {"id": number, "file_name": file_name, "width": 64, "height": 48, **more}


def plain_coco(*file_names: str, **more: Any) -> dict[str, Any]:
    """A COCO file without videos, with a box on its first image."""
    return {
        "images": [image(n, name) for n, name in enumerate(file_names, start=1)],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1, **BOX}],
        "categories": [{"id": 1, "name": "polyp"}],
        **more,
    }


def read(folder: Path, content: Any, **settings: Any) -> GroundTruth:
    (folder / "gt.json").write_text(json.dumps(content))
    return read_ground_truth(folder / "gt.json", **settings)


def frames_by_video(truth: GroundTruth) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}
    for record in truth.split.records:
        name = truth.split.videos[record["video_id"]]["name"]
        found.setdefault(name, []).append(record["frame_index"])
    return found


def test_folders_of_a_plain_coco_file_are_videos(tmp_path: Path) -> None:
    truth = read(tmp_path, plain_coco("b/000007.png", "a/000002.png", "b/000003.png"))
    assert frames_by_video(truth) == {"b": [3, 7], "a": [2]}
    assert "2 videos, the folders of file_name" in truth.notes[0]


def test_images_without_folders_are_videos_of_one_frame(tmp_path: Path) -> None:
    truth = read(tmp_path, plain_coco("polyp1.png", "polyp2.png"))
    assert frames_by_video(truth) == {"polyp1.png": [1], "polyp2.png": [2]}
    assert "single images" in truth.notes[0]


def test_a_pattern_finds_the_video_in_the_file_name(tmp_path: Path) -> None:
    names = ("001-001_10.jpg", "001-001_9.jpg", "001-002_4.jpg")
    truth = read(tmp_path, plain_coco(*names), video_pattern=r"^(\d+-\d+)_")
    assert frames_by_video(truth) == {"001-001": [9, 10], "001-002": [4]}
    with pytest.raises(ValueError, match=r"--video-pattern 'x\+': finds nothing in '001-001_10"):
        read(tmp_path, plain_coco(*names), video_pattern="x+")
    with pytest.raises(ValueError, match=r"--video-pattern '\(': is no regular expression"):
        read(tmp_path, plain_coco(*names), video_pattern="(")


def test_frames_without_own_numbers_keep_the_order_of_the_file(tmp_path: Path) -> None:
    truth = read(tmp_path, plain_coco("a/left1.png", "a/right1.png", "b/x.png"))
    assert frames_by_video(truth) == {"a": [0, 1], "b": [0]}


def test_category_ids_of_a_plain_file_need_not_count_from_one(tmp_path: Path) -> None:
    content = plain_coco("a.png")
    content["categories"] = [{"id": 40, "name": "b"}, {"id": 0, "name": "a"}]
    content["annotations"][0]["category_id"] = 40
    truth = read(tmp_path, content)
    assert (truth.category_ids, truth.split.class_names) == ([0, 40], ["a", "b"])
    assert truth.split.records[0]["annotations"][0]["category_id"] == 1


@pytest.mark.parametrize("unknown", [1, 2, 7])
def test_a_category_id_that_the_file_lacks_is_named_as_it_stands_there(
    tmp_path: Path, unknown: int
) -> None:
    content = plain_coco("a.png", categories=[{"id": 3, "name": "a"}, {"id": 5, "name": "b"}])
    content["annotations"][0]["category_id"] = unknown
    with pytest.raises(ValueError, match=rf"not under `categories`.*annotation 1 has {unknown}, "):
        read(tmp_path, content)


def test_a_category_id_that_is_true_is_no_class(tmp_path: Path) -> None:
    content = plain_coco("a.png")
    content["annotations"][0]["category_id"] = True
    with pytest.raises(ValueError, match="category_id is not an integer"):
        read(tmp_path, content)


@pytest.mark.parametrize("key", ["unique_id", "instance_id", "track_id"])
def test_lesions_keep_the_names_of_the_file(tmp_path: Path, key: str) -> None:
    content = plain_coco("a.png", "b.png")
    content["annotations"] = [
        {"id": n, "image_id": n, "category_id": 1, **BOX, key: f"001-001_{n}"} for n in (1, 2)
    ]
    truth = read(tmp_path, content)
    assert sorted(truth.lesion_names.values()) == ["001-001_1", "001-001_2"]
    ids = [r["annotations"][0]["instance_id"] for r in truth.split.records]
    assert len(set(ids)) == 2


def test_a_lesion_id_that_is_no_id_is_named(tmp_path: Path) -> None:
    content = plain_coco("a.png")
    content["annotations"][0]["unique_id"] = [1]
    with pytest.raises(ValueError, match=r"annotation 1 has unique_id \[1\]"):
        read(tmp_path, content)


def vid(*, indexes: tuple[int, ...] = (0, 1, 2), **video: Any) -> dict[str, Any]:
    """A COCO-VID file of one video."""
    images = [image(n + 1, f"{n}.png", video_id=1, frame_index=i) for n, i in enumerate(indexes)]
    return {
        "videos": [{"id": 1, "name": "clip", **video}],
        "images": images,
        "annotations": [],
        "categories": [{"id": 1, "name": "polyp"}],
    }


@pytest.mark.parametrize(
    ("content", "given", "want"),
    [
        (vid(fps=25), None, 25.0),
        ({**vid(), "info": {"fps": 25}}, None, 25.0),
        ({**vid(), "frame_rate": 25.0}, None, 25.0),
        ({**vid(fps=25), "info": {"fps": 30}}, None, 25.0),  # the video's own
        (vid(fps=25), 50.0, 50.0),
        (vid(), None, None),
    ],
)
def test_the_frame_rate_is_the_users_the_videos_or_the_files(
    tmp_path: Path, content: Any, given: float | None, want: float | None
) -> None:
    truth = read(tmp_path, content, fps=given)
    assert truth.frame_rates_hz == {1: want}
    assert truth.minutes() == {1: None if want is None else pytest.approx(3 / want / 60)}


def test_a_video_labelled_on_every_fifth_frame_is_as_long_as_one_labelled_on_all(
    tmp_path: Path,
) -> None:
    sparse = read(tmp_path, vid(fps=25, indexes=(0, 5, 10))).minutes()
    dense = read(tmp_path, vid(fps=25, indexes=tuple(range(15)))).minutes()
    assert sparse[1] == pytest.approx(dense[1])


@pytest.mark.parametrize("fps", [0, -1, "fast", True, 1e6, float("nan")])
def test_an_impossible_frame_rate_is_named(tmp_path: Path, fps: object) -> None:
    with pytest.raises(ValueError, match=r"gt.json: video 1: fps is .*--fps"):
        read(tmp_path, vid(fps=fps))
    content = {**vid(fps=fps), "info": {"fps": fps}}
    assert read(tmp_path, content, fps=30.0).frame_rates_hz == {1: 30.0}  # as the message says


def test_frames_need_not_exist(tmp_path: Path) -> None:
    assert read(tmp_path, {**vid(), "info": {"image_root_hint": "/nowhere"}}).split.records


def test_bad_boxes_are_an_error_that_names_the_option(tmp_path: Path) -> None:
    content = plain_coco("a.png")
    content["annotations"][0]["bbox"] = [60, 2, 10, 10]
    with pytest.raises(ValueError, match="--on-bad-box clip or drop"):
        read(tmp_path, content)
    assert "1 clipped" in read(tmp_path, content, on_bad_box="clip").notes[-1]


def test_a_json_that_is_nested_without_end_is_refused(tmp_path: Path) -> None:
    (tmp_path / "gt.json").write_text("[" * 200_000)
    with pytest.raises(ValueError, match=r"gt\.json"):
        read_ground_truth(tmp_path / "gt.json")
