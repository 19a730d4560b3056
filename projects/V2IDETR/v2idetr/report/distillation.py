"""Illustrations of the distillation: TFD's masks and a clip of the teacher."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from v2idetr.config.load import build
from v2idetr.config.stage_settings import value_at
from v2idetr.data.clip_mapper import ClipMapper, is_lesion_free
from v2idetr.data.coco_vid import SplitData
from v2idetr.data.reference_sampler import ReferenceSampler, WindowSampler
from v2idetr.distillation.tfd import TargetGuidedFeatureDistillation
from v2idetr.report.frame_images import Album, Box, StoredFrame
from v2idetr.report.heldout import HeldOutFrame, read
from v2idetr.runs.reading import RunFiles

Record = dict[str, Any]

COUNTED_FROM = 0.05  # smallest weight of a counted cell, as a share of the largest weight


@dataclass(frozen=True)
class Cell:
    """One cell of a mask in panel units; ``share`` is its weight over the largest one."""

    x: float
    y: float
    size: float
    share: float
    weight: float


@dataclass(frozen=True)
class MaskPanel:
    """A training frame at the network's input size, with its mask."""

    image: StoredFrame
    boxes: list[Box]
    cells: list[Cell]
    caption: str


@dataclass(frozen=True)
class Masks:
    """TFD's masks of some frames; ``stride`` in pixels of the network's input."""

    stride: int
    columns: int
    rows: int
    panels: list[MaskPanel]


@dataclass(frozen=True)
class ClipFrame:
    """One of the T frames of a clip."""

    image: StoredFrame
    boxes: list[Box]
    caption: str
    current: bool


@dataclass(frozen=True)
class Clip:
    """The T frames from which the teacher detects in one of them."""

    frames: list[ClipFrame]
    words: str


