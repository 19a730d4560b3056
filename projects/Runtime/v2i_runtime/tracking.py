"""Lesions over time: detections of successive frames -> ids; boxes averaged over frames.

OverlapLinks    an id lives as long as its box overlaps with one of the next frame
ByteTrack       survives gaps; package trackers
BoxSmoother     mean box of an id over the last frames; package supervision
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Int

from v2i_runtime.detections import Detections

NO_ID = -1  # ids count from 1
LEAST_IOU = 0.3  # of boxes of one lesion in successive frames
MEMORY_S = 1.0  # of a lost lesion

Ids = Int[np.ndarray, " n"]


# (detections of the next frame, its time in s) -> id of each, `NO_ID` for those without one
Tracker = Callable[[Detections, float], Ids]


class OverlapLinks:
    """Ids by overlap with the previous frame's boxes of the same class, largest overlap first."""

    def __init__(self) -> None:
        self._sv = supervision()
        self._before, self._ids, self._next = _no_detections(), np.zeros(0, np.int64), 1

    def __call__(self, detections: Detections, time_s: float) -> Ids:
        ids = np.full(len(detections), NO_ID, np.int64)
        if len(detections) and len(self._before):
            ious = self._sv.box_iou_batch(self._before.boxes_xyxy_px, detections.boxes_xyxy_px)
            ious = ious * (self._before.classes[:, None] == detections.classes[None])
            while ious.max() >= LEAST_IOU:
                old, new = np.unravel_index(ious.argmax(), ious.shape)
                ids[new] = self._ids[old]
                ious[old], ious[:, new] = 0, 0
        for new in np.flatnonzero(ids == NO_ID):
            ids[new], self._next = self._next, self._next + 1
        self._before, self._ids = detections, ids
        return ids


class ByteTrack:
    """Ids by ByteTrack: overlap with each lesion's predicted box; confirmed in the second frame.

    Args:
        rate_hz: mean rate of the frames it sees.
        score_threshold: least score of a detection that begins a track.

    Raises:
        ValueError: package trackers is missing.
    """

    def __init__(self, rate_hz: float, score_threshold: float) -> None:
        self._sv = supervision()
        trackers = _imported("trackers", "--track", "pip install 'trackers>=2.6'")
        self._tracker = trackers.ByteTrackTracker(
            lost_track_buffer=round(30 * MEMORY_S),  # in frames at 30 Hz, whatever the rate
            frame_rate=rate_hz,
            track_activation_threshold=score_threshold,
            high_conf_det_threshold=score_threshold,
        )

    def __call__(self, detections: Detections, time_s: float) -> Ids:
        given = as_supervision(self._sv, detections)
        given.data["row"] = np.arange(len(detections))
        tracked = self._tracker.update(given, timestamp=time_s)
        ids = np.full(len(detections), NO_ID, np.int64)
        if len(tracked):
            numbers = np.asarray(tracked.tracker_id)
            ids[tracked.data["row"]] = np.where(numbers < 0, NO_ID, numbers + 1)
        return ids


class BoxSmoother:
    """Boxes averaged over an id's detections of the last frames; scores stay as they are.

    Args:
        length: number of frames.
    """

    def __init__(self, length: int) -> None:
        self._sv = supervision()
        self._smoother = self._sv.DetectionsSmoother(length=length)

    def __call__(self, detections: Detections, ids: Ids) -> Detections:
        known = np.flatnonzero(ids != NO_ID)
        given = as_supervision(self._sv, detections)[known]
        given.tracker_id = ids[known]
        smooth = self._smoother.update_with_detections(given)
        boxes = detections.boxes_xyxy_px.copy()
        if len(smooth):
            row_of = {int(ids[row]): row for row in known}
            boxes[[row_of[int(number)] for number in smooth.tracker_id]] = smooth.xyxy
        return Detections(detections.scores, detections.classes, boxes)


def supervision() -> Any:
    """The package supervision.

    Raises:
        ValueError: it is missing.
    """
    return _imported(
        "supervision", "--output, --track and --smooth", "pip install 'v2i-runtime[video]'"
    )


def as_supervision(sv: Any, detections: Detections) -> Any:
    """Detections as those of the package supervision, in the same order."""
    return sv.Detections(
        xyxy=detections.boxes_xyxy_px.reshape(-1, 4).astype(np.float64),
        confidence=detections.scores,
        class_id=detections.classes.astype(int),
    )


def _imported(name: str, options: str, remedy: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ValueError(
            f"{options}: the package {name} cannot be imported ({error}); install it ({remedy}), "
            "or leave these options out"
        ) from error


def _no_detections() -> Detections:
    return Detections(np.zeros(0, np.float32), np.zeros(0, np.int64), np.zeros((0, 4), np.float32))
