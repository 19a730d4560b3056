"""Description of an exported detector, stored inside its file as one JSON text.

The network of such a file takes RGB frames, resized as ``preprocess.resize`` says, and does the
rest itself:

    input   images   (B, H, W, 3) uint8, any B
    output  scores   (B, k) float32, in [0, 1], best first
            classes  (B, k) int64, 0-based
            boxes    (B, k, 4) float32, xyxy in [0, 1] of the frame
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int, UInt8

from v2i_runtime.integrity import PLACEHOLDER
from v2i_runtime.preprocess import Preprocess

FORMAT, VERSION = "v2idetr-export", 2
PRECISIONS = ("fp32", "fp16", "int8")
KEY = "v2idetr"  # of ONNX's metadata_props, and of OpenVINO's rt_info


class Outputs(NamedTuple):
    """Detections, best first, of a batch (B, k) or of one of its frames (k).

    Attributes:
        scores: in [0, 1].
        classes: 0-based.
        boxes: xyxy in [0, 1] of the frame.
    """

    scores: Float[np.ndarray, "*B k"]
    classes: Int[np.ndarray, "*B k"]
    boxes: Float[np.ndarray, "*B k 4"]

    def of_frame(self, index: int) -> Outputs:
        """The detections of one frame of a batch."""
        return Outputs(*(part[index] for part in self))

    def where(self, kept: np.ndarray) -> Outputs:
        """Some detections of a frame."""
        return Outputs(*(part[kept] for part in self))


@dataclass(frozen=True)
class Probe:
    """Detections of :func:`probe_image`, kept to recognise a runtime that computes otherwise.

    Attributes:
        size: (height, width) of the probe image, px.
        scores, classes, boxes: the best detections at export, see the module.
        tolerance: largest difference of a score or of a box coordinate.
    """

    size: tuple[int, int]
    scores: list[float]
    classes: list[int]
    boxes: list[list[float]]
    tolerance: float

    @property
    def outputs(self) -> Outputs:
        return Outputs(
            np.array(self.scores, np.float64),
            np.array(self.classes, np.int64),
            np.array(self.boxes, np.float64).reshape(-1, 4),
        )


@dataclass(frozen=True)
class ModelInfo:
    """Facts about an exported detector.

    Attributes:
        network: class of the network, such as "DeformableDETR".
        class_names: class names by index.
        preprocess: resize before the network; mean, std and padding are applied by the network.
        size: (height, width) of the input, px.
        precision: "fp32", "fp16" or "int8".
        attention: reads of deformable attention, "grid_sample" or "gather"; "" without any.
        score_threshold: threshold chosen on validation data; None if unknown.
        threshold_source: rule, data and value of the metric behind the threshold, in words.
        checkpoint, checkpoint_sha256: name and digest of the file of weights.
        versions: versions of the libraries that made the file, by name.
        parity: largest differences from torch at export, by name.
        card: facts for a model card: stage, training data, metrics, intended use.
        probe: see :class:`Probe`.
        file_sha256: digest of the exported file itself, see `integrity`.
    """

    network: str
    class_names: list[str]
    preprocess: Preprocess
    size: tuple[int, int]
    precision: str
    attention: str
    score_threshold: float | None
    threshold_source: str
    checkpoint: str
    checkpoint_sha256: str
    versions: dict[str, str]
    parity: dict[str, float]
    card: dict[str, Any]
    probe: Probe
    file_sha256: str = PLACEHOLDER

    def to_json(self) -> str:
        """Text for :meth:`from_json`."""
        values = asdict(self) | {"preprocess": self.preprocess.to_json()}
        return json.dumps({"format": FORMAT, "version": VERSION, **values})

    @classmethod
    def from_json(cls, text: str, source: str) -> ModelInfo:
        """The description in a text of :meth:`to_json`.

        Args:
            text: JSON text.
            source: name of the file, for messages.

        Raises:
            ValueError: another format or version, or a missing or unusable value; names the file.
        """
        try:
            values = json.loads(text)
            kind, version = values.pop("format"), values.pop("version")
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{source}: its description is damaged; export it again") from error
        if (kind, version) != (FORMAT, VERSION):
            raise ValueError(
                f"{source}: has format {kind!r} of version {version!r}, but this program reads "
                f"{FORMAT!r} of version {VERSION}; use the runtime of its exporter, or export again"
            )
        try:
            known = {name: values[name] for name in (f.name for f in fields(cls))}
            known["preprocess"] = Preprocess.from_json(known["preprocess"])
            known["size"] = _size(known["size"])
            probe = known["probe"]
            known["probe"] = Probe(**probe | {"size": _size(probe["size"])})
            info = cls(**known)
            _check(info)
            return info
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"{source}: its description is damaged ({error}); export it again"
            ) from error


def _check(info: ModelInfo) -> None:
    """Refuse values that would fail later, far from the file's name.

    Raises:
        ValueError: names the key.
    """
    probe, threshold = info.probe, info.score_threshold
    lengths = {len(probe.scores), len(probe.classes), len(probe.boxes)}
    correct = {
        "class_names": bool(info.class_names) and all(isinstance(n, str) for n in info.class_names),
        "preprocess": info.preprocess.resize is not None,
        "size": min(info.size) > 0,
        "precision": info.precision in PRECISIONS,
        "score_threshold": threshold is None or isinstance(threshold, int | float),
        "versions": isinstance(info.versions, dict),
        "file_sha256": isinstance(info.file_sha256, str) and len(info.file_sha256) == 64,
        "probe": len(lengths) == 1 and min(probe.size) > 0 and probe.tolerance > 0,
    }
    for key, is_correct in correct.items():
        if not is_correct:
            raise ValueError(f"{key} is {getattr(info, key)!r:.100}")


def _size(values: Any) -> tuple[int, int]:
    height, width = (int(value) for value in values)
    return height, width


def probe_image(height: int, width: int) -> UInt8[np.ndarray, "H W 3"]:
    """A fixed image with edges, gradients and blobs, the same on every machine."""
    y, x = np.mgrid[0:height, 0:width].astype(np.int64)
    red = (x * 255) // max(width - 1, 1)
    green = (y * 255) // max(height - 1, 1)
    blob = (x - width // 3) ** 2 * 9 + (y - height // 2) ** 2 * 16 < (min(height, width) ** 2)
    blue = ((x // 16 + y // 16) % 2) * 96 + blob * 128
    return np.stack([red, green, blue], -1).astype(np.uint8)


def differences(some: Outputs, others: Outputs) -> tuple[float, float]:
    """Largest differences between some detections of a frame and the nearest one of others to each.

    Nearest by score and box together, among those of the class: detections of nearly equal score
    may come in another order.

    Args:
        some, others: detections of one frame, without an axis of frames.

    Returns:
        (of a score, of a box coordinate); infinity where a class is missing or a number not finite.
    """
    if not len(some.scores):
        return 0.0, 0.0
    score = np.abs(some.scores[:, None] - others.scores[None])
    box = np.abs(some.boxes[:, None] - others.boxes[None]).max(-1)
    both = np.maximum(score, box)
    if not np.isfinite(both).all():
        return float("inf"), float("inf")
    both[some.classes[:, None] != others.classes[None]] = np.inf
    if not both.size or np.isinf(both.min(1)).any():
        return float("inf"), float("inf")
    pairs = np.arange(len(both)), both.argmin(1)
    return float(score[pairs].max()), float(box[pairs].max())
