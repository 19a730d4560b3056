"""File of weights -> student, with all that its export must know."""

from __future__ import annotations

import contextlib
import json
import logging
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from v2i_runtime.preprocess import Preprocess
from v2idetr.checkpoints.files import CheckpointError, check_finite, read_weights, sha256
from v2idetr.checkpoints.published import Header, read_header
from v2idetr.checkpoints.wrappers import unwrapped
from v2idetr.config.load import load_config, to_plain
from v2idetr.config.preprocess import preprocess_of
from v2idetr.config.stage_settings import value_at
from v2idetr.engine.stage import DetectorStage
from v2idetr.engine.stage_graph import resolve_stages
from v2idetr.modeling.inference import ImageDetector
from v2idetr.modeling.meta_arch import Detector
from v2idetr.runs.checkpoint import load_detector
from v2idetr.runs.stage_folder import StageFolder

logger = logging.getLogger(__name__)

USUAL_RULE = "iou50"
# Weights are of a later training if they are newer than their evaluation by more than a copy takes.
COPYING_S = 60


@dataclass(frozen=True)
class Student:
    """A trained detector of single images.

    Attributes:
        detector: in evaluation mode, without gradients, on the CPU.
        path: its file.
        sha256: digest of the file.
        stage: stage of the run that trained it; "" if unknown.
        config: config of that run.
        preprocess: preprocessing of frames.
        evaluation: its ``evaluation.json``; None without one beside the file.
        no_evaluation: reason why there is none, in words.
    """

    detector: Detector
    path: Path
    sha256: str
    stage: str
    config: dict[str, Any]
    preprocess: Preprocess
    evaluation: dict[str, Any] | None
    no_evaluation: str = ""

    @property
    def class_names(self) -> list[str]:
        return list(self.detector.class_names)

    def image_detector(self) -> ImageDetector:
        """The student as a module of tensors."""
        return self.detector.image_detector().eval().requires_grad_(False)

    def threshold(self, rule: str | None = None) -> tuple[float | None, str]:
        """The threshold that a rule chose on validation data, with its source in words.

        Args:
            rule: rule of the evaluation; None for "iou50", or the first one without that.

        Raises:
            ValueError: the evaluation has no such rule.
        """
        if self.evaluation is None:
            return None, f"unknown: {self.no_evaluation}"
        thresholds = self.evaluation["thresholds"]
        rule = rule or usual_rule(thresholds)
        if rule not in thresholds:
            raise ValueError(
                f"--threshold-rule {rule}: the evaluation beside {self.path} has "
                f"{', '.join(thresholds)}; choose one of them."
            )
        f1 = self.evaluation["val"]["rules"][rule]["f1"]
        words = "highest F1" if f1 is None else f"highest F1 ({f1:.3f})"
        return thresholds[rule], f"{words} by the rule {rule} on the validation split"


def usual_rule(thresholds: Mapping[str, float]) -> str:
    """The rule whose threshold is taken unless another one is named."""
    return USUAL_RULE if USUAL_RULE in thresholds else next(iter(thresholds))


