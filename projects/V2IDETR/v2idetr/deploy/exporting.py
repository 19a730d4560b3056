"""Checkpoint of a student -> exported file that was compared with torch.

    load, trace, write, [quantize], compare, describe, write its card, move to its place

All of it happens in a temporary folder: an error or an interruption leaves no file.
"""

from __future__ import annotations

import contextlib
import math
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from torch.export import ExportedProgram

from v2i_runtime.backends import available_devices, open_backend
from v2i_runtime.model_info import ModelInfo
from v2i_runtime.preprocess import FixedSize, Preprocess
from v2idetr.checkpoints.published import project_version
from v2idetr.deploy import export as files
from v2idetr.deploy.frames import StudentFrames
from v2idetr.deploy.model_card import card_path, model_card
from v2idetr.deploy.parity import Parity, compare, make_probe, torch_outputs
from v2idetr.deploy.quantization import quantize, quantized_nodes
from v2idetr.deploy.student import Student, load_student, usual_rule
from v2idetr.modeling.deformable_attention import DeformableAttention, Implementation
from v2idetr.modeling.inference import ImageDetector

Precision = Literal["fp32", "fp16", "int8"]
Say = Callable[[str], object]

TOLERANCES: dict[Precision, float] = {"fp32": 1e-5, "fp16": 0.05, "int8": math.inf}
PROBE_TOLERANCES: dict[Precision, float] = {"fp32": 1e-3, "fp16": 2e-2, "int8": 5e-2}
# Detections below it are not compared: near the least score, another order changes which are found.
LEAST_SCORES: dict[Precision, float] = {"fp32": 0.0, "fp16": 0.1, "int8": 0.1}
# Words of torch's allocators, whose errors have no class of their own.
NO_MEMORY = ("can't allocate memory", "not enough memory", "out of memory", "size calculation over")


@dataclass(frozen=True)
class ExportSettings:
    """Settings of an export.

    Attributes:
        checkpoint: weights of a student, see ``student.load_student``.
        output: ``.onnx``, or ``.xml`` for OpenVINO.
        format: of the file.
        precision: of the file; "fp16" stores weights in float16.
        size: (height, width) of the video's frames, px; None for a student with one input size.
        attention: reads of deformable attention, see ``export.trace``.
        device: device of the runtime for the comparison.
        config_file, overrides: see ``student.load_student``.
        threshold: score threshold in place of the evaluation's.
        threshold_rule: see ``Student.threshold``.
        frames: source of frames to compare on; None for the validation split.
        tolerance: largest difference of a score or box coordinate; None for the precision's own.
        calibration: number of frames for INT8.
        accept_loss: largest loss of AP50 or F1 by INT8, in points.
        overwrite: replace an existing file.
    """

    checkpoint: Path
    output: Path
    format: files.Format
    precision: Precision = "fp32"
    size: tuple[int, int] | None = None
    attention: Implementation = "grid_sample"
    device: str = "CPU"
    config_file: str | None = None
    overrides: Sequence[str] = ()
    threshold: float | None = None
    threshold_rule: str | None = None
    frames: str | None = None
    tolerance: float | None = None
    calibration: int = 300
    accept_loss: float = 1.0
    overwrite: bool = False


def export_student(settings: ExportSettings, say: Say) -> list[Path]:
    """Write an exported file, if it computes what torch does.

    Args:
        settings: see :class:`ExportSettings`.
        say: takes lines for the user.

    Returns:
        paths of the written files.

    Raises:
        ValueError: unusable weights, size or data, missing libraries, or other results than torch.
    """
    _check_can_start(settings)
    student = load_student(
        settings.checkpoint, config_file=settings.config_file, overrides=settings.overrides
    )
    size = input_size(student.preprocess, settings.size)
    with _enough_memory(size):
        return _export(settings, student, size, say)


def _export(
    settings: ExportSettings, student: Student, size: tuple[int, int], say: Say
) -> list[Path]:
    module = student.image_detector()
    info = _description(settings, student, size, module)
    data = StudentFrames(student.config, student.class_names, student.preprocess, size, say)
    frames = data.to_compare(settings.frames)
    if settings.precision == "int8":
        data.check_for_int8(settings.threshold_rule)
    threshold = "unknown" if info.score_threshold is None else f"{info.score_threshold:.3f}"
    say(
        f"{settings.checkpoint}: {info.network}, stage {student.stage or 'unknown'}, "
        f"{', '.join(student.class_names)}; input {size[0]} x {size[1]} px (height x width); "
        f"threshold {threshold} ({info.threshold_source})"
    )
    say("tracing the network ...")
    program = files.trace(module, size, settings.attention)
    with tempfile.TemporaryDirectory(
        dir=_existing_folder(settings.output), prefix=".export-"
    ) as folder:
        work = _Work(settings, module, frames, data, Path(folder) / settings.output.name, say)
        model = work.write(program)
        files.describe(work.path, info)
        if settings.precision == "int8":
            info = work.quantize(model, quantized_nodes(program), info)
        info = work.compared(info)
        files.describe(work.path, info)
        card = model_card(info, _models(work.path), student.evaluation)
        card_path(work.path).write_text(card, encoding="utf-8")
        return _moved(work.path, settings.output)


