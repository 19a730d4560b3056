"""A detector for people: images and videos in, detections above a threshold and drawings out."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from tests.runtime.tiny_models import write_model
from tests.runtime.tiny_videos import SIDE, SquareFinder, pixels_of, square, write_video
from v2i_runtime import LesionDetector, load
from v2i_runtime.video_run import Outcome


def finder(**changes) -> LesionDetector:
    return LesionDetector(SquareFinder(**changes), name="finder")


def test_an_array_and_its_file_have_the_same_detections(tmp_path: Path) -> None:
    Image.fromarray(pixels_of(3)).save(tmp_path / "three.png")
    in_array, in_file = finder()(pixels_of(3)), finder()(tmp_path / "three.png")
    x, y = square(3)
    for found in (in_array, in_file):
        assert found.boxes_xyxy_px.tolist() == [[x, y, x + SIDE, y + SIDE]]
        assert found.labels == ["polyp"]
    assert in_file.frame.name == "three.png"


@pytest.mark.parametrize(("threshold", "number"), [(0.9, 1), (0.91, 0)])
def test_detections_below_the_threshold_are_left_out(threshold: float, number: int) -> None:
    detector = LesionDetector(SquareFinder(), score_threshold=threshold)
    assert len(detector(pixels_of(0))) == number


def test_the_threshold_of_the_detector_is_taken_where_none_is_given() -> None:
    assert finder(score_threshold=0.25).score_threshold == 0.25
    assert len(finder(score_threshold=0.95)(pixels_of(0))) == 0


def test_without_any_threshold_nothing_is_detected_and_the_remedy_is_named(tmp_path: Path) -> None:
    detector = finder(score_threshold=None)
    for detect in (
        detector,
        detector.frames,
        lambda f: detector.write_video(f, tmp_path / "a.mp4"),
    ):
        with pytest.raises(ValueError, match=r"finder: its score threshold is unknown.*=0\.5"):
            detect(tmp_path)
    with pytest.raises(ValueError, match=r"score_threshold=1\.5 is not in \[0, 1\]"):
        LesionDetector(SquareFinder(), score_threshold=1.5)


def test_what_is_no_image_is_named(tmp_path: Path) -> None:
    (tmp_path / "clip.mp4").write_bytes(b"")
    with pytest.raises(ValueError, match=r"clip\.mp4: is no image file.*frames\(\.\.\.\) takes"):
        finder()(tmp_path / "clip.mp4")
    with pytest.raises(ValueError, match=r"missing\.png"):
        finder()(tmp_path / "missing.png")
    with pytest.raises(ValueError, match="the image is grey"):
        finder()(np.zeros((4, 4), np.uint8))


def test_every_frame_of_a_video_is_detected_with_its_time(tmp_path: Path) -> None:
    video = write_video(tmp_path / "clip.mp4", frames=6)
    found = list(finder().frames(video))
    assert [len(each) for each in found] == [1] * 6
    times_s = [float(each.frame.time_s) for each in found]
    assert times_s == sorted(times_s) and times_s[0] < times_s[-1]


def test_frames_are_read_when_they_are_asked_for(tmp_path: Path) -> None:
    detector = SquareFinder()
    frames = LesionDetector(detector).frames(write_video(tmp_path / "clip.mp4", frames=6))
    next(frames)
    assert detector.seen == 1
    with pytest.raises(ValueError, match="no such file"):
        finder().frames(tmp_path / "missing.mp4")


def test_a_video_with_boxes_is_written_as_by_the_program(tmp_path: Path) -> None:
    video, boxes = write_video(tmp_path / "clip.mp4", frames=6), tmp_path / "boxes.mp4"
    outcome = finder().write_video(video, boxes, json=tmp_path / "a.json", every=2)
    assert isinstance(outcome, Outcome) and outcome.files == [boxes, tmp_path / "a.json"]
    written = json.loads((tmp_path / "a.json").read_text())
    assert len(written["annotations"]) == 3 and written["info"]["model"] == "finder"
    assert len(list(finder().frames(boxes))) == 6


def test_no_existing_file_is_replaced_unasked(tmp_path: Path) -> None:
    video, boxes = write_video(tmp_path / "clip.mp4", frames=2), tmp_path / "boxes.mp4"
    boxes.write_text("mine")
    with pytest.raises(ValueError, match=r"boxes\.mp4: exists; .*overwrite=True"):
        finder().write_video(video, boxes)
    assert boxes.read_text() == "mine"
    finder().write_video(video, boxes, overwrite=True)
    with pytest.raises(ValueError, match=r"must end in \.mp4"):
        finder().write_video(video, tmp_path / "boxes.avi")
    with pytest.raises(ValueError, match="is the source"):
        finder().write_video(video, video, overwrite=True)


def test_an_error_in_the_middle_of_a_video_is_raised(tmp_path: Path) -> None:
    def fail(index: int) -> None:
        if index == 3:
            raise ValueError("frame 3 is odd")

    with pytest.raises(ValueError, match="frame 3 is odd"):
        finder(before=fail).write_video(
            write_video(tmp_path / "clip.mp4", frames=6), tmp_path / "a.mp4"
        )
    assert (tmp_path / "a.mp4").exists()


def test_a_drawing_shows_the_box_and_leaves_the_frame_alone() -> None:
    pixels = pixels_of(0)
    drawn = finder()(pixels).draw()
    assert drawn.shape == pixels.shape and (drawn != pixels).any()
    assert np.array_equal(pixels, pixels_of(0))
    nothing = LesionDetector(SquareFinder(), score_threshold=1.0)(pixels)
    assert np.array_equal(nothing.draw(), pixels)


def test_a_notebook_shows_the_drawing_in_the_colours_of_the_frame() -> None:
    pixels = np.full((64, 64, 3), (200, 40, 40), np.uint8)
    jpeg = np.frombuffer(finder()(pixels)._repr_jpeg_(), np.uint8)
    red, green, blue = cv2.imdecode(jpeg, cv2.IMREAD_COLOR_RGB).mean((0, 1))
    assert red > 190 and max(green, blue) < 60


def test_the_text_of_detections_says_what_is_where_without_pixels() -> None:
    x, y = square(0)
    text = f"polyp 0.90 at ({x}, {y}, {x + SIDE}, {y + SIDE}) px"
    assert repr(finder()(pixels_of(0))) == f"1 in the frame\n  {text}"


def test_some_detections_keep_their_frame() -> None:
    found = finder()(pixels_of(0))
    assert found.above(0.95).frame is found.frame and len(found.above(0.95)) == 0


@pytest.mark.parametrize("suffix", [".onnx", ".xml"])
def test_an_exported_file_is_loaded_with_its_threshold_or_another(
    suffix: str, tmp_path: Path
) -> None:
    path = write_model(tmp_path / f"tiny{suffix}", score_threshold=0.6)
    assert repr(load(path)) == f"tiny{suffix}: polyp, ulcer; score threshold 0.600"
    assert load(path, score_threshold=0.0).score_threshold == 0.0
    assert len(load(path, score_threshold=0.0, threads=1)(pixels_of(0))) == 2


def test_what_is_no_exported_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is a folder; give the model's file in it"):
        load(tmp_path)
    with pytest.raises(ValueError, match=r"best\.pth: is no exported detector.*v2idetr\.load"):
        load(tmp_path / "best.pth")
