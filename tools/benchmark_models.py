"""Detectors of the benchmark, and their parameter counts."""

from __future__ import annotations

import copy
import functools
from pathlib import Path
from typing import Any, cast

ROOT = Path(__file__).resolve().parent.parent
MODELS = ROOT / "configs" / "models"
NUM_FRAMES = 3
OTHER_ROLES = {"model": "single frames", "video": "video"}
ROLES = {"model": "plain or student", "teacher": f"teacher, {NUM_FRAMES} frames"}

# Totals of the official code with a ResNet-50 and 91 classes, by file and settings of model.net.
# The papers and SAM-DETR's logs count trainable parameters: 222,400 less.
COCO_CLASSES = 91
OFFICIAL_TOTALS: list[tuple[str, dict[str, Any], int]] = [
    ("detr", {"num_queries": 100}, 41_524_768),
    ("deformable_detr", {"num_queries": 300}, 40_069_665),
    ("deformable_detr", {"num_queries": 300, "strides": [32]}, 34_066_593),
    ("deformable_detr", {"num_queries": 300, "box_refine": True}, 40_849_660),
    ("deformable_detr", {"num_queries": 300, "box_refine": True, "two_stage": True}, 41_181_529),
    ("sam_detr", {"num_queries": 300}, 58_296_458),
    ("sam_detr", {"num_queries": 300, "smca": True}, 58_345_706),
    ("sam_detr", {"num_queries": 300, "multi_scale": True}, 55_194_698),
]


def parameter_table() -> list[dict[str, Any]]:
    """Parameters of every detector of ``configs/models`` with every backbone, in total.

    A teacher of several students is listed once, with the first of them.
    """
    import torch

    from v2idetr.evaluation.cost import parameters

    asked = [
        (name, role)
        for students in families()
        for name, role in [*((name, "model") for name in students), (students[0], "teacher")]
    ]
    with torch.device("meta"):  # counted, never initialised
        return [
            {"detector": name, "backbone": backbone, "role": ROLES[role]}
            | parameters(build(name, role, backbone))
            for name, role in asked
            for backbone in _read("backbones")
        ]


def other_table() -> list[dict[str, Any]]:
    """Parameters of the detectors without a teacher, with the backbones of their files."""
    import torch

    from v2idetr.evaluation.cost import parameters

    with torch.device("meta"):
        return [
            {"detector": name, "role": OTHER_ROLES[key]} | parameters(as_configured(name, key))
            for name in others()
            for key in OTHER_ROLES
            if key in _read(name)
        ]


def official_table() -> list[dict[str, Any]]:
    """Parameters at the size of the official detectors, and the totals of the official code."""
    import torch
    from detectron2.config import instantiate

    from v2idetr.evaluation.cost import parameters

    rows = []
    for name, settings, official in OFFICIAL_TOTALS:
        net = load(name).model.net
        net.update({"num_classes": COCO_CLASSES, "weights": "", **settings})
        with torch.device("meta"):
            count = parameters(instantiate(net))
        words = ", ".join(f"{key}={value}" for key, value in settings.items())
        rows.append({"detector": name, "configuration": words, "official": official, **count})
    return rows


def others() -> list[str]:
    """Files of ``configs/models`` with a detector that has no teacher."""
    files = sorted(MODELS.glob("*.py"))
    return [p.stem for p in files if "model" in (c := _read(p.stem)) and "teacher" not in c]


def as_configured(name: str, key: str) -> Any:
    """A detector of :func:`others` with random weights; ``key`` is of ``OTHER_ROLES``."""
    from detectron2.config import instantiate
    from omegaconf import OmegaConf

    config = with_data(name)
    config.data.update({"window": 2, "sampling": "random", "side": "both"})
    for weights in ("model.net.weights", "model.weights"):
        if OmegaConf.select(config, weights) is not None:
            OmegaConf.update(config, weights, None)
    return instantiate(config.model if key == "model" else config.video.model)


