"""The keys that the program reads: their types, choices and bounds.

Arguments of L(...) nodes are checked against the signatures of their callables instead.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import Any

KIND_NAMES: dict[type, str] = {
    dict: "a mapping",
    list: "a list",
    str: "text",
    float: "a number",
    int: "an integer",
    bool: "true or false",
    type(None): "null",
}
MISSING = object()


@dataclass(frozen=True)
class Kind:
    """Valid values of a key.

    Attributes:
        type: type of the values; an integer is also a number.
        optional: whether null is valid.
        required: whether the key must be there.
        least: smallest valid number.
        words: valid strings; () for any.
        holds: keys that a mapping must hold where it replaces null.
    """

    type: type
    optional: bool = False
    required: bool = True
    least: int | None = None
    words: tuple[str, ...] = ()
    holds: tuple[str, ...] = ()

    def problem(self, key: str, value: Any) -> str | None:
        """Error message for a value of the key, or for `MISSING`; None if it is valid."""
        if self.optional and fits(value, type(None)):
            return None
        if value is MISSING and not self.required:
            return None
        kind = KIND_NAMES[self.type] + " or null" * self.optional
        if value is MISSING:
            return f"{key} is missing; it must be {kind} (see configs/recipes and configs/data)."
        if not fits(value, self.type):
            return f"{key} must be {kind}, but is {value!r} ({type(value).__name__})."
        if self.words and value not in self.words:
            near = difflib.get_close_matches(str(value), self.words, n=1)
            hint = f" Did you mean {near[0]}?" if near else ""
            return f"{key} must be one of {', '.join(self.words)}, but is {value!r}.{hint}"
        if self.least is not None and value is not None and not value >= self.least:  # or NaN
            return f"{key} must be at least {self.least}, but is {value}."
        return None


def fits(value: Any, expected: type) -> bool:
    """Whether a value has a type; true is not an integer, and an integer is a number."""
    return type(value) is expected or (expected is float and type(value) is int)


TEXT, FLAG, LIST, MAPPING, NUMBER = (Kind(kind) for kind in (str, bool, list, dict, float))
AMOUNT, COUNT = Kind(int, least=0), Kind(int, least=1)

PROGRAM_KEYS: dict[str, Kind] = {
    "train.output_dir": TEXT,
    "train.seed": AMOUNT,
    "train.device": Kind(str, words=("auto", "cpu", "cuda")),
    "train.stages": LIST,
    "train.max_iter": COUNT,
    "train.batch_size": COUNT,
    "train.clips_at_once": COUNT,
    "train.amp": Kind(str, words=("off", "bf16", "fp16")),
    "train.clip_grad_norm": Kind(float, least=0),
    "train.eval_period": AMOUNT,
    "train.patience": AMOUNT,
    "train.cooldown": Kind(float, least=0),
    "train.checkpoint_period": COUNT,
    "train.log_period": COUNT,
    "train.num_workers": AMOUNT,
    "train.init_checkpoint": TEXT,
    "train.init_partial": FLAG,
    "train.best_metric": TEXT,
    "train.deterministic": FLAG,
    # Not in configs of runs that were begun before these keys.
    "train.loggers": Kind(list, required=False),
    "train.sample_frames": Kind(int, required=False, least=0),
    "train.find_unused_parameters": FLAG,
    "stages": MAPPING,
    "optimizer": MAPPING,
    "lr_multiplier": MAPPING,
    "data.class_names": LIST,
    "data.val": Kind(dict, optional=True, holds=("json", "image_root")),
    "data.test": MAPPING,
    "data.num_frames": COUNT,
    "data.window": AMOUNT,
    "data.sampling": Kind(str, words=("random", "fixed")),
    "data.side": Kind(str, words=("both", "past")),
    "data.min_visible": NUMBER,
    "data.augmentations.train": LIST,
    "data.augmentations.test": LIST,
    "data.on_bad_box": Kind(str, words=("raise", "clip", "drop")),
    "data.cache_mib": AMOUNT,
    "data.negative_share": Kind(float, optional=True),
    "evaluation.rules": LIST,
    "evaluation.coco_ap": FLAG,
    "evaluation.batch_size": COUNT,
    "evaluation.checkpoint": Kind(str, words=("best", "final")),
}
# Keys of a section with the settings of a stage, such as `teacher`.
SECTION_KEYS: dict[str, Kind] = {
    "init_checkpoint": TEXT,
    "init_partial": FLAG,
    "max_iter": Kind(int, optional=True, least=1),
    "batch_size": Kind(int, optional=True, least=1),
    "eval_period": Kind(int, optional=True, required=False, least=0),
    "optimizer": MAPPING,
}
FRAMES = Kind(str, words=("current", "all"))
LOSS = Kind(dict, optional=True, holds=("_target_",))


def distillation_kind(name: str) -> Kind:
    """Valid values of a key below `distillation`, where all but one are losses."""
    return FRAMES if name == "frames" else LOSS


def kind_unless_null(key: str) -> Kind | None:
    """Valid values of a key that may be null; None for all other keys."""
    section, _, name = key.rpartition(".")
    kind = PROGRAM_KEYS.get(key)
    if section == "distillation":
        kind = distillation_kind(name)
    elif kind is None and section and "." not in section:
        kind = SECTION_KEYS.get(name)
    return kind if kind is not None and kind.optional else None


# Words of `train.loggers`, and the packages that they need.
LOGGERS = {"tensorboard": "tensorboard", "wandb": "wandb", "mlflow": "mlflow"}

# Smallest valid values of arguments of L(...) nodes, by the name of the argument.
LEAST_ARGUMENTS: dict[str, int] = {
    **dict.fromkeys(("lr", "backbone_lr", "slow_factor", "weight_decay", "weight"), 0),
    **dict.fromkeys(("num_queries", "num_encoder_layers", "num_decoder_layers", "score_topk"), 1),
}
