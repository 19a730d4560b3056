"""Checks before anything is built: missing keys, types, relations between keys."""

from __future__ import annotations

import difflib
import importlib.util
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from v2idetr.config.keys import walk
from v2idetr.config.run_keys import (
    LEAST_ARGUMENTS,
    LOGGERS,
    MAPPING,
    MISSING,
    PROGRAM_KEYS,
    SECTION_KEYS,
    TEXT,
    Kind,
    distillation_kind,
)
from v2idetr.config.stage_settings import (
    batch_size_key,
    check_stages,
    eval_period_key,
    eval_period_of,
    given_key,
    key_of,
    model_key,
    needs_of,
    settings_of,
    split_of,
    stage_names,
    stages_to_train,
    steps_of,
    value_at,
)
from v2idetr.data.reference_sampler import WindowSampler
from v2idetr.evaluation.rule_names import RULE_NAMES
from v2idetr.evaluation.table import RESERVED

COCO_METRICS = ("AP", "AP50", "AP75")


def validate_config(
    config: dict[str, Any],
    *,
    world_size: int = 1,
    has_gpu: bool = False,
    training: bool = True,
) -> list[str]:
    """Sentences about missing, mistyped and contradictory keys of a resolved config.

    Args:
        config: resolved plain config.
        world_size: number of processes over all machines.
        has_gpu: whether this machine has a GPU.
        training: whether anything is trained; batch sizes, mixed precision and initial weights are
            checked only then.
    """
    expected = PROGRAM_KEYS | _keys_of_stages(config) | _keys_of_splits(config)
    if isinstance(config.get("distillation"), dict):
        names = {"frames", *config["distillation"]}
        expected |= {f"distillation.{name}": distillation_kind(name) for name in sorted(names)}
    found = [kind.problem(key, value_at(config, key, MISSING)) for key, kind in expected.items()]
    problems = [problem for problem in found if problem is not None]
    for key, value in walk(config):
        least = LEAST_ARGUMENTS.get(key.rpartition(".")[2])
        if least is not None and isinstance(value, int | float) and not value >= least:
            problems.append(f"{key} must be at least {least}, but is {value}.")
        elif isinstance(value, float) and math.isnan(value) and key not in expected:
            problems.append(f"{key} must be a number, but is {value}.")
    if not problems:
        problems = check_stages(config, training=training)
    if not problems:  # the relations read keys that must be there and have their type
        relations: tuple[Callable[[dict[str, Any], list[str]], None], ...] = (
            _check_classes,
            _check_splits,
            _check_evaluation,
        )
        for relation in relations:
            relation(config, problems)
        if config["train"]["device"] == "cuda" and not has_gpu:
            problems.append("train.device=cuda, but torch finds no GPU here; use auto or cpu.")
        if training:
            _check_frames(config, problems)
            _check_files(config, problems)
            _check_batches(config, world_size, problems)
            _check_precision(config["train"], has_gpu, problems)
            _check_loggers(config["train"].get("loggers", []), problems)
        _check_clips(config, problems)
    return problems


def _keys_of_stages(config: dict[str, Any]) -> dict[str, Kind]:
    """Keys that the chosen stages, and those that they need, read; not of missing sections."""
    expected: dict[str, Kind] = {}
    for stage in _looked_at(config):
        node = config["stages"][stage]
        section, given = settings_of(config, stage), given_key(config, stage)
        if section in config and section != "train":
            expected |= {f"{section}.{name}": kind for name, kind in SECTION_KEYS.items()}
        if given.partition(".")[0] in config:
            expected[given] = TEXT
        model = node.get("model")
        if isinstance(model, str) and model.partition(".")[0] in config:
            expected[model] = MAPPING
    return expected


def _keys_of_splits(config: dict[str, Any]) -> dict[str, Kind]:
    """Files of the splits that the chosen stages are trained on, and of the validation split."""
    used = dict.fromkeys([split_of(config, stage) for stage in _looked_at(config)] or ["train"])
    if value_at(config, "data.val", MISSING) is not None:
        used["val"] = None
    return {f"data.{split}.{name}": TEXT for split in used for name in ("json", "image_root")}


def _looked_at(config: dict[str, Any]) -> list[str]:
    """The chosen stages, and those that they need, as far as they are defined."""
    chosen = config.get("train", {}).get("stages")
    defined = [name for name in stage_names(config) if isinstance(config["stages"][name], dict)]
    chosen = [s for s in defined if s in chosen] if isinstance(chosen, list) else []
    needed = {n for s in chosen for n in needs_of(config, s).values()}
    return [name for name in defined if name in chosen or name in needed]


