"""A stage: a training of a run, what it needs, and what it hands to later stages.

The config defines stages below ``stages``, see ``config/stage_settings.py``. A stage of one's own
is a subclass of :class:`Stage` that a config names; ``+stages.NAME={_target_: ...}`` adds it.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf
from torch import nn

from v2idetr.checkpoints.files import listed, read_weights
from v2idetr.config.load import build
from v2idetr.config.stage_settings import given_file, steps_of, value_at
from v2idetr.data.clip_mapper import Mapper
from v2idetr.data.coco_vid import SplitData
from v2idetr.data.schema import Together
from v2idetr.distillation.loss import DistillationLoss
from v2idetr.distillation.student import DistilledStudent
from v2idetr.engine.hooks import DistillationHook
from v2idetr.engine.trainer import TrainerHook, seed_step
from v2idetr.evaluation.evaluator import evaluate, validate
from v2idetr.evaluation.predictions import FramePrediction
from v2idetr.evaluation.table import format_table
from v2idetr.modeling.backbone_handover import check_file_pixels, take_backbone
from v2idetr.modeling.trainable import Trainable, TrainableDetector
from v2idetr.modeling.training import TransformerDetector
from v2idetr.runs.checkpoint import blaming, load_detector, load_into
from v2idetr.runs.folder import weights_of

if TYPE_CHECKING:  # it has the stages of its run
    from v2idetr.engine.run_context import RunContext

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class StageModels:
    """Models of one stage.

    Attributes:
        model: what is saved, and evaluated; in most stages a ``TrainableDetector``.
        trained: what is trained, a ``Trainable``: the model itself, or it with what surrounds it.
        teacher: whom it learns from, frozen and in evaluation mode; None without one.
    """

    model: nn.Module
    trained: nn.Module
    teacher: nn.Module | None = None

    def __post_init__(self) -> None:
        assert isinstance(self.trained, Trainable)


class Stage:
    """A training of a run.

    Args:
        settings, given, needs, split: see ``config/stage_settings.py``.

    Attributes:
        name: its key below ``stages``.
        roles: in which earlier stages can serve it.
        earlier: the stages that it needs, by their roles.
        with_boxes: whether it learns from boxes, and cannot without any.
        reported: whether its model is evaluated on the test splits and has a row in the results.
        split: key below ``data`` of the frames that it is trained on.
        watch: gets the detections of every validation, in stages that detect.
    """

    name = ""
    roles: tuple[str, ...] = ()
    with_boxes = True
    reported = True
    watch: Callable[[Sequence[FramePrediction]], None] | None = None

    def __init__(
        self,
        *,
        settings: str = "train",
        given: str = "",
        needs: Mapping[str, str] | None = None,
        split: str = "train",
    ) -> None:
        self.settings, self.given, self.needs = settings, given, dict(needs or {})
        self.split = split
        self.earlier: dict[str, Stage] = {}

    # ------------------------------------------------------------------ for subclasses

    def build(self, config: DictConfig, *, pretrained: bool = True) -> StageModels:
        """Models with freshly drawn weights, the same ones on every call.

        Args:
            config: of the run.
            pretrained: give backbones their ImageNet weights; not needed, nor the file with them,
                where a checkpoint is loaded next.

        Raises:
            ValueError: a module refuses its settings, names the key; models do not fit each other.
        """
        raise NotImplementedError

    def together(self, config: DictConfig, split: str) -> Together:
        """Which frames of a split ("train", "val", "test/...") can be in one clip."""
        return "frame"

    def clip_user(self, models: StageModels) -> nn.Module:
        """The module whose ``num_frames`` and ``reference_sampler`` choose the training clips."""
        return models.trained

    def training_split(self, run: RunContext) -> SplitData:
        """The frames that it is trained on, all of its split or a part."""
        return run.splits[self.split]

    def training_mapper(self, run: RunContext, models: StageModels, *, keep: bool = True) -> Mapper:
        """Record of a training frame -> sample.

        Args:
            keep: frames may stay in memory; not for a dry run.
        """
        return run.clip_mapper(
            self.training_split(run), self.clip_user(models), is_train=True, keep=keep
        )

    def train(self, run: RunContext) -> None:
        """Train up to final.pth; by default in steps, from last.pth if there is one.

        Raises:
            ValueError, CheckpointError: something does not fit; NonFiniteLossError; StopRequested.
        """
        from v2idetr.engine.stage_training import train_stage  # which trains any stage

        train_stage(run, self.name)

    def load_needs(self, run: RunContext, models: StageModels) -> None:
        """Give models what earlier stages have made.

        Before anything is trained, `earlier` has only the stages whose checkpoints are given.

        Raises:
            CheckpointError: it does not fit.
        """

    def hooks(self, models: StageModels) -> Sequence[TrainerHook]:
        """What the stage adds to every step of its training."""
        return []

    def validate(self, run: RunContext, models: StageModels) -> dict[str, float]:
        """Metrics on the validation split by name, the same on all processes; higher is better."""
        raise NotImplementedError

    def best_metric(self, config: DictConfig) -> str:
        """The one that chooses best.pth."""
        return str(config.train.best_metric)

    def evaluate(self, run: RunContext, weights: Path, folder: Path) -> dict[str, Any]:
        """Metrics of the trained model on the test splits; predictions go into the folder."""
        raise NotImplementedError

    @staticmethod
    def table(results: Mapping[str, Mapping[str, Any]]) -> str:
        """What `evaluate` has given, by row, as text; stages with one such method share a table."""
        return format_table(results)

    # ------------------------------------------------------------------ the same for all

    def artefact(self, config: DictConfig) -> Path:
        """The file that it hands to later stages, and that is evaluated."""
        return Path(given_file(config, self.name) or weights_of(config, self.name))

    def steps(self, config: DictConfig) -> int:
        """How many steps it is trained at most."""
        return steps_of(config, self.name)


class DetectorStage(Stage):
    """Trains a detector by its own losses.

    Args:
        model: key of the detector in the config.
        settings, given, needs, split: see :class:`Stage`. An earlier stage in the role "backbone"
            gives the backbone its weights; one in the role "initial" gives its detector's weights
            where they fit, as a single-frame detector does to a video detector.
    """

    roles = ("backbone", "initial")

    def __init__(
        self,
        *,
        model: str = "model",
        settings: str = "train",
        given: str = "",
        needs: Mapping[str, str] | None = None,
        split: str = "train",
    ) -> None:
        super().__init__(settings=settings, given=given, needs=needs, split=split)
        self.model = model

    def build(self, config: DictConfig, *, pretrained: bool = True) -> StageModels:
        detector = self.detector(config, pretrained=pretrained)
        return StageModels(detector, detector)

    def detector(self, config: DictConfig, *, pretrained: bool) -> nn.Module:
        """The detector with freshly drawn weights.

        Detectors of all stages are drawn from one seed: plain and distilled student start from the
        same weights and differ by the distillation alone.
        """
        key = self.model
        if value_at(config, key) is None:
            raise ValueError(f"stages.{self.name}.model is {key}, which the config does not have.")
        seed_step(config.train.seed, "initial weights", 0, 0)
        names = (f"{key}.net.weights", f"{key}.weights")
        given = {name: value for name in names if (value := value_at(config, name)) is not None}
        if not pretrained:
            config = copy.deepcopy(config)
            for name in given:
                OmegaConf.update(config, name, None)
        detector = build(config, key)
        if not (isinstance(detector, nn.Module) and isinstance(detector, TrainableDetector)):
            raise ValueError(
                f"{key}: {type(detector).__name__} is no detector that can be trained here: it "
                "lacks members of modeling/trainable.py. Detectron2's own models are adapted by "
                "v2idetr.modeling.detectron2_models.Detectron2Detector."
            )
        for name, weights in given.items() if pretrained else ():
            check_file_pixels(detector, weights, key=name)
        own_clips = getattr(detector, "reference_sampler", None) is not None
        if not own_clips and not 1 <= detector.num_frames <= config.data.num_frames:
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

    def together(self, config: DictConfig, split: str) -> Together:
        for name in ("evaluation_sampler", "reference_sampler")[split == self.split :]:
            if value_at(config, key := f"{self.model}.{name}") is not None:
                return "video" if build(config, key).num_global else "scene"
        num_frames = int(value_at(config, f"{self.model}.num_frames") or 1)
        # With a window of 0 clips repeat the current frame.
        return "frame" if num_frames == 1 or config.data.window == 0 else "scene"

    def clip_user(self, models: StageModels) -> nn.Module:
        return models.model

    def load_needs(self, run: RunContext, models: StageModels) -> None:
        if (backbone := self.earlier.get("backbone")) is not None:
            key = f"stages.{self.name}.needs.backbone"
            take_backbone(models.model, backbone.artefact(run.config), key=key)
        if (initial := self.earlier.get("initial")) is not None:
            file = initial.artefact(run.config)
            check_file_pixels(models.model, str(file), key=f"stages.{self.name}.needs.initial")
            fresh = load_into(models.model, read_weights(file).state, file, partial=True)
            logger.info("%s starts from %s%s", self.name, file, listed("own values", fresh))

    def validate(self, run: RunContext, models: StageModels) -> dict[str, float]:
        split, settings = run.splits["val"], run.config.evaluation
        return validate(
            models.model,
            split,
            run.eval_loader(split, models.model),
            rules=list(settings.rules),
            coco_ap=settings.coco_ap,
            watch=self.watch,
        )

    def evaluate(self, run: RunContext, weights: Path, folder: Path) -> dict[str, Any]:
        detector = self.detector(run.config, pretrained=False)
        load_detector(detector, weights, class_names=list(run.config.data.class_names))
        detector.to(run.device)
        val = run.splits["val"]
        metrics = evaluate(
            detector,
            val=(val, run.eval_loader(val, detector)),
            tests={n: (split, run.eval_loader(split, detector)) for n, split in run.tests.items()},
            rules=list(run.config.evaluation.rules),
            coco_ap=run.config.evaluation.coco_ap,
            progress=True,
            predictions_dir=folder,
        )
        sampler = run.reference_sampler(detector, is_train=False)
        return {**metrics, "look_ahead": sampler.look_ahead}


class StudentStage(DetectorStage):
    """Trains a detector by its own losses and those below ``distillation``.

    Args:
        model, settings, given, needs, split: see :class:`DetectorStage`; ``needs`` has a "teacher".
    """

    roles = (*DetectorStage.roles, "teacher")

    def build(self, config: DictConfig, *, pretrained: bool = True) -> StageModels:
        student = self.detector(config, pretrained=pretrained)
        teacher = self._teacher_stage.detector(config, pretrained=False)
        own = _with_queries(self.model, student)
        theirs = _with_queries(self._teacher_stage.model, teacher.eval().requires_grad_(False))
        losses: dict[str, DistillationLoss] = {
            str(name): build(config, f"distillation.{name}")
            for name, settings in config.distillation.items()
            if isinstance(settings, DictConfig)
        }
        for name, loss in losses.items():
            if not isinstance(loss, DistillationLoss):
                kind = type(loss).__name__
                raise ValueError(f"distillation.{name}: {kind} is no DistillationLoss.")
        try:
            distilled = DistilledStudent(
                student=own, losses=losses, frames=config.distillation.frames
            )
        except ValueError as error:
            said = str(error)
            prefix = "" if said.startswith("distillation.") else "distillation: "
            raise ValueError(f"{prefix}{said}") from error
        for name, loss in losses.items():
            if loss.compares_features and not list(loss.parameters()):  # nothing translates them
                _check_scales(name, own.net, theirs.net)
        return StageModels(student, distilled, teacher)

    def together(self, config: DictConfig, split: str) -> Together:
        if split != self.split:
            return super().together(config, split)
        teacher = self._teacher_stage  # chooses the clips of both in training
        return teacher.together(config, teacher.split)

    def clip_user(self, models: StageModels) -> nn.Module:
        assert models.teacher is not None
        return models.teacher

    def load_needs(self, run: RunContext, models: StageModels) -> None:
        super().load_needs(run, models)
        if "teacher" not in self.earlier:
            return
        names = list(run.config.data.class_names)
        key = self._teacher_stage.given if given_file(run.config, self._teacher_stage.name) else ""
        assert models.teacher is not None
        with blaming(key):
            file = self._teacher_stage.artefact(run.config)
            load_detector(models.teacher, file, class_names=names)

    def hooks(self, models: StageModels) -> Sequence[TrainerHook]:
        assert models.teacher is not None and isinstance(models.trained, DistilledStudent)
        teacher = _with_queries(self._teacher_stage.model, models.teacher)
        return [DistillationHook(teacher, models.trained)]

    @property
    def _teacher_stage(self) -> DetectorStage:
        teacher = self.earlier.get("teacher")
        if not isinstance(teacher, DetectorStage):
            raise ValueError(
                f"stages.{self.name}.needs must name a stage that trains a detector as teacher, "
                f"such as {{teacher: teacher}}, but is {self.needs}."
            )
        return teacher


def _with_queries(key: str, detector: nn.Module) -> TransformerDetector:
    """The detector, which must have what is distilled."""
    if not isinstance(detector, TransformerDetector):
        raise ValueError(
            f"{key}: {type(detector).__name__} has no queries and no memory to distil; teacher and "
            "student are detection transformers."
        )
    return detector


def _check_scales(loss: str, student: Any, teacher: Any) -> None:
    """Refuse to compare projected features as they are where only one network normalises them."""

    def normalised(net: Any) -> bool:
        return any(isinstance(part, nn.GroupNorm) for part in getattr(net, "neck", net).modules())

    if normalised(student) != normalised(teacher):
        one, other = ("teacher", "student") if normalised(teacher) else ("student", "teacher")
        raise ValueError(
            f"The {one} normalises its features and the {other} does not, so their scales differ: "
            f"set distillation.{loss}.align=conv1x1."
        )
