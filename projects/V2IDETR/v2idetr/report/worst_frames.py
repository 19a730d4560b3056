"""The worst frames of a detector, beside what other detectors make of them.

Missed lesions: those that no detection of any score finds come first, then those with the lowest
score, of equal ones the larger. False alarms: the highest score first. Further frames of a video
come after the first of all others, so that one bad scene does not fill the page.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from v2i_runtime.image_files import ImageFileError
from v2idetr.data.frame_files import path_below, read_frame
from v2idetr.evaluation.frames import LabelledFrame, Video
from v2idetr.evaluation.lesion_metrics import get_rule
from v2idetr.evaluation.pool import Pool
from v2idetr.report.frame_images import PANEL_WIDTH, Album, Box, StoredFrame
from v2idetr.report.heldout import judge_frame

MOST_BOXES = 20  # drawn of a detector on a frame, by score


@dataclass(frozen=True)
class Panel:
    """Boxes of one detector; ``detector`` is its position on the page."""

    detector: int
    boxes: list[Box]
    right: bool
    words: str


@dataclass(frozen=True)
class FrameRow:
    """A frame with the boxes of each detector; ``fault`` says why its image is not shown."""

    image: StoredFrame
    caption: str
    panels: list[Panel]
    fault: str


@dataclass(frozen=True)
class Group:
    """Frames that are bad in one way."""

    title: str
    count: int
    rows: list[FrameRow]


def worst_frames(
    pool: Pool,
    frames: Mapping[str, Sequence[LabelledFrame]],
    rule: str,
    thresholds: Mapping[str, float],
    album: Album,
    most: int,
) -> list[Group]:
    """Groups of the worst frames of the first detector, at most ``most`` of each.

    Args:
        pool: the ground truth.
        frames: all frames of the pool with predictions, by detector.
        rule, thresholds: what counts as found, and the threshold of each detector.
        album: receives the images.
    """
    first = next(iter(frames))
    missed, false = _ranked(pool, frames[first], rule, thresholds[first])
    groups = []
    for title, order in (("Missed lesions", missed), ("False alarms", false)):
        if order:
            chosen = _spread(order, frames[first])[:most]
            rows = [_row(index, pool, frames, rule, thresholds, album) for index in chosen]
            groups.append(Group(title, len(order), rows))
    return groups


def _ranked(
    pool: Pool, frames: Sequence[LabelledFrame], rule: str, threshold: float
) -> tuple[list[int], list[int]]:
    """Indexes of frames with a missed lesion, and with a false alarm, the worst first."""
    missed: list[tuple[float, float, int]] = []
    false: list[tuple[float, int]] = []
    for index, frame in enumerate(frames):
        hits, wrong = get_rule(rule)(frame)
        if (hits >= threshold).sum() < len(frame.lesions_xyxy_px):
            record = pool.records[index]
            sides = frame.lesions_xyxy_px[:, 2:] - frame.lesions_xyxy_px[:, :2]
            share = float(sides.prod(axis=1).max()) / (record["width"] * record["height"])
            below = float(hits[hits < threshold].max(initial=0.0))
            missed.append((below, -share, index))
        if wrong.max(initial=-1.0) >= threshold:
            false.append((-float(wrong.max()), index))
    return [index for *_, index in sorted(missed)], [index for _, index in sorted(false)]


def _spread(order: Sequence[int], frames: Sequence[LabelledFrame]) -> list[int]:
    """The first frame of every video, then the second ones, and so on; else in their order."""
    seen: dict[Video, int] = {}
    turns = []
    for index in order:
        turn = seen[frames[index].video] = seen.get(frames[index].video, 0) + 1
        turns.append(turn)
    return [index for _, index in sorted(zip(turns, order, strict=True), key=lambda pair: pair[0])]


def _row(
    index: int,
    pool: Pool,
    frames: Mapping[str, Sequence[LabelledFrame]],
    rule: str,
    thresholds: Mapping[str, float],
    album: Album,
) -> FrameRow:
    record = pool.records[index]
    image, fault = _image(record, pool, pool.splits[index], album)
    panels = []
    for position, (name, rows) in enumerate(frames.items()):
        frame = rows[index]
        outcome = judge_frame(frame, rule, thresholds[name])
        best = np.argsort(-outcome.scores, kind="stable")[:MOST_BOXES]
        truth = [image.box("truth", corners) for corners in frame.lesions_xyxy_px]
        labels = [f"{score:.2f}" for score in outcome.scores[best]]
        found = image.boxes(f"d{position}", outcome.boxes_xyxy_px[best], labels)
        panels.append(Panel(position, truth + found, outcome.right, outcome.words))
    video = frames[next(iter(frames))][index].video
    where = [video.split, video.name, f"frame {record['frame_index']}"]
    where.append(os.path.basename(record["file_name"]))
    return FrameRow(image, ", ".join(where), panels, fault)


def _image(
    record: Mapping[str, Any], pool: Pool, split: str, album: Album
) -> tuple[StoredFrame, str]:
    """The frame's image in the album, or an empty panel of its shape and the reason."""
    try:
        path = path_below(pool.truths[split].split.image_root, record["file_name"])
        pixels = read_frame(path, height=record["height"], width=record["width"])
        return album.add(pixels), ""
    except ImageFileError as error:
        fault = str(error)
    scale = PANEL_WIDTH / record["width"]
    return StoredFrame("", round(record["height"] * scale, 2), scale), fault