@dataclass(frozen=True)
class _Work:
    """A file on its way, with what it is compared to."""

    settings: ExportSettings
    module: ImageDetector
    frames: Sequence[np.ndarray]
    data: StudentFrames
    path: Path
    say: Say

    def write(self, program: ExportedProgram) -> Any:
        """Write the file without a description; returns OpenVINO's model."""
        half = self.settings.precision == "fp16"
        if self.settings.format == "onnx":
            self.say("writing ONNX ...")
            return files.save_onnx(program, self.path, half=half)
        self.say("converting it for OpenVINO ...")
        model = files.to_openvino(program)
        files.save_openvino(model, self.path, half=half)
        return model

    def quantize(self, model: Any, nodes: set[str], info: ModelInfo) -> ModelInfo:
        """Replace the float32 file by INT8, if that loses no more than accepted.

        Scores shift, so that the threshold is chosen again unless it is given.

        Raises:
            ValueError: it loses more.
        """
        device = self.settings.device
        self.say("before quantization:")
        self._parity("fp32", None)
        before, _ = self.data.metrics(self.path, device, "fp32 on val")
        frames = self.data.for_calibration(self.settings.calibration)
        self.say(f"calibrating on {len(frames)} frames of the training split ...")
        files.save_openvino(quantize(model, nodes, frames), self.path, half=False)
        files.describe(self.path, info)
        after, thresholds = self.data.metrics(self.path, device, "INT8 on val")
        check_loss(before, after, self.settings.accept_loss)
        info = replace(info, card=info.card | {"validation_fp32": before, "validation_int8": after})
        if self.settings.threshold is not None:
            return info
        rule = self.settings.threshold_rule or usual_rule(thresholds)
        f1 = after[f"F1 {rule}"]
        if math.isnan(f1):
            return info
        words = f"highest F1 ({f1:.3f}) of INT8 by the rule {rule} on the validation split"
        self.say(f"threshold of INT8: {thresholds[rule]:.3f} ({words})")
        return replace(info, score_threshold=thresholds[rule], threshold_source=words)

    def compared(self, info: ModelInfo) -> ModelInfo:
        """The description with the differences from torch and the file's own probe.

        Raises:
            ValueError: they are larger than allowed.
        """
        precision = self.settings.precision
        parity = self._parity(precision, self.settings.tolerance)
        backend = open_backend(self.path, device=self.settings.device, threads=None)
        probe = make_probe(info.probe.size, backend.run, PROBE_TOLERANCES[precision])
        return replace(info, parity={"score": parity.score, "box": parity.box}, probe=probe)

    def _parity(self, precision: Precision, tolerance: float | None) -> Parity:
        backend = open_backend(self.path, device=self.settings.device, threads=None)
        parity = compare(self.module, backend, self.frames, score_threshold=LEAST_SCORES[precision])
        allowed = TOLERANCES[precision] if tolerance is None else tolerance
        if not (math.isfinite(parity.largest) and parity.largest <= allowed):
            raise ValueError(
                f"the network in {backend.runtime} finds other detections than torch: "
                f"{parity.words}; {allowed:.1e} is allowed (--tolerance). Nothing was written. "
                "Try --attention gather, another --format or --device."
            )
        self.say(f"{backend.runtime} against torch: {parity.words}")
        return parity


def input_size(preprocess: Preprocess, frame_size: tuple[int, int] | None) -> tuple[int, int]:
    """(height, width) of the network's input, px.

    Args:
        preprocess: preprocessing of the student.
        frame_size: (height, width) of the video's frames, px; None if it does not matter.

    Raises:
        ValueError: it matters and is not given, or is given and does not matter.
    """
    if isinstance(preprocess.resize, FixedSize):
        if frame_size is not None:
            raise ValueError(
                f"--size: this student resizes every frame to {preprocess.resize.height_px} x "
                f"{preprocess.resize.width_px} px; leave it out, or change "
                "data.augmentations.test.0.height and .width."
            )
        return preprocess.resized_size(1, 1)
    if frame_size is None:
        raise ValueError(
            "--size: the input of this student depends on the size of frames; give that of the "
            "video, such as --size 1080 1350 (height, width)."
        )
    return preprocess.resized_size(*frame_size)


