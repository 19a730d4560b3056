"""The models of a stage, as its config describes them."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

from omegaconf import DictConfig, OmegaConf
from torch import nn

from v2idetr.config.load import build
from v2idetr.distillation.loss import DistillationLoss
from v2idetr.distillation.student import DistilledStudent
from v2idetr.engine.trainer import seed_step


@dataclass(frozen=True)
class StageModels:
    """Models of one stage.

    Attributes:
        detector: what is evaluated and saved.
        trained: what is trained: the detector itself, or it with its distillation losses around it.
        teacher: whom the student learns from; None in the other stages.
    """

    detector: Any  # a Detector: torch types its submodules as Tensor | Module
    trained: nn.Module
    teacher: Any = None


def build_stage(config: DictConfig, stage: str, *, pretrained: bool = True) -> StageModels:
    """Models with freshly drawn weights, the same ones on every call.

    Plain and distilled student start from the same weights: they differ by the distillation alone.

    Args:
        config: of the run.
        stage: teacher, plain or student.
        pretrained: give the backbone its ImageNet weights; not needed, nor the file with them,
            where a checkpoint is loaded next, as always into the teacher of a student.

    Raises:
        ValueError: a module refuses its settings, names the key; teacher and student do not fit.
    """
    key = "teacher.model" if stage == "teacher" else "model"
    detector = _build_detector(config, key, pretrained)
    if stage != "student":
        return StageModels(detector, detector)
    teacher = _build_detector(config, "teacher.model", pretrained=False)
    losses: dict[str, DistillationLoss] = {
        str(name): build(config, f"distillation.{name}")
        for name, settings in config.distillation.items()
        if isinstance(settings, DictConfig)
    }
    try:
        student = DistilledStudent(
            student=detector, losses=losses, frames=config.distillation.frames
        )
    except ValueError as error:
        raise ValueError(f"distillation: {error}") from error
    for name, loss in losses.items():
        if loss.compares_features and not list(loss.parameters()):  # nothing translates them
            _check_scales(name, detector.net, teacher.net)
    return StageModels(detector, student, teacher)


def split_state(models: StageModels) -> tuple[dict[str, Any], dict[str, Any]]:
    """State of the detector, and of what surrounds it in training."""
    detector = dict(models.detector.state_dict())
    if models.trained is models.detector:
        return detector, {}
    own = {id(tensor) for tensor in models.detector.state_dict(keep_vars=True).values()}
    everything = models.trained.state_dict(keep_vars=True)
    around = {name: t.detach() for name, t in everything.items() if id(t) not in own}
    return detector, around


def _check_scales(loss: str, student: nn.Module, teacher: nn.Module) -> None:
    """Refuse to compare projected features as they are where only one network normalises them."""

    def normalised(net: nn.Module) -> bool:
        return any(isinstance(part, nn.GroupNorm) for part in getattr(net, "neck", net).modules())

    if normalised(student) != normalised(teacher):
        one, other = ("teacher", "student") if normalised(teacher) else ("student", "teacher")
        raise ValueError(
            f"The {one} normalises its features and the {other} does not, so their scales differ: "
            f"set distillation.{loss}.align=conv1x1."
        )


def _build_detector(config: DictConfig, key: str, pretrained: bool) -> Any:
    seed_step(config.train.seed, "initial weights", 0, 0)
    if not pretrained and OmegaConf.select(config, f"{key}.net.weights") is not None:
        config = copy.deepcopy(config)
        OmegaConf.update(config, f"{key}.net.weights", None)
    detector = build(config, key)
    if not 1 <= detector.num_frames <= config.data.num_frames:
        raise ValueError(
            f"{key} looks at {detector.num_frames} frames, but data.num_frames is "
            f"{config.data.num_frames}."
        )
    if list(detector.class_names) != list(config.data.class_names):
        raise ValueError(
            f"{key} has the classes {list(detector.class_names)}, but data.class_names is "
            f"{list(config.data.class_names)}."
        )
    return detector
