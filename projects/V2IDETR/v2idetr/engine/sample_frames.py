"""A few validation frames with ground truth, detections and TFD's mask, drawn at every validation.

One JPEG a validation, STAGE/samples/STEP.jpg. The frames are always the same. The detections are
those of the validation itself, so nothing is computed again.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from detectron2.utils import comm
from jaxtyping import Float, UInt8
from torch import Tensor

from v2i_runtime.frame_text import FrameText
from v2i_runtime.image_files import jpeg_thumbnail
from v2idetr.atomic_file import write_atomically
from v2idetr.config.load import build
from v2idetr.config.stage_settings import value_at
from v2idetr.data.clip_mapper import ClipMapper, is_lesion_free
from v2idetr.data.reference_sampler import WindowSampler
from v2idetr.distillation.student import DistilledStudent
from v2idetr.distillation.tfd import TargetGuidedFeatureDistillation
from v2idetr.engine.run_context import RunContext
from v2idetr.engine.stage import DetectorStage, Stage, StageModels
from v2idetr.evaluation.predictions import FramePrediction

Record = dict[str, Any]
Colour = tuple[int, int, int]

FOLDER = "samples"  # in that of the stage
PANEL_WIDTH, COLUMNS, GAP = 288, 3, 4  # px, panels a row, px
HEADING_PX = 14  # font size
QUALITY = 85
MOST_BOXES = 10  # detections drawn on a frame; an untrained detector has many of one score
NO_THRESHOLD = 0.5  # without rules no threshold is chosen
TRUTH, FOUND, MASK = (255, 255, 255), (0, 229, 255), (255, 230, 0)  # RGB
DASH_PX = 6


class SampleFrames:
    """Draws always the same frames of a split.

    Args:
        stage: name of the stage, for the heading.
        folder: of the stage.
        samples: chosen frames as the detector sees them, see ``ClipMapper`` with ``is_train=True``.
        class_names: class names by index; they are shown only if there are several.
        tfd: the student's loss, whose masks are shown; or None.
        size_divisor: images are padded to multiples of this, for the size of the masks.
    """

    def __init__(
        self,
        stage: str,
        folder: Path,
        samples: Sequence[dict[str, Any]],
        *,
        class_names: Sequence[str],
        tfd: TargetGuidedFeatureDistillation | None = None,
        size_divisor: int = 32,
    ) -> None:
        self.stage, self.folder = stage, folder / FOLDER
        self.samples, self.class_names = list(samples), list(class_names)
        self.tfd, self.size_divisor = tfd, size_divisor
        self._predictions: dict[int, FramePrediction] = {}
        self._text, self._label = FrameText(HEADING_PX), FrameText(HEADING_PX - 3)

    def watch(self, predictions: Sequence[FramePrediction]) -> None:
        """Keep the detections of the chosen frames."""
        chosen = {sample["image_id"] for sample in self.samples}
        self._predictions = {p.image_id: p for p in predictions if p.image_id in chosen}

    def write(self, iteration: int, metrics: Mapping[str, float]) -> Path:
        """Draw the frames of the last validation; the file.

        Args:
            iteration: completed steps.
            metrics: of this validation; detections are shown from its threshold on.
        """
        chosen_by = sorted(m for m in metrics if m.endswith("/threshold"))[-1:]  # iou50's first
        threshold = metrics[chosen_by[0]] if chosen_by else math.nan
        threshold = threshold if math.isfinite(threshold) else NO_THRESHOLD
        image = self._image(iteration, threshold)
        path = self.folder / f"{iteration:06d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        data = jpeg_thumbnail(image, max_width=image.shape[1], quality=QUALITY)
        write_atomically(path, lambda file: file.write(data))
        return path

    def _image(self, iteration: int, threshold: float) -> UInt8[np.ndarray, "H W 3"]:
        cells = [self._cell(sample, threshold) for sample in self.samples]
        columns = min(COLUMNS, len(cells))
        rows = [cells[i : i + columns] for i in range(0, len(cells), columns)]
        heights = [max(len(cell) for cell in row) for row in rows]
        top = 2 * self._text.height_px + GAP
        width = columns * (PANEL_WIDTH + GAP) - GAP
        image = np.full((top + sum(heights) + GAP * len(rows), width, 3), 24, np.uint8)
        words = f"{self.stage}, step {iteration}"
        legend = f"dashed: ground truth; cyan: detections, score from {threshold:.2f}"
        legend += "; below: TFD's mask" if self.tfd else ""
        self._text.draw(image, words, (0, 0), opacity=0.0)
        self._text.draw(image, legend, (0, self._text.height_px), opacity=0.0)
        y = top
        for row, height in zip(rows, heights, strict=True):
            for column, cell in enumerate(row):
                x = column * (PANEL_WIDTH + GAP)
                image[y : y + len(cell), x : x + PANEL_WIDTH] = cell
            y += height + GAP
        return image

    def _cell(self, sample: dict[str, Any], threshold: float) -> UInt8[np.ndarray, "H W 3"]:
        """One frame with its boxes, and below it, in a student's, the mask."""
        image = _pixels(sample["image"])
        height, width = image.shape[:2]
        size = (PANEL_WIDTH, max(1, round(PANEL_WIDTH * height / width)))
        shrinks = width > PANEL_WIDTH
        method = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
        panel = cv2.resize(image, size, interpolation=method)
        boxes_xyxy_px = sample["instances"].gt_boxes.tensor
        truth = boxes_xyxy_px.numpy() * (size[0] / width)
        below = [] if self.tfd is None else [self._mask(panel, sample, truth)]
        for box in truth:
            _dashed(panel, box, TRUTH)
        if (prediction := self._predictions.get(sample["image_id"])) is not None:
            self._detections(panel, sample, prediction, threshold)
        return np.concatenate([panel, *below])

    def _detections(
        self,
        panel: np.ndarray,
        sample: dict[str, Any],
        prediction: FramePrediction,
        threshold: float,
    ) -> None:
        best_first = np.argsort(-prediction.scores, kind="stable")
        shown = best_first[prediction.scores[best_first] >= threshold]
        ratio = np.array([panel.shape[1] / sample["width"], panel.shape[0] / sample["height"]] * 2)
        for index in shown[:MOST_BOXES][::-1]:
            x0, y0, x1, y1 = (prediction.boxes_xyxy_px[index] * ratio).round().astype(int).tolist()
            cv2.rectangle(panel, (x0, y0), (x1, y1), FOUND, 2)
            words = f"{prediction.scores[index]:.2f}"
            if len(self.class_names) > 1:
                words = f"{self.class_names[prediction.classes[index]]} {words}"
            height = self._label.height_px
            y = y0 - height if y0 >= height else y1
            self._label.draw(panel, words, (x0, y), colour=(0, 0, 0), plate=FOUND, opacity=0.9)
        if len(shown) > MOST_BOXES:
            words = f"and {len(shown) - MOST_BOXES} more"
            self._label.draw(panel, words, (0, panel.shape[0]))

    def _mask(
        self, panel: np.ndarray, sample: dict[str, Any], truth: Float[np.ndarray, "M 4"]
    ) -> UInt8[np.ndarray, "H W 3"]:
        """The frame in grey, with the cells of the mask by their weights."""
        assert self.tfd is not None
        stride, (height, width) = self.tfd.stride, sample["image"].shape[-2:]
        divisor = self.size_divisor
        h, w = (-(-side // divisor) * divisor // stride for side in (height, width))
        mask = self.tfd.mask(sample["instances"].gt_boxes.tensor, h, w)
        share = (mask / mask.max().clamp(min=1e-12)).numpy()
        cells = share.repeat(stride, 0).repeat(stride, 1)[:height, :width]  # without padding
        size = (panel.shape[1], panel.shape[0])
        weight = cv2.resize(cells, size, interpolation=cv2.INTER_NEAREST)[..., None]
        grey = cv2.cvtColor(panel, cv2.COLOR_RGB2GRAY)[..., None].repeat(3, 2)
        painted = 0.6 * grey * (1 - 0.75 * weight) + 0.75 * weight * np.array(MASK)
        image = painted.round().astype(np.uint8)
        for box in truth:
            _dashed(image, box, TRUTH)
        if not len(truth):
            self._label.draw(image, "no lesion: mask and loss are zero", (0, 0))
        return image


def sample_frames_of(run: RunContext, stage: Stage, models: StageModels) -> SampleFrames | None:
    """The frames that a stage draws at its validations, told of every one of them.

    None on other processes than the main one, with `train.sample_frames=0`, without a validation
    split, and for stages that do not detect.
    """
    count = int(value_at(run.config, "train.sample_frames", 0))
    stage.watch = None
    if not (count and isinstance(stage, DetectorStage) and "val" in run.splits):
        return None
    if not comm.is_main_process():
        return None
    mapper = ClipMapper(
        sampler=WindowSampler(num_frames=1, window=0, sampling="fixed"),
        augmentations=build(run.config, "data.augmentations.test"),
        is_train=True,  # with boxes
    )
    trained: Any = models.trained
    losses = trained.losses.values() if isinstance(trained, DistilledStudent) else ()
    samples = SampleFrames(
        stage.name,
        run.stage_folder(stage.name),
        [mapper(record, seed=0) for record in chosen(run.splits["val"].records, count)],
        class_names=list(run.config.data.class_names),
        tfd=next((x for x in losses if isinstance(x, TargetGuidedFeatureDistillation)), None),
        size_divisor=int(getattr(models.model, "size_divisor", 1)),
    )
    stage.watch = samples.watch
    return samples


def chosen(records: Sequence[Record], count: int) -> list[Record]:
    """So many frames, evenly spaced over the split; one of them without a lesion, if there is one.

    By their places, not by their content. Frames without a lesion fill up where there are too few
    others.
    """
    lesions = [record for record in records if not is_lesion_free(record)]
    free = [record for record in records if is_lesion_free(record)]
    reserved = 1 if free and count > 1 else 0
    found = _spread(lesions, count - reserved)
    return found + _spread(free, count - len(found) if len(found) < count - reserved else reserved)


def _spread(records: Sequence[Record], count: int) -> list[Record]:
    count = min(count, len(records))
    return [records[(2 * k + 1) * len(records) // (2 * count)] for k in range(count)]


def _dashed(pixels: np.ndarray, box_xyxy_px: Float[np.ndarray, "4"], colour: Colour) -> None:
    """A rectangle of dashes with a dark line below them, on any ground."""
    x0, y0, x1, y1 = box_xyxy_px.round().astype(int).tolist()
    cv2.rectangle(pixels, (x0, y0), (x1, y1), (16, 16, 16), 3)
    for x in range(x0, x1, 2 * DASH_PX):
        for y in (y0, y1):
            cv2.line(pixels, (x, y), (min(x + DASH_PX, x1), y), colour, 1)
    for y in range(y0, y1, 2 * DASH_PX):
        for x in (x0, x1):
            cv2.line(pixels, (x, y), (x, min(y + DASH_PX, y1)), colour, 1)


def _pixels(image: Tensor) -> UInt8[np.ndarray, "H W 3"]:
    return np.ascontiguousarray(image.to(torch.uint8).permute(1, 2, 0).numpy())
