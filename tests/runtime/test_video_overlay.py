"""Boxes, labels and trails on frames."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest

from v2i_runtime.detections import Detections
from v2i_runtime.overlay import COLOURS, Overlay
from v2i_runtime.predictor import FramePrediction
from v2i_runtime.sources import SourceFrame
from v2i_runtime.tracking import NO_ID, OverlapLinks

pytest.importorskip("supervision", reason="draws the boxes")

SIZE = 320, 240


def prediction(
    *boxes: tuple[float, ...],
    time_s: float = 0.0,
    ids: list[int] | None = None,
    detected: bool = True,
    size: tuple[int, int] = SIZE,
) -> FramePrediction:
    pixels = np.full((size[1], size[0], 3), (120, 40, 40), np.uint8)
    frame = SourceFrame(pixels, Fraction(time_s), "frame")
    number = len(boxes)
    found = Detections(
        np.linspace(0.9, 0.5, number).astype(np.float32),
        np.zeros(number, np.int64),
        np.asarray(boxes, np.float32).reshape(-1, 4),
    )
    given = np.asarray(ids if ids is not None else range(1, number + 1), np.int64)
    return FramePrediction(0, frame, found, given, detected)


def changed(pixels: np.ndarray) -> np.ndarray:
    return (pixels != (120, 40, 40)).any(-1)


def is_colour(pixels: np.ndarray, colour: tuple[int, int, int]) -> np.ndarray:
    return (np.abs(pixels.astype(int) - colour) < 40).all(-1)


def test_a_frame_without_detections_stays_as_it_is() -> None:
    given = prediction()
    assert not changed(Overlay(SIZE, ["polyp"]).draw(given, None)).any()


def test_the_frame_given_is_not_painted_on() -> None:
    given = prediction((50, 60, 150, 160))
    Overlay(SIZE, ["polyp"]).draw(given, 30.0)
    assert not changed(given.frame.pixels).any()


def test_a_box_is_drawn_in_the_rgb_of_its_class() -> None:
    pixels = Overlay(SIZE, ["polyp"]).draw(prediction((50, 60, 150, 160)), None)
    assert is_colour(pixels[60, 60:140], COLOURS[0]).all()
    assert not changed(pixels[70:150, 60:140]).any()


def test_a_box_held_from_an_earlier_frame_is_drawn_as_corners() -> None:
    pixels = Overlay(SIZE, ["polyp"]).draw(prediction((50, 60, 150, 160), detected=False), None)
    assert is_colour(pixels[160, 50:55], COLOURS[0]).all()
    assert not changed(pixels[158:163, 70:130]).any()


def test_the_trail_is_the_path_of_the_last_second_and_no_more() -> None:
    overlay = Overlay(SIZE, ["polyp"])
    for step in range(11):
        x = 20 * step
        box = (x, 100, x + 60, 160)
        pixels = overlay.draw(prediction(box, time_s=step / 5), None)
    last_s = range(5, 10)  # steps; the box is at step 10
    for step in range(4):
        assert not changed(pixels[125:136, 20 * step + 30 : 20 * step + 40]).any()
    for step in last_s:
        assert is_colour(pixels[130, 20 * step + 35 : 20 * step + 45], COLOURS[0]).any()


def test_each_lesion_has_a_trail_of_its_own_and_lesions_without_id_have_none() -> None:
    overlay = Overlay(SIZE, ["polyp"])
    for step in range(3):
        boxes = (10, 20 * step, 50, 20 * step + 40), (200, 20 * step, 240, 20 * step + 40)
        pixels = overlay.draw(prediction(*boxes, time_s=step / 25, ids=[1, NO_ID]), None)
    assert changed(pixels[45:56, 25:36]).any()
    assert not changed(pixels[45:56, 215:226]).any()


@pytest.mark.parametrize("size", [(854, 480), (384, 288), (128, 96), (17, 9)])
def test_every_size_of_frame_takes_boxes_at_its_borders(size: tuple[int, int]) -> None:
    width, height = size
    boxes = (0, 0, width, height), (0, 0, 3, 3), (width - 2, height - 2, width, height)
    overlay = Overlay(size, ["adenoma", "Läsion, 息肉"], show_ids=True, show_time=True)
    for detected in (True, False):
        pixels = overlay.draw(prediction(*boxes, size=size, detected=detected), 30.0)
        assert pixels.shape == (height, width, 3) and changed(pixels).any()


def test_lines_and_text_grow_with_the_frame() -> None:
    parts = []
    for width, height in ((384, 288), (1536, 1152)):
        box = (width / 4, height / 4, width / 2, height / 2)
        pixels = Overlay((width, height), ["polyp"]).draw(
            prediction(box, size=(width, height)), None
        )
        parts.append(changed(pixels).mean())
    assert parts[1] == pytest.approx(parts[0], rel=0.5)


def test_the_class_is_shown_only_where_there_are_several() -> None:
    one, two = (
        changed(Overlay(SIZE, names).draw(prediction((50, 60, 150, 160)), None)).sum()
        for names in (["polyp"], ["polyp", "ulcer"])
    )
    assert two > one


def links(*frames: list[tuple[float, ...]]) -> list[list[int]]:
    link = OverlapLinks()
    return [link(prediction(*boxes).detections, 0.0).tolist() for boxes in frames]


def test_overlapping_boxes_of_successive_frames_are_one_lesion() -> None:
    left, right = (0, 0, 20, 20), (100, 0, 120, 20)
    assert links([left, right], [(102, 0, 122, 20), (3, 0, 23, 20)]) == [[1, 2], [2, 1]]


def test_a_box_elsewhere_or_after_a_gap_is_a_new_lesion() -> None:
    assert links([(0, 0, 20, 20)], [(50, 0, 70, 20)], [], [(50, 0, 70, 20)]) == [[1], [2], [], [3]]
