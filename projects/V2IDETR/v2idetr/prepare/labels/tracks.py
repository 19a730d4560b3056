"""Keyframes of a track -> its box on every frame.

Between two keyframes the four sides of the box move evenly, as CVAT and Label Studio show them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise


@dataclass(frozen=True)
class Keyframe:
    """A box of a track that a file lists.

    Attributes:
        frame: number of the frame.
        xywh: box.
        visible: whether the lesion is seen on this frame.
        goes_on: whether it is seen until the next keyframe, or the end.
    """

    frame: int
    xywh: list[float]
    visible: bool = True
    goes_on: bool = True


def boxes_of_track(
    keyframes: Sequence[Keyframe], *, last: int | None, step: int = 1
) -> tuple[dict[int, list[float]], int]:
    """Boxes by frame, and the number of boxes behind the last keyframe.

    A track that is seen at its last keyframe stays there until the end, as in the tool; but if all
    its frames are listed one by one, the file says where it ends.

    Args:
        keyframes: at least one, frames in ascending order, each once.
        last: last frame of the video, or of its labelled part; None if unknown, so that the track
            ends at its last keyframe.
        step: distance of labelled frames; none between them gets a box.
    """
    boxes: dict[int, list[float]] = {}
    for before, after in pairwise(keyframes):
        if before.visible:
            boxes[before.frame] = before.xywh
        if before.goes_on:
            for frame in range(before.frame + step, after.frame, step):
                share = (frame - before.frame) / (after.frame - before.frame)
                boxes[frame] = between(before.xywh, after.xywh, share)
    end = keyframes[-1]
    if end.visible:
        boxes[end.frame] = end.xywh
    gaps = {b.frame - a.frame for a, b in pairwise(keyframes)}
    held: range = range(0)
    if end.goes_on and last is not None and gaps != {step}:
        held = range(end.frame + step, last + 1, step)
        boxes |= dict.fromkeys(held, end.xywh)
    return boxes, len(held)


def between(one: Sequence[float], other: Sequence[float], share: float) -> list[float]:
    """The box at a share of the way from one box to another."""
    return [a + (b - a) * share for a, b in zip(one, other, strict=True)]