def check_loss(before: dict[str, float], after: dict[str, float], accepted: float) -> None:
    """Refuse a quantized detector that has become worse.

    Args:
        before, after: metrics by name; NaN where undefined.
        accepted: largest loss of a metric, in points.

    Raises:
        ValueError: a metric falls by more, or none is defined.
    """
    lost = {name: 100 * (before[name] - after[name]) for name in before}
    lost = {name: points for name, points in lost.items() if not math.isnan(points)}
    if not lost:
        raise ValueError(
            "INT8 cannot be judged: the validation split (data.val) has no lesions. Nothing was "
            "written."
        )
    worst = max(lost, key=lambda name: lost[name])
    if lost[worst] > accepted:
        raise ValueError(
            f"INT8 loses {lost[worst]:.1f} points of {worst} on the validation split, of which "
            f"{accepted:g} are allowed (--accept-loss). Nothing was written."
        )


def _check_can_start(settings: ExportSettings) -> None:
    quantized = settings.precision == "int8"
    for path in _files_of(settings.output):
        if path.exists() and not settings.overwrite:
            raise ValueError(f"{path}: exists; give another --output, or --overwrite.")
    if missing := files.missing_libraries(settings.format, quantized=quantized):
        raise ValueError(
            f"--format {settings.format} needs {', '.join(missing)}: "
            "pip install -r requirements-deploy.txt"
        )
    devices = available_devices(settings.output.suffix)
    if settings.device.upper() not in devices:
        raise ValueError(
            f"--device {settings.device}: the runtime of --format {settings.format} has only "
            f"{', '.join(devices)} here; choose one of them."
        )


@contextlib.contextmanager
def _enough_memory(size: tuple[int, int]) -> Iterator[None]:
    """Lack of memory as a ValueError that names the size."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        reason = str(error).splitlines()[0] if str(error) else "no memory left"
        if isinstance(error, RuntimeError) and not any(words in reason for words in NO_MEMORY):
            raise
        raise ValueError(
            f"--size: the network needs more memory for an input of {size[0]} x {size[1]} px than "
            f"there is ({reason:.200}). Nothing was written. Give a smaller --size, or export on a "
            "machine with more memory."
        ) from error


def _description(
    settings: ExportSettings, student: Student, size: tuple[int, int], module: ImageDetector
) -> ModelInfo:
    """The description before the comparison, with the probe's detections by torch."""
    threshold, source = settings.threshold, "given at export"
    if threshold is None:
        threshold, source = student.threshold(settings.threshold_rule)
    deformable = any(isinstance(part, DeformableAttention) for part in module.modules())
    evaluation = student.evaluation or {}
    versions = files.versions_of_libraries(settings.format, quantized=settings.precision == "int8")
    tolerance = PROBE_TOLERANCES[settings.precision]
    return ModelInfo(
        network=type(module.net).__name__,
        class_names=student.class_names,
        preprocess=student.preprocess,
        size=size,
        precision=settings.precision,
        attention=settings.attention if deformable else "",
        score_threshold=threshold,
        threshold_source=source,
        checkpoint=student.path.name,
        checkpoint_sha256=student.sha256,
        versions={"v2idetr": project_version(), **versions},
        parity={},
        card={
            "stage": student.stage,
            "training_data": student.config["data"]["train"]["json"],
            "validation": _metrics_of(evaluation.get("val")),
            "tests": {name: _metrics_of(m) for name, m in evaluation.get("tests", {}).items()},
            "intended_use": "research; not a medical device, not for diagnosis or treatment",
        },
        probe=make_probe(size, lambda images: torch_outputs(module, images), tolerance),
    )


def _metrics_of(split: dict[str, Any] | None) -> dict[str, float | None]:
    """AP50 and F1 by rule of a split of an evaluation."""
    if split is None:
        return {}
    f1 = {f"F1 {rule}": values["f1"] for rule, values in split["rules"].items()}
    return {"AP50": (split["coco"] or {}).get("AP50"), **f1}


def _models(path: Path) -> list[Path]:
    """The exported file, and the one with its weights."""
    return [path] if path.suffix == ".onnx" else [path, path.with_suffix(".bin")]


def _files_of(path: Path) -> list[Path]:
    """All files of an export."""
    return [*_models(path), card_path(path)]


def _existing_folder(output: Path) -> Path:
    """The nearest folder above a file that exists; on its disk, so that moving is renaming."""
    folder = output.parent
    while not folder.exists():
        folder = folder.parent
    return folder


def _moved(path: Path, output: Path) -> list[Path]:
    """Move files to their place; the .onnx or .xml last: with it the export is there."""
    output.parent.mkdir(parents=True, exist_ok=True)
    pairs = list(zip(_files_of(path), _files_of(output), strict=True))
    for file, place in reversed(pairs):
        os.replace(file, place)
    return [place for _, place in pairs]