def families() -> list[list[str]]:
    """Files of ``configs/models`` with a detector that has a teacher, grouped by it."""
    from omegaconf import OmegaConf

    found: dict[str, list[str]] = {}
    for path in sorted(MODELS.glob("*.py")):
        if {"model", "teacher"} <= set(_read(path.stem)):
            teacher = with_data(path.stem).teacher.model
            settings = str(OmegaConf.to_container(teacher, resolve=True))
            found.setdefault(settings, []).append(path.stem)
    return list(found.values())


def build(
    name: str,
    role: str,
    backbone: str,
    *,
    roles: list[str] | None = None,
    num_frames: int = NUM_FRAMES,
    num_queries: int | None = None,
) -> Any:
    """A detector as in training, with random weights.

    Args:
        name: file of ``configs/models``, without suffix.
        role: "model" (plain detector and student) or "teacher".
        backbone: a key of ``configs/models/backbones.py``.
        roles: roles of MSI's levels; the configured ones by default.
        num_frames: T.
        num_queries: N; the configured number by default.
    """
    from detectron2.config import instantiate

    config = with_data(name, num_frames)
    if num_queries is not None:
        config.model.net.num_queries = num_queries
    config.model.net.backbone = _ending_at(
        copy.deepcopy(_read("backbones")[backbone]), max(config.model.net.get("strides", [32]))
    )
    config.model.net.weights = ""
    if roles is not None:
        config.teacher.model.net.fusion.features.roles = roles
    return instantiate(config.model if role == "model" else config.teacher.model)


def _ending_at(backbone: Any, stride: int) -> Any:
    """A backbone without the levels beyond a stride in pixels."""
    key = "strides" if "strides" in backbone else "out_features"
    levels = zip((8, 16, 32), backbone[key], strict=True)
    backbone[key] = [level for pixels, level in levels if pixels <= stride]
    return backbone


def with_data(name: str, num_frames: int = NUM_FRAMES) -> Any:
    """A file of ``configs/models`` with the ``data`` keys that it refers to."""
    config = load(name)
    config.data = {"class_names": ["lesion"], "num_frames": num_frames}
    return config


def load(name: str) -> Any:
    """A file of ``configs/models``, which the caller may change."""
    return copy.deepcopy(_read(name))


@functools.cache
def _read(name: str) -> Any:
    from detectron2.config import LazyConfig

    return LazyConfig.load(str(MODELS / f"{name}.py"))


def noise_clip(size: tuple[int, int], num_frames: int = NUM_FRAMES) -> dict[str, Any]:
    """A sample of noise with one lesion per frame, in the format of the loader."""
    import torch
    from detectron2.structures import Boxes, Instances

    height, width = size
    frames = []
    for number in range(num_frames):
        lesion = Instances(size)
        lesion.gt_boxes = Boxes(
            torch.tensor([[0.3, 0.3, 0.6, 0.5]]) * torch.tensor([width, height] * 2)
        )
        lesion.gt_classes = torch.zeros(1, dtype=torch.int64)
        image = torch.randint(0, 256, (3, height, width), dtype=torch.uint8)
        frames.append(
            {"image": image, "height": height, "width": width, "file_name": f"noise {number}"}
            | {"instances": lesion}
        )
    current = num_frames // 2
    return {**frames[current], "clip": frames, "clip_index": current, "seed": 1}


def build_student(name: str, backbone: str, **sizes: Any) -> tuple[Any, Any, Any]:
    """A plain detector, the student with TFD and CQD around it, and its frozen teacher.

    Args:
        name, backbone: see `build`.
        sizes: ``num_frames`` and ``num_queries`` of `build`.
    """
    from detectron2.config import instantiate

    from v2idetr.distillation.student import DistilledStudent

    plain = build(name, "model", backbone, **sizes).train()
    teacher = build(name, "teacher", backbone, **sizes).eval().requires_grad_(False)
    losses = with_data(name).distillation
    built = {key: cast(Any, instantiate(losses[key])) for key in ("cqd", "tfd")}
    student = DistilledStudent(student=plain, losses=built)
    return plain, student.train(), teacher
