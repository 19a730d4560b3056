"""What was imported -> sizes, steps and memory of a config, each with its reason.

    facts_of    splits as written -> what the suggestion is made of
    suggest     facts and the machine -> keys of a config, and the reason for each
    as_yaml     the same as a config file for train_net.py

A suggestion is a start that was measured on other data, see RESULTS.md; it is no optimum.
"""

from __future__ import annotations

import json
import math
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

FINEST_STRIDE = 8  # of models/deformable_detr_small.py, px
FEWEST_CELLS = 2  # of this stride, along a side of the smallest lesions
SMALL_SHARE = 0.05  # lesions that may be smaller
SIDE_DIVISOR = 16  # sides of the frames, px: no padding then, see `model.size_divisor`
SHORT_SIDES = (96, 256, 480)  # px: at least; at most without a GPU; at most with one
# Measured on 297 frames (400 steps of 8 were too few, 2,000 enough), and the paper's on SUN-SEG.
FEW, MANY = (297, 54.0), (19_544, 12.0)  # training frames, epochs
FEWEST_STEPS, MOST_STEPS = 400, 30_000
EVALUATIONS = 10
PATIENCE = 4  # evaluations, as the controls in RESULTS.md
BATCH, TEACHER_BATCH = 16, 8  # frames; clips of three frames, as the demo
FRAMES_OF_A_CLIP = 3
WINDOW_S = 1 / 3  # as the paper's 10 frames at 30 Hz
# Peak of a training process, small model, teacher, on a CPU: 1.2 GiB, and 1.4 to 1.8 GiB for a
# megapixel of frames (128 x 96 to 384 x 288 px, 1 to 8 clips of three frames).
PROCESS_GIB, GIB_OF_A_MEGAPIXEL = 1.2, 2.0
MEMORY_SHARE = 0.5  # of what is available
QUERIES = 30  # of the small models
TFD_CELLS, TFD_WEIGHT, TFD_POWER = 30, 0.3, 0.56  # see projects/V2IDETR/README.md, lambda_bk


@dataclass(frozen=True)
class Facts:
    """What a suggestion is made of.

    Attributes:
        class_names: names of the classes.
        sizes: number of training frames by (width, height), px.
        box_shares: root of box area by the frame's shorter side, for each training box.
        most_boxes: largest number of boxes on one frame.
        frame_rate: median of the videos', Hz; None if unknown.
        step: usual distance of labelled frames.
    """

    class_names: list[str]
    sizes: Counter[tuple[int, int]]
    box_shares: list[float]
    most_boxes: int
    frame_rate: float | None
    step: int

    @property
    def num_frames(self) -> int:
        """Training frames."""
        return sum(self.sizes.values())


@dataclass(frozen=True)
class Machine:
    """Memory for a training, GiB, None if unknown, and whether it is a GPU's."""

    memory_gib: float | None
    has_gpu: bool


@dataclass(frozen=True)
class Value:
    """A key of a config with its value and the reason."""

    key: str
    value: Any
    reason: str = ""


def facts_of(train: Mapping[str, Any], step: int) -> Facts:
    """Facts of the training split, a COCO-VID file's content."""
    frames = {image["id"]: image for image in train["images"]}
    shares = []
    for annotation in train["annotations"]:
        frame, (_, _, w, h) = frames[annotation["image_id"]], annotation["bbox"]
        shares.append(math.sqrt(w * h) / min(frame["width"], frame["height"]))
    rates = [video["frame_rate"] for video in train["videos"] if video.get("frame_rate")]
    on_frames = Counter(annotation["image_id"] for annotation in train["annotations"])
    return Facts(
        class_names=[category["name"] for category in train["categories"]],
        sizes=Counter((frame["width"], frame["height"]) for frame in frames.values()),
        box_shares=shares,
        most_boxes=max(on_frames.values(), default=0),
        frame_rate=median(rates) if rates else None,
        step=step,
    )


