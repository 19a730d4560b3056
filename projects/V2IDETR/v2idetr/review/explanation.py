"""What a detector looks at on one frame, computed from its checkpoint when it is asked for.

    mask      TFD's soft mask M of the frame's lesions (equation 3), with the run's settings
    points    reads of the decoder's last layer for the query of the best detection: sampling points
              of deformable attention, or the attention map of DETR and SAM-DETR

For the page: ``{"words": text}``, with ``"cells"`` {columns, rows, width, height, weights} or
``"points"`` rows [x, y, weight], and ``"box"`` [x0, y0, x1, y1]; places in [0, 1] of the frame,
weights over the largest one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from threading import Lock
from typing import Any, cast

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from torchvision.ops import box_convert

from v2idetr.config.load import build
from v2idetr.config.preprocess import preprocess_of
from v2idetr.data.clip_mapper import ClipMapper
from v2idetr.deploy.loading import CHECKPOINT_SUFFIXES
from v2idetr.deploy.student import detector_of_config, load_student
from v2idetr.distillation.tfd import TargetGuidedFeatureDistillation
from v2idetr.engine.run_context import RunContext
from v2idetr.engine.signals import StopSignals
from v2idetr.engine.stage import DetectorStage
from v2idetr.engine.stage_graph import resolve_stages
from v2idetr.modeling.detection_transformer import DetectionTransformer
from v2idetr.modeling.interface import Images
from v2idetr.modeling.meta_arch import Detector
from v2idetr.modeling.sam_detr.decoder import MatchingAttention
from v2idetr.modeling.token_attention import GlobalAttention, LocalAttention
from v2idetr.runs.checkpoint import load_detector
from v2idetr.runs.reading import RunFiles, StageFiles
from v2idetr.runs.stage_folder import BEST

Record = Mapping[str, Any]
Explanation = dict[str, Any]

LIGHTEST = 0.01  # share of the largest weight below which a point is left out
POINTS = "Sampling points of the decoder's last layer for the best detection (score {:.2f}): {}"
MAP = "Cross-attention of the decoder's last layer for the best detection (score {:.2f}): {}"


class Explainer:
    """Explanations of one stage of a run.

    Args:
        run: the run.
        stage: its stage.
    """

    def __init__(self, run: RunFiles, stage: StageFiles) -> None:
        self._run, self._stage = run, stage
        self._lock = Lock()
        self._loaded: tuple[Any, Any] | None = None

    def mask(self, record: Record) -> Explanation:
        """TFD's mask of a frame; ``record`` as in ``coco_vid.SplitData``."""
        if not (self._run.settings.get("distillation") or {}).get("tfd"):
            return {"words": "This run has no TFD: distillation.tfd is not in its config."}
        tfd = build(self._run.config, "distillation.tfd")
        if not isinstance(tfd, TargetGuidedFeatureDistillation):
            return {"words": f"distillation.tfd is a {type(tfd).__name__}, which has no such mask."}
        preprocess = preprocess_of(self._run.settings)
        height, width = preprocess.resized_size(record["height"], record["width"])
        boxes = np.array([a["bbox"] for a in record["annotations"]], float).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        boxes *= np.array([width / record["width"], height / record["height"]] * 2)
        divisor = preprocess.size_divisor
        rows, columns = (-(-s // divisor) * divisor // tfd.stride for s in (height, width))
        mask = tfd.mask(torch.from_numpy(boxes).float(), rows, columns)
        counted = int((mask > 0.05 * mask.max()).sum()) if len(boxes) else 0
        words = (
            f"TFD's mask at stride {tfd.stride}: {columns} x {rows} cells, {counted} of them with "
            "at least 5 % of the largest weight. In training, features are compared there."
        )
        if not len(boxes):
            words = "No lesion: TFD's mask and its loss are zero on this frame."
        return {"words": words, "cells": _cells(mask, tfd.stride / width, tfd.stride / height)}

    def points(self, record: Record, video: Sequence[Record]) -> Explanation:
        """What the detector reads for its best detection; ``video``: records around the frame."""
        with self._lock:
            loaded = self._load()
            if isinstance(loaded, str):
                return {"words": loaded}
            detector, mapper = loaded
            sample = mapper(dict(record), seed=0, video=[dict(r) for r in video])
            with torch.inference_mode():
                images = detector.images(detector.frames([sample]))
                return explain(detector, images, detector.current([sample]))

    def _load(self) -> tuple[Any, Any] | str:
        """(detector, mapper of its clips), kept; or why there are none."""
        if self._loaded is not None:
            return self._loaded
        name = Path(str((self._stage.evaluation or {}).get("checkpoint") or BEST)).name
        weights, config_file = self._stage.folder / name, self._stage.folder / "config.yaml"
        for path in (weights, config_file):
            if not path.is_file():
                return (
                    f"{path.name} is not in the folder of this stage, so nothing can be computed."
                )
        stage = resolve_stages(self._run.config)[self._stage.name]
        if not isinstance(stage, DetectorStage):
            return f"{type(stage).__name__} is no stage of a detector."
        _, _, detector = detector_of_config(config_file, [], self._stage.name)
        if not isinstance(detector, Detector) or not isinstance(detector.net, DetectionTransformer):
            return f"{type(detector).__name__} is no detection transformer: it has no queries."
        load_detector(detector, weights, class_names=list(detector.class_names))
        detector.eval().requires_grad_(False)
        context = RunContext(self._run.config, torch.device("cpu"), {}, StopSignals())
        mapper = ClipMapper(
            sampler=context.reference_sampler(detector, is_train=False),
            augmentations=build(self._run.config, "data.augmentations.test"),
            is_train=False,
        )
        self._loaded = detector, mapper
        return self._loaded


class WeightsExplainer:
    """Explanations of a file of weights on frames that are not of a run.

    Args:
        path: checkpoint of train_net.py, a published file, or an exported one, which has none.
    """

    def __init__(self, path: Path) -> None:
        self._path, self._lock = path, Lock()
        self._student: Any = None

    def points(self, pixels: UInt8[np.ndarray, "H W 3"]) -> Explanation:
        """What the detector reads for its best detection."""
        if self._path.suffix.lower() not in CHECKPOINT_SUFFIXES:
            return {"words": "An exported file has no sampling points; take its checkpoint."}
        with self._lock, torch.inference_mode():
            if self._student is None:
                self._student = load_student(self._path)
            detector: Detector = self._student.detector
            resized = self._student.preprocess.resized(pixels)
            image = torch.from_numpy(resized.transpose(2, 0, 1).copy())
            return explain(detector, detector.images([{"image": image}]), None)


def explain(detector: Detector, images: Images, current: Tensor | None) -> Explanation:
    """What the last decoder layer reads for the best detection of the current image."""
    net = cast(Any, detector.net)
    attention = net.decoder[-1].cross_attention
    kind = next((k for k in _READERS if isinstance(attention, k)), None)
    if kind is None:
        return {"words": f"{type(attention).__name__} has neither sampling points nor a map."}
    seen: list[Any] = []
    hooks = [attention.register_forward_pre_hook(lambda _, inputs: seen.append(inputs))]
    if kind is MatchingAttention:
        hooks.append(attention.dropout.register_forward_hook(lambda _, __, w: seen.append(w)))
    try:
        decoded = net(images, current)
    finally:
        for hook in hooks:
            hook.remove()
    score, _, query = detector.criterion.classification.detections(decoded.logits[-1], 1)
    row = int(query[0, 0])
    box = box_convert(decoded.boxes[-1][0, row], "cxcywh", "xyxy").clamp(0, 1)
    found = _READERS[kind](attention, seen, row)
    found["words"] = found["words"].format(float(score[0, 0]), type(net).__name__)
    return {**found, "box": box.tolist()}


def _sampling_points(attention: Any, seen: list[Any], row: int) -> Explanation:
    content, place, image = seen[0]
    locations, weights = attention.points(content, place, image)
    ratios = image.valid_ratios[0].view(1, -1, 1, 2)
    places = (locations[0, row] / ratios).flatten(0, 2)
    # The weights of a head sum to 1.
    weight = weights[0, row].flatten() / weights[0, row].max()
    kept = weight >= LIGHTEST
    rows = torch.cat([places, weight.unsqueeze(1)], 1)[kept]
    return {"words": POINTS, "points": [[round(v, 4) for v in point] for point in rows.tolist()]}


def _attention_map(attention: nn.MultiheadAttention, seen: list[Any], row: int) -> Explanation:
    content, place, image = seen[0]
    _, weights = nn.MultiheadAttention.forward(
        attention,
        content + place.position,
        image.key,
        image.tokens,
        key_padding_mask=image.padding,
        need_weights=True,
    )
    assert weights is not None
    (h, w), ratio = image.shapes[0], image.valid_ratios[0, 0]
    size = 1 / (w * float(ratio[0])), 1 / (h * float(ratio[1]))
    return {"words": MAP, "cells": _cells(weights[0, row].view(h, w), *size)}


def _matching_map(attention: Any, seen: list[Any], row: int) -> Explanation:
    (_, level), weights = seen
    (h, w), cells = level.shape, level.image_cells[0]
    mean = weights[0, :, row].mean(0).view(h, w)
    return {"words": MAP, "cells": _cells(mean, 1 / float(cells[0]), 1 / float(cells[1]))}


_READERS: dict[type, Any] = {
    LocalAttention: _sampling_points,
    GlobalAttention: _attention_map,
    MatchingAttention: _matching_map,
}


def _cells(weights: Float[Tensor, "h w"], width: float, height: float) -> dict[str, Any]:
    rows, columns = weights.shape
    share = weights / (float(weights.max()) or 1.0)
    return {
        "columns": columns,
        "rows": rows,
        "width": width,
        "height": height,
        "weights": [round(value, 4) for value in share.flatten().tolist()],
    }