def masks(run: RunFiles, train: SplitData, album: Album) -> Masks | None:
    """Masks of training frames with a small, a medium and a large lesion, and of one without.

    Returns None if the config has no TFD.
    """
    if not (run.settings.get("distillation") or {}).get("tfd"):
        return None
    tfd = build(run.config, "distillation.tfd")
    if not isinstance(tfd, TargetGuidedFeatureDistillation):
        return None
    mapper = _mapper(run, _window_sampler(run, num_frames=1), is_train=True)
    divisor, stride = int(value_at(run.settings, "model.size_divisor", 32)), tfd.stride
    panels, rows, columns = [], 0, 0
    for caption, record in _lesions_by_size(train):
        sample = mapper(record, seed=0)
        height, width = sample["image"].shape[-2:]
        rows, columns = (-(-side // divisor) * divisor // stride for side in (height, width))
        boxes_xyxy_px = sample["instances"].gt_boxes.tensor
        mask = tfd.mask(boxes_xyxy_px, rows, columns)
        image = album.add(_pixels(sample["image"]))
        boxes = image.boxes("truth", boxes_xyxy_px.numpy(), [""] * len(boxes_xyxy_px))
        counted = int((mask > COUNTED_FROM * mask.max()).sum())
        caption += f"; cells with weight: {counted} of {mask.numel()}" if counted else ""
        panels.append(MaskPanel(image, boxes, _cells(mask, stride * image.scale), caption))
    return Masks(stride, columns, rows, panels)


def clip(run: RunFiles, frames: Sequence[HeldOutFrame], album: Album) -> Clip | None:
    """The teacher's clip of one held-out frame, if possible one where only the teacher is right.

    Returns None if the config has no teacher or there are no held-out frames.
    """
    if "teacher" not in run.settings or not frames:
        return None
    data = run.settings["data"]
    frame = _instructive(frames, data["window"])
    split = read(data, data["test"][frame.video.split])
    video = [r for r in split.records if r["video_id"] == frame.record["video_id"]]
    model = run.settings["teacher"]["model"]
    samplers = ("evaluation_sampler", "reference_sampler")
    if name := next((name for name in samplers if model.get(name)), ""):
        sampler = build(run.config, f"teacher.model.{name}")
    else:
        sampler = _window_sampler(run, int(model.get("num_frames", data["num_frames"])))
    sample = _mapper(run, sampler)(dict(frame.record), seed=0, video=video)
    lesions = {record["image_id"]: record["annotations"] for record in video}
    shown = []
    for index, seen in enumerate(sample["clip"]):
        image = album.add(_pixels(seen["image"]))
        offset = seen["frame_index"] - frame.record["frame_index"]
        current = index == sample["clip_index"]
        boxes = _scaled(image, seen, lesions[seen["image_id"]])
        if current and "teacher" in frame.outcomes:
            outcome = frame.outcomes["teacher"]
            corners = outcome.boxes_xyxy_px * _ratio(seen)
            boxes += image.boxes("teacher", corners, [f"{s:.2f}" for s in outcome.scores])
        caption = "the frame itself" if current else _offset(offset)
        shown.append(ClipFrame(image, boxes, caption, current))
    words = "; ".join(
        f"{run.stages[stage].title}: {outcome.words}" for stage, outcome in frame.outcomes.items()
    )
    return Clip(shown, words)


def _window_sampler(run: RunFiles, num_frames: int) -> WindowSampler:
    data = run.settings["data"]
    return WindowSampler(
        num_frames=num_frames, window=data["window"], sampling="fixed", side=data["side"]
    )


def _mapper(run: RunFiles, sampler: ReferenceSampler, *, is_train: bool = False) -> ClipMapper:
    """The mapper of evaluation, without random sampling."""
    return ClipMapper(
        sampler=sampler,
        augmentations=build(run.config, "data.augmentations.test"),
        is_train=is_train,
    )


def _lesions_by_size(train: SplitData) -> list[tuple[str, Record]]:
    """Captions and records: lesions at the 10th, 50th and 90th percentile of area, and none."""
    lesions = [record for record in train.records if not is_lesion_free(record)]
    lesions.sort(key=lambda record: (_covered(record), record["image_id"]))
    places = {"small": 0.1, "medium": 0.5, "large": 0.9}
    chosen = [
        (f"{name} lesion, {100 * _covered(record):.1f} % of the image", record)
        for name, place in places.items()
        for record in lesions[int(place * len(lesions)) :][:1]
    ]
    without = [record for record in train.records if is_lesion_free(record)]
    middle = without[len(without) // 2 :][:1]
    return chosen + [("no lesion: mask and loss are zero", record) for record in middle]


def _covered(record: Mapping[str, Any]) -> float:
    """Share of the image in boxes."""
    area = sum(a["bbox"][2] * a["bbox"][3] for a in record["annotations"])
    return area / (record["width"] * record["height"])


def _cells(mask: Tensor, size: float) -> list[Cell]:
    largest = float(mask.max()) or 1.0
    return [
        Cell(round(x * size, 2), round(y * size, 2), round(size, 2), round(w / largest, 3), w)
        for y, row in enumerate(mask.tolist())
        for x, w in enumerate(row)
    ]


def _instructive(frames: Sequence[HeldOutFrame], window: int) -> HeldOutFrame:
    """If possible, a frame with a lesion and neighbours, detected by the teacher alone."""
    with_lesion = [frame for frame in frames if len(frame.lesions_xyxy_px)] or list(frames)
    last: dict[Any, int] = {}
    for frame in frames:
        last[frame.video] = max(last.get(frame.video, 0), frame.record["frame_index"])
    inside = [
        frame
        for frame in with_lesion
        if window <= frame.record["frame_index"] <= last[frame.video] - window
    ] or with_lesion
    better = [f for f in inside if f.right.get("teacher") and not f.right.get("plain", True)]
    right = [f for f in inside if f.right.get("teacher")]
    candidates = better or right or inside
    return candidates[len(candidates) // 2]


def _scaled(
    image: StoredFrame, seen: Mapping[str, Any], annotations: Sequence[Mapping[str, Any]]
) -> list[Box]:
    """Ground truth in pixels of the original image -> boxes over the network's input."""
    boxes = np.array([a["bbox"] for a in annotations], dtype=float).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    return image.boxes("truth", boxes * _ratio(seen), [""] * len(boxes))


def _ratio(seen: Mapping[str, Any]) -> Float[np.ndarray, "4"]:
    """Size of the network's input over that of the original image, for x, y, x, y."""
    height, width = seen["image"].shape[-2:]
    return np.array([width / seen["width"], height / seen["height"]] * 2)


def _offset(frames: int) -> str:
    if frames == 0:
        return "the same frame, repeated at the end of the scene"
    count = f"{abs(frames)} frame{'s' if abs(frames) > 1 else ''}"
    return f"{count} {'later' if frames > 0 else 'earlier'}"


def _pixels(image: Tensor) -> UInt8[np.ndarray, "H W 3"]:
    return np.ascontiguousarray(image.to(torch.uint8).permute(1, 2, 0).numpy())
