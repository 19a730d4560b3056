"""The types of the keys that the program itself reads."""

from __future__ import annotations

from v2idetr.distillation.loss_names import LOSSES

KIND_NAMES: dict[type, str] = {
    dict: "a mapping",
    list: "a list",
    str: "text",
    float: "a number",
    int: "an integer",
    bool: "true or false",
    type(None): "null",
}

# Arguments of L(...) nodes are checked against the signatures of their callables instead.
PROGRAM_KEYS: dict[str, type | tuple[type, ...]] = {
    "train.output_dir": str,
    "train.seed": int,
    "train.device": str,
    "train.stages": list,
    "train.max_iter": int,
    "train.batch_size": int,
    "train.clips_at_once": int,
    "train.amp": str,
    "train.clip_grad_norm": float,
    "train.eval_period": int,
    "train.patience": int,
    "train.cooldown": float,
    "train.checkpoint_period": int,
    "train.log_period": int,
    "train.num_workers": int,
    "train.init_checkpoint": str,
    "train.init_partial": bool,
    "train.best_metric": str,
    "train.deterministic": bool,
    "train.tensorboard": bool,
    "train.find_unused_parameters": bool,
    "optimizer": dict,
    "lr_multiplier": dict,
    "data.class_names": list,
    "data.train.json": str,
    "data.train.image_root": str,
    "data.val.json": str,
    "data.val.image_root": str,
    "data.test": dict,
    "data.num_frames": int,
    "data.window": int,
    "data.sampling": str,
    "data.side": str,
    "data.min_visible": float,
    "data.augmentations.train": list,
    "data.augmentations.test": list,
    "data.on_bad_box": str,
    "data.cache_mib": int,
    "data.negative_share": (float, type(None)),
    "model": dict,
    "evaluation.rules": list,
    "evaluation.coco_ap": bool,
    "evaluation.batch_size": int,
    "evaluation.checkpoint": str,
}
TEACHER_KEYS: dict[str, type | tuple[type, ...]] = {
    "teacher.model": dict,
    "teacher.init_checkpoint": str,
    "teacher.init_partial": bool,
    "teacher.checkpoint": str,
    "teacher.max_iter": (int, type(None)),
    "teacher.batch_size": (int, type(None)),
    "teacher.optimizer": dict,
}
DISTILLATION_KEYS: dict[str, type | tuple[type, ...]] = {
    "distillation.frames": str,
    **{f"distillation.{name}": (dict, type(None)) for name in LOSSES},
}

# Keys that may be null, with the type of their value otherwise. Arguments of L(...) nodes may be
# null where the callable's own signature says so.
OPTIONAL_KEYS: dict[str, type] = {
    key: kinds[0]
    for key, kinds in (PROGRAM_KEYS | TEACHER_KEYS | DISTILLATION_KEYS).items()
    if isinstance(kinds, tuple) and type(None) in kinds
}