def suggest(facts: Facts, machine: Machine, *, ultrasound: bool = False) -> list[Value]:
    """Keys of a config on recipes/small.py, models/deformable_detr_small.py and data/own.py.

    Args:
        facts: see `facts_of`.
        machine: where it is to be trained.
        ultrasound: no flips upside down and no changes of color.
    """
    width, height, size_reason = image_size(facts, machine)
    steps, steps_reason = training_steps(facts)
    clips, clips_reason = clips_at_once(width, height, machine)
    window, window_reason = clip_window(facts)
    cells = math.ceil(width / 32) * math.ceil(height / 32)
    period = max(steps // EVALUATIONS, 1)
    queries = max(QUERIES, 2 * facts.most_boxes)
    values = [
        Value("data.class_names", facts.class_names),
        Value("data.window", window, window_reason),
        Value("data.augmentations", augmentations(width, height, ultrasound), size_reason),
        Value("model.size_divisor", SIDE_DIVISOR, f"{width} x {height} px have no padding then"),
        Value("model.net.num_classes", len(facts.class_names)),
        Value("train.max_iter", steps, steps_reason),
        Value(
            "train.eval_period",
            period,
            f"{PATIENCE} evaluations in a row without a better AP50 end a training early",
        ),
        Value("train.patience", PATIENCE),
        Value("train.batch_size", BATCH),
        Value("train.clips_at_once", clips, clips_reason),
        Value(
            "teacher.batch_size",
            TEACHER_BATCH,
            f"clips: {TEACHER_BATCH * FRAMES_OF_A_CLIP} labelled frames a step",
        ),
        Value(
            "distillation.tfd.weight",
            round(min(1.0, TFD_WEIGHT * (cells / TFD_CELLS) ** TFD_POWER), 2),
            f"maps of stride 32 have {cells} cells here",
        ),
    ]
    if queries > QUERIES:
        reason = f"twice the {facts.most_boxes} lesions of the fullest frame"
        values.append(Value("model.net.num_queries", queries, reason))
        values.append(Value("model.score_topk", max(queries, 100)))
    return values


def image_size(facts: Facts, machine: Machine) -> tuple[int, int, str]:
    """Width and height of the frames in training, px, and the reason."""
    (frame_w, frame_h), _ = facts.sizes.most_common(1)[0]
    least, *most = SHORT_SIDES
    short = min(frame_w, frame_h)
    small = float(np.quantile(facts.box_shares, SMALL_SHARE))
    wanted = FEWEST_CELLS * FINEST_STRIDE / small
    bound = min(max(short, least), most[machine.has_gpu])
    width, height = _least_distorted(frame_w, frame_h, min(max(wanted, least), bound), least, bound)
    side = min(width, height)
    cells = small * side / FINEST_STRIDE
    reason = (
        f"{width} x {height} px: {1 - SMALL_SHARE:.0%} of the lesions are {cells:.1f} cells of "
        f"stride {FINEST_STRIDE} wide or more; {FEWEST_CELLS} are asked for"
    )
    if side < wanted - SIDE_DIVISOR:
        why = "the frames are no larger" if bound >= short else "larger ones are slow "
        if bound < short:
            why += "without a GPU" if not machine.has_gpu else "and take memory"
        reason += f", which {_rounded(wanted)} px would give, but {why}"
    others = [size for size in facts.sizes if _aspect_differs(size, (frame_w, frame_h))]
    if others:
        share = sum(facts.sizes[size] for size in others) / facts.num_frames
        reason += f"; {share:.0%} of the frames have another shape and are stretched to this one"
    return width, height, reason


def _least_distorted(
    frame_w: int, frame_h: int, wished: int | float, least: int, bound: int
) -> tuple[int, int]:
    """Multiples of SIDE_DIVISOR with nearly the frame's shape.

    The short side is near the wished one, not below the least and not above the bound.
    """
    near = _rounded(wished)
    sizes = []
    for side in (near, near + SIDE_DIVISOR, near - SIDE_DIVISOR):
        if least <= side <= bound:
            scale = side / min(frame_w, frame_h)
            sizes.append((_rounded(frame_w * scale), _rounded(frame_h * scale)))
    return min(sizes, key=lambda size: abs(math.log(size[0] / size[1] * frame_h / frame_w)))


def _rounded(side: int | float) -> int:
    return round(side / SIDE_DIVISOR) * SIDE_DIVISOR


def _aspect_differs(one: tuple[int, int], other: tuple[int, int]) -> bool:
    return abs(math.log(one[0] / one[1] * other[1] / other[0])) > math.log(1.05)


def training_steps(facts: Facts) -> tuple[int, str]:
    """Steps of the students, and the reason."""
    (few, most_epochs), (many, fewest_epochs) = FEW, MANY
    power = math.log(fewest_epochs / most_epochs) / math.log(many / few)
    epochs = most_epochs * (facts.num_frames / few) ** power
    epochs = min(max(epochs, fewest_epochs), 2 * most_epochs)
    steps = epochs * facts.num_frames / BATCH
    steps = int(min(max(round(steps, -1 if steps < 1000 else -2), FEWEST_STEPS), MOST_STEPS))
    seen = steps * BATCH / facts.num_frames
    return steps, f"{seen:.0f} times the {facts.num_frames} training frames, {BATCH} a step"


def clips_at_once(width: int, height: int, machine: Machine) -> tuple[int, str]:
    """Clips that are computed together, and the reason."""
    a_clip = GIB_OF_A_MEGAPIXEL * width * height * FRAMES_OF_A_CLIP / 1e6
    if machine.memory_gib is None:
        return 1, f"a teacher's clip takes {a_clip:.1f} GiB"
    room = machine.memory_gib * MEMORY_SHARE - (0 if machine.has_gpu else PROCESS_GIB)
    number = min(max(int(room / a_clip), 1), BATCH)
    kind = "GPU memory" if machine.has_gpu else "memory"
    free = f"{machine.memory_gib:.0f} GiB of {kind} are free"
    return number, f"a teacher's clip takes some {a_clip:.2f} GiB, {free}"


def clip_window(facts: Facts) -> tuple[int, str]:
    """Largest distance of reference frames in frames of the video, and the reason."""
    rate = facts.frame_rate or 25.0
    window = max(round(rate * WINDOW_S), 1)
    reason = f"a third of a second at {rate:.4g} Hz"
    if facts.frame_rate is None:
        reason += " (not known: --frame-rate says it)"
    if window < 2 * facts.step:
        window = 2 * facts.step
        reason = f"two labelled frames on each side, which are {facts.step} frames apart"
    return window, reason


def augmentations(width: int, height: int, ultrasound: bool) -> dict[str, list[dict[str, Any]]]:
    """``data.augmentations``."""
    module = "v2idetr.data.augmentation"
    size = {"width": width, "height": height}
    color = {"saturation": 0.0, "hue": 0.0} if ultrasound else {}
    train: list[dict[str, Any]] = [{"_target_": f"{module}.horizontal_flip"}]
    if not ultrasound:
        train.append({"_target_": f"{module}.vertical_flip"})
    train.append({"_target_": f"{module}.ScaleJitter", **size})
    train.append({"_target_": f"{module}.color_jitter", **color})
    return {"train": train, "test": [{"_target_": f"{module}.resize_fixed", **size}]}


def as_yaml(
    values: Sequence[Value], *, path: Path, configs: Path, data: Path, image_root: Path, run: str
) -> str:
    """The config file's text.

    Args:
        values: see `suggest`.
        path: where the file will be.
        configs: folder configs/ of this project.
        data: folder of train.json, val.json and test.json.
        image_root: folder that their file names are relative to.
        run: folder of the run.
    """
    bases = ("recipes/small.py", "models/deformable_detr_small.py", "data/own.py")
    relative = [os.path.relpath(configs / base, path.parent) for base in bases]
    own = [Value(f"data.{s}", _split(data, s, image_root)) for s in ("train", "val")]
    own.append(Value("data.test", {"test": _split(data, "test", image_root)}))
    tree: dict[str, Any] = {}
    for value in (*own, *values, Value("train.output_dir", run)):
        *parents, name = value.key.split(".")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[name] = value
    text = [
        "# Suggested by import_labels.py: a start, see docs/own_data.md. Train with",
        f"#     python train_net.py --config-file {path}",
        f"_base_: {json.dumps(relative)}",
    ]
    for section, node in tree.items():
        text += ["", f"{section}:", *_lines(node, "  ")]
    return "\n".join(text) + "\n"


def _split(data: Path, split: str, image_root: Path) -> dict[str, str]:
    return {"json": str(data / f"{split}.json"), "image_root": str(image_root)}


def _lines(node: Mapping[str, Any], indent: str) -> list[str]:
    """YAML lines; JSON is YAML, and quotes what has to be."""
    lines = []
    for name, value in node.items():
        if isinstance(value, Value):
            lines += [f"{indent}# {value.reason}"] if value.reason else []
            lines.append(f"{indent}{name}: {json.dumps(value.value, ensure_ascii=False)}")
        else:
            lines += [f"{indent}{name}:", *_lines(value, f"{indent}  ")]
    return lines