def _check_frames(config: dict[str, Any], problems: list[str]) -> None:
    """`distillation.frames=all` needs a teacher that detects in all frames of a clip, T > 1."""
    needs = [needs_of(config, stage) for stage in config["train"]["stages"]]
    teachers = {need["teacher"] for need in needs if "teacher" in need}
    if not teachers or value_at(config, "distillation.frames") != "all":
        return
    T = config["data"]["num_frames"]
    if T == 1:
        problems.append(
            "distillation.frames=all needs clips of several frames, but data.num_frames is 1."
        )
        return
    for teacher in sorted(teachers):
        key = f"{model_key(config, teacher)}.num_frames"
        watched = value_at(config, key, 1)
        if watched != T:
            problems.append(
                f"distillation.frames=all needs a teacher that sees every frame of a clip, but "
                f"{key} is {watched} and data.num_frames {T}."
            )


def _check_classes(config: dict[str, Any], problems: list[str]) -> None:
    names = config["data"]["class_names"]
    are_words = all(isinstance(name, str) for name in names)
    detects = any("model" in config["stages"][stage] for stage in _looked_at(config))
    if not (names or not detects) or not are_words or len(set(names)) != len(names):
        problems.append(f"data.class_names must be distinct names, one per class, but is {names}.")
    for key in dict.fromkeys(model_key(config, stage) for stage in _looked_at(config)):
        given = value_at(config, f"{key}.class_names")
        if given is not None and given != names:
            problems.append(f"{key}.class_names is {given}, but data.class_names is {names}.")


def _check_splits(config: dict[str, Any], problems: list[str]) -> None:
    for key, period in _eval_periods(config).items():
        if config["data"]["val"] is None and period:
            problems.append(
                f"{key} evaluates on the validation split, but data.val is null: name one, or set "
                f"{key}=0."
            )
    for name, split in config["data"]["test"].items():
        if name in RESERVED:
            problems.append(f"data.test: {name!r} is a reserved name; rename the test split.")
        paths = split if isinstance(split, dict) else {}
        are_words = all(isinstance(path, str) for path in paths.values())
        if set(paths) != {"json", "image_root"} or not are_words:
            problems.append(
                f"data.test.{name} must be {{json: ..., image_root: ...}}, but is {split!r}."
            )


def _check_clips(config: dict[str, Any], problems: list[str]) -> None:
    data = config["data"]
    try:
        WindowSampler(**{key: data[key] for key in ("num_frames", "window", "sampling", "side")})
    except ValueError as error:
        problems.append(str(error))


def _check_evaluation(config: dict[str, Any], problems: list[str]) -> None:
    train, evaluation = config["train"], config["evaluation"]
    metric, rules = train["best_metric"], evaluation["rules"]
    known = [*COCO_METRICS] if evaluation["coco_ap"] else []
    known += [f"{rule}/{name}" for rule in rules for name in ("f1", "precision", "recall")]
    unknown = [rule for rule in rules if rule not in RULE_NAMES]
    if unknown:
        problems.append(f"evaluation.rules has {unknown}; the rules are {', '.join(RULE_NAMES)}.")
    elif metric not in known:
        problems.append(
            f"train.best_metric is {metric!r}, which this evaluation does not compute; it computes "
            f"{', '.join(known)}."
        )
    never = [key for key, period in _eval_periods(config).items() if not period]
    if train["patience"] and never:
        problems.append(
            f"train.patience={train['patience']} needs evaluations during training, but "
            f"{never[0]}=0 disables them; set it to a number of steps."
        )
    if not math.isfinite(train["cooldown"]):
        problems.append(
            f"train.cooldown must be a number of at least 0, but is {train['cooldown']}."
        )
    elif train["patience"] and not never:
        problems += _check_patience(config)
    if evaluation["checkpoint"] == "best" and never:
        problems.append(
            f"evaluation.checkpoint=best needs evaluations during training: set {never[0]} above "
            "0, or evaluation.checkpoint=final."
        )


def _eval_periods(config: dict[str, Any]) -> dict[str, int]:
    """Steps between evaluations of the run's stages, by key."""
    stages = config["train"]["stages"]
    return {eval_period_key(config, stage): eval_period_of(config, stage) for stage in stages}