def load_student(
    path: Path, *, config_file: str | Path | None = None, overrides: Sequence[str] = ()
) -> Student:
    """Read a student or plain detector.

    Args:
        path: checkpoint of train_net.py, or a published ``.safetensors`` file.
        config_file: config of the run that trained it; None for the one in a published file, else
            ``config.yaml`` beside it.
        overrides: changes to the config.

    Raises:
        ValueError: unusable weights or config, a teacher, or a detector without this interface;
            names the file.
    """
    stored, remarks = unwrapped(read_weights(path))
    check_finite(stored.state, path)
    for remark in remarks:
        logger.info("%s: %s", path, remark)
    header = read_header(stored.metadata, path)
    known_stage = stored.beside.get("stage")
    with _config_of(path, config_file, header) as file:
        if header is None and known_stage is None:
            logger.info("%s: holds weights alone; %s describes their detector", path, file)
        fused = any(n.removeprefix("net.").startswith("fusion.") for n in stored.state)
        stage, config, detector = detector_of_config(file, overrides, known_stage, fused=fused)
    if detector.num_frames > 1:
        raise ValueError(
            f"{path}: is a teacher, which looks at {detector.num_frames} frames at once; give the "
            "checkpoint of a student or of a plain detector."
        )
    if not isinstance(detector, Detector):
        raise ValueError(
            f"{path}: is a {type(detector).__name__}; only DETR, Deformable DETR and SAM-DETR can "
            "be exported."
        )
    load_detector(detector, path, class_names=list(detector.class_names), stored=stored)
    return Student(
        detector.eval().requires_grad_(False),
        path,
        sha256(path),
        known_stage or "",
        config,
        preprocess_of(config, stage.model),
        *_evaluation_of(path),
    )


def detector_of_config(
    config_file: str | Path,
    overrides: Sequence[str],
    name: str | None = None,
    *,
    fused: bool = False,
) -> tuple[DetectorStage, dict[str, Any], Any]:
    """(stage, plain config, detector of the stage without weights).

    Args:
        config_file: config of a run.
        overrides: changes to it.
        name: name of the stage; None for the last one that mixes the frames of a clip, or does not.
        fused: with no name, whether it does.

    Raises:
        ValueError: an unusable config, or one without such a stage; names the file.
    """
    try:
        config = load_config(config_file, overrides)
        stages = [s for s in resolve_stages(config).values() if isinstance(s, DetectorStage)]
        if name is None:
            of_kind = f"with{'' if fused else 'out'} fusion of frames"
            stages = [s for s in stages if bool(value_at(config, f"{s.model}.net.fusion")) == fused]
        else:
            of_kind = f"and is named {name!r}"
            stages = [s for s in stages if s.name == name]
        if not stages:
            raise ValueError(f"it has no stage that trains a detector {of_kind}.")
        return stages[-1], to_plain(config), stages[-1].detector(config, pretrained=False)
    except ValueError as error:
        raise ValueError(
            f"{config_file}: {error}\nFix it, or give another config with --config-file."
        ) from error


@contextlib.contextmanager
def _config_of(path: Path, given: str | Path | None, header: Header | None) -> Iterator[Path]:
    """File with the config of a student, for the time of this block.

    Raises:
        ValueError: there is none.
    """
    beside = path.parent / "config.yaml"
    if given is not None:
        yield Path(given)
    elif header is not None and header.config:
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "config.yaml"
            file.write_text(header.config, encoding="utf-8")
            try:
                yield file
            except ValueError as error:
                raise ValueError(str(error).replace(str(file), f"config in {path}")) from error
    elif beside.is_file():
        yield beside
    else:
        raise CheckpointError(
            f"{path}: its architecture is unknown, because there is no config.yaml beside it; "
            "give the config of the run that trained it with --config-file."
        )


def _evaluation_of(path: Path) -> tuple[dict[str, Any] | None, str]:
    """(evaluation beside a checkpoint if it is of this file, reason where there is none)."""
    file = StageFolder(path.parent).evaluation
    if not file.is_file():
        return None, "there is no evaluation of these weights beside them"
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        rules = content["val"]["rules"]
        if not all("f1" in rules[rule] for rule in content["thresholds"]):
            raise KeyError("f1")
        evaluated = Path(content["checkpoint"]).name
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{file}: is damaged ({error!r}); remove it, or write it again with --eval-only."
        ) from error
    if evaluated != path.name:
        return None, f"the evaluation beside these weights is of {evaluated}"
    if path.stat().st_mtime > file.stat().st_mtime + COPYING_S:
        return None, (
            f"the weights are newer than {file.name} beside them; evaluate them (--eval-only), or "
            "give --threshold"
        )
    return content, ""
