"""Groups of lesions by what makes them hard to see, and which of them a detector finds."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from detectron2.structures import BoxMode
from hypothesis import given
from hypothesis import strategies as st

from v2idetr.data.audit import AuditReport
from v2idetr.data.coco_vid import SplitData
from v2idetr.evaluation.frames import LabelledFrame, Video
from v2idetr.evaluation.lesion_groups import (
    Lesion,
    describe_lesions,
    found_lesions,
    group_lesions,
    read_events,
)
from v2idetr.evaluation.predictions import FramePrediction

SIZE = {"width": 100, "height": 80}


def record(number: int, *boxes: list[float], video: int = 1, scene: int = 0) -> dict[str, Any]:
    annotations = [{"bbox": b, "bbox_mode": BoxMode.XYWH_ABS, "category_id": 0} for b in boxes]
    place = {"image_id": number, "video_id": video, "scene_id": scene, "frame_index": number}
    return {"file_name": f"/frames/clip/{number}.png", **place, **SIZE, "annotations": annotations}


def split(*records: dict[str, Any]) -> SplitData:
    videos = {1: {"name": "one"}, 2: {"name": "two"}}
    path, report = Path("x.json"), AuditReport("x", "raise")
    return SplitData(path, Path("/frames"), ["polyp"], videos, list(records), report)


def grey(_record: object) -> np.ndarray:
    return np.full((80, 100, 3), 90, np.uint8)


def lesion(**changes: Any) -> Lesion:
    return replace(Lesion("one", 1, size=0.2, sharpness=1.0, glare=0.0, motion=0.1), **changes)


def test_size_and_motion_come_from_the_boxes() -> None:
    still = [10.0, 10.0, 20.0, 16.0]
    found = describe_lesions(
        split(record(1, still), record(2), record(3, still), record(4, [40.0, 40.0, 20.0, 16.0])),
        grey,
    )
    assert [one.image_id for one in found] == [1, 3, 4]
    assert found[0].size == pytest.approx((320 / 8000) ** 0.5)
    assert [one.motion for one in found] == pytest.approx([0.0, 1.0, 1.0])  # to the nearest frame


def test_motion_is_not_measured_across_a_cut_and_unknown_without_a_neighbour() -> None:
    box = [10.0, 10.0, 20.0, 16.0]
    found = describe_lesions(split(record(1, box), record(2, box, scene=1)), grey)
    assert [one.motion for one in found] == [None, None]


def test_blurred_lesions_are_less_sharp_and_burnt_out_ones_have_glare() -> None:
    rng = np.random.default_rng(0)
    sharp = rng.integers(0, 200, (80, 100, 3), dtype=np.uint8)
    soft = np.repeat(np.repeat(sharp[::8, ::8], 8, 0), 8, 1)[:80, :100]
    burnt = sharp.copy()
    burnt[10:18, 10:30] = 255
    images = {1: sharp, 2: soft, 3: burnt}
    records = [record(n, [10.0, 10.0, 20.0, 16.0]) for n in images]
    one, two, three = describe_lesions(split(*records), lambda r: images[r["image_id"]])
    assert two.sharpness < 0.5 * one.sharpness
    assert (one.glare, three.glare) == (0.0, 0.5)


def test_a_lesion_at_the_border_is_described() -> None:
    (found,) = describe_lesions(split(record(1, [95.0, 75.0, 5.0, 5.0])), grey)
    assert np.isfinite([found.size, found.sharpness, found.glare]).all()


def test_events_are_found_by_the_end_of_the_path(tmp_path: Path) -> None:
    frames = [{"file": "clip/1.png", "event": "fog"}, {"file": "clip/2.png", "event": ""}]
    path = tmp_path / "frames.json"
    path.write_text(json.dumps(frames))
    events = read_events(path)
    box = [10.0, 10.0, 20.0, 16.0]
    found = describe_lesions(split(record(1, box), record(2, box)), grey, events)
    assert [one.event for one in found] == ["fog", "clear"]
    with pytest.raises(ValueError, match=r"3\.png: is not in the list"):
        describe_lesions(split(record(3, box)), grey, events)
    for content in ('[{"name": 1}]', "{", "3"):
        path.write_text(content)
        with pytest.raises(ValueError, match=r"frames\.json: is no list of frames"):
            read_events(path)


@given(st.lists(st.floats(0.01, 1), min_size=2, max_size=60, unique=True))
def test_thirds_hold_each_lesion_once_and_are_in_order(sizes: list[float]) -> None:
    lesions = [lesion(size=size) for size in sizes]
    thirds = list(group_lesions(lesions)["size"].values())
    assert (np.sum(thirds, axis=0) == 1).all()
    groups = [np.array(sizes)[members] for members in thirds]
    assert all(len(group) for group in groups)
    for lower, higher in pairwise(groups):
        assert lower.max() < higher.min()
    assert max(map(len, groups)) - min(map(len, groups)) <= 2


def test_measures_that_tell_nothing_apart_and_empty_groups_are_left_out() -> None:
    lesions = [lesion(glare=g, motion=None) for g in (0.0, 0.0, 0.0, 0.5)]
    groups = group_lesions(lesions)
    assert set(groups) == {"all", "glare", "video"}
    assert {name: int(m.sum()) for name, m in groups["glare"].items()} == {
        "no or least glare": 3,
        "most glare": 1,
    }


def test_lesions_of_unknown_motion_are_in_none_of_its_thirds() -> None:
    lesions = [lesion(motion=m) for m in (None, 0.1, 0.2, 0.3)]
    assert sum(int(m.sum()) for m in group_lesions(lesions)["motion"].values()) == 3


def test_found_is_what_a_detection_above_the_threshold_fits() -> None:
    boxes = np.array([[10.0, 10, 30, 30], [50.0, 50, 70, 70]])
    detected = FramePrediction(
        image_id=1,
        boxes_xyxy_px=np.array([[11.0, 10, 30, 30], [50.0, 50, 70, 70]]),
        scores=np.array([0.9, 0.3]),
        classes=np.zeros(2, np.int64),
    )
    frames = [LabelledFrame(Video("test", 1, "one"), boxes, np.zeros(2, np.int64), detected)]
    assert found_lesions(frames, "iou50", 0.5).tolist() == [True, False]
    assert found_lesions(frames, "iou50", 0.3).tolist() == [True, True]