def latest_fall(steps: int, cooldown: float) -> int:
    """Latest step at which the decay of the learning rate can start.

    Args:
        steps: maximum number of training steps; the decay ends with the last one.
        cooldown: length of the decay over the steps before it, see ``early_stopping``.
    """
    return max(1, math.ceil(steps / (1 + cooldown)))


def _check_patience(config: dict[str, Any]) -> list[str]:
    """Early stopping needs `patience` + 1 evaluations before the latest start of the decay."""
    train, problems = config["train"], []
    for stage in stages_to_train(config):
        needed = (train["patience"] + 1) * eval_period_of(config, stage)
        steps = steps_of(config, stage)
        latest = latest_fall(steps, train["cooldown"])
        if needed > latest:
            problems.append(
                f"train.patience={train['patience']} can stop training after {needed} steps "
                f"({train['patience'] + 1} evaluations) at the earliest, but of {steps} steps the "
                f"learning rate decays from step {latest} on: raise "
                f"{key_of(config, stage, 'max_iter')}, or lower {eval_period_key(config, stage)} "
                "or train.patience."
            )
    return list(dict.fromkeys(problems))


def _check_files(config: dict[str, Any], problems: list[str]) -> None:
    trained = stages_to_train(config)
    sections = sorted({settings_of(config, stage) for stage in trained}, key="train".__ne__)
    keys = [f"{section}.init_checkpoint" for section in sections]
    keys += [key for s in _looked_at(config) if (key := given_key(config, s))]
    missing: dict[str, str] = {}
    for key in keys:
        path = value_at(config, key)
        if path and not Path(path).is_file():
            missing.setdefault(path, key)  # by default the teacher's file is the detector's
    problems += [f"{key}: there is no file {path}." for path, key in missing.items()]
    for section in sections:
        key = f"{section}.init_checkpoint"
        if value_at(config, f"{section}.init_partial") and not value_at(config, key):
            problems.append(f"{section}.init_partial is true, but {key} names no file.")
    for stage in trained:
        key = f"{settings_of(config, stage)}.init_checkpoint"
        replaced = {"backbone", "initial"} & needs_of(config, stage).keys()
        if "model" in config["stages"][stage] and value_at(config, key):
            problems += [
                f"{key} names initial weights of the stage {stage}, and stages.{stage}.needs."
                f"{role} replaces them by those of an earlier stage: leave one of both out."
                for role in sorted(replaced)
            ]
    given = config["train"]["init_checkpoint"]
    if given and trained and not any(value_at(config, f"{s}.init_checkpoint") for s in sections):
        own = ", ".join(f"{section}.init_checkpoint" for section in sections)
        problems.append(
            f"train.init_checkpoint={given} is not used by {', '.join(trained)}: set {own} to "
            "start from it, or leave train.init_checkpoint empty."
        )


def _check_batches(config: dict[str, Any], world_size: int, problems: list[str]) -> None:
    sizes = {batch_size_key(config, stage): stage for stage in stages_to_train(config)}
    for key in sizes:
        size = value_at(config, key)
        if size % world_size or size < world_size:
            problems.append(
                f"{key} is {size}, which {world_size} processes cannot share equally: set {key} to "
                f"a multiple of {world_size}, such as {math.ceil(size / world_size) * world_size}, "
                f"or --num-gpus to a divisor of {size}."
            )


def _check_loggers(names: list[Any], problems: list[str]) -> None:
    if len(set(map(str, names))) < len(names):
        problems.append(f"train.loggers must name each logger once, but is {names}.")
    for name in names:
        if not isinstance(name, str) or name not in LOGGERS:
            near = difflib.get_close_matches(str(name), LOGGERS, n=1)
            hint = f" Did you mean {near[0]}?" if near else ""
            problems.append(
                f"train.loggers can name {', '.join(LOGGERS)} (metrics.jsonl is always written), "
                f"but has {name!r}.{hint}"
            )
        elif not _is_installed(LOGGERS[name]):
            problems.append(
                f"train.loggers has {name}, which is not installed: python -m pip install "
                f"{LOGGERS[name]}, or leave it out."
            )


def _is_installed(package: str) -> bool:
    """Whether a package can be imported; a folder of its name, such as ./wandb, is none."""
    found = importlib.util.find_spec(package)
    return found is not None and found.origin is not None


def _check_precision(train: dict[str, Any], has_gpu: bool, problems: list[str]) -> None:
    if train["amp"] == "fp16" and (train["device"] == "cpu" or not has_gpu):
        problems.append("train.amp=fp16 needs a GPU; on a CPU use bf16 or off.")
