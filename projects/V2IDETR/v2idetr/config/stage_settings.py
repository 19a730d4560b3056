"""What a config says of its stages: read as plain data, before anything is built.

``stages`` defines them by name, ``train.stages`` says which of them a run trains, in this order::

    settings   the section with max_iter, batch_size, optimizer, init_checkpoint and init_partial;
               what it lacks or has as null is that of `train` (and `optimizer`)
    given      key of a trained file, which replaces the training when it is set; "" for none
    needs      earlier stages by the role that they play, such as {teacher: teacher}
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

from omegaconf import DictConfig

Config = Mapping[str, Any] | DictConfig


def stage_names(config: Config) -> list[str]:
    """All stages that the config defines."""
    return [str(name) for name in config.get("stages") or {}]


def settings_of(config: Config, stage: str) -> str:
    """The section with a stage's settings."""
    return str(config["stages"][stage].get("settings") or "train")


def needs_of(config: Config, stage: str) -> dict[str, str]:
    """Earlier stages by the role that they play."""
    return dict(config["stages"][stage].get("needs") or {})


def given_key(config: Config, stage: str) -> str:
    """Key of the file that replaces a stage's training; "" for none."""
    return str(config["stages"][stage].get("given") or "")


def given_file(config: Config, stage: str) -> str:
    """The file that replaces a stage's training; "" where it is trained."""
    key = given_key(config, stage)
    return str(value_at(config, key) or "") if key else ""


def stages_to_train(config: Config) -> list[str]:
    """The run's stages, without those whose result is given."""
    return [s for s in config["train"]["stages"] if not given_file(config, s)]


def key_of(config: Config, stage: str, name: str) -> str:
    """The key with a setting of a stage: its own section's, or that of `train`."""
    own = f"{settings_of(config, stage)}.{name}"
    return own if value_at(config, own) is not None else f"train.{name}"


def optimizer_key(config: Config, stage: str) -> str:
    """The key with the optimizer of a stage."""
    own = f"{settings_of(config, stage)}.optimizer"
    return own if value_at(config, own) is not None else "optimizer"


def batch_size_key(config: Config, stage: str) -> str:
    """The key with the clips of a step of a stage, over all processes."""
    return key_of(config, stage, "batch_size")


def steps_of(config: Config, stage: str) -> int:
    """How many steps a stage is trained at most."""
    return int(value_at(config, key_of(config, stage, "max_iter")))


def check_stages(config: Config, *, training: bool) -> list[str]:
    """Sentences about stages that do not exist, lack their model, come too late or are in a circle.

    Args:
        config: resolved.
        training: whether anything is trained; an evaluation needs no earlier stage.
    """
    known, chosen = stage_names(config), list(config["train"]["stages"])
    unknown = [stage for stage in chosen if stage not in known]
    if not chosen or unknown:
        near = [n for s in unknown for n in difflib.get_close_matches(str(s), known, n=1)]
        meant = f" Did you mean {near[0]}?" if near else ""
        return [f"train.stages must name some of {', '.join(known)}, but is {chosen}.{meant}"]
    if len(set(chosen)) < len(chosen):
        return [f"train.stages must name each stage once, but is {chosen}."]
    problems = []
    for stage in known:
        for role, need in needs_of(config, stage).items():
            if need not in known:
                problems.append(
                    f"stages.{stage}.needs.{role} is {need}, which is no stage; the config defines "
                    f"{', '.join(known)}."
                )
    if problems:
        return problems
    circle = _circle(config, known)
    if circle:
        return [f"stages need each other in a circle: {' -> '.join(circle)}."]
    needed = [n for s in chosen for n in needs_of(config, s).values()] if training else []
    for stage in dict.fromkeys([*chosen, *needed]):
        model = config["stages"][stage].get("model")
        if isinstance(model, str) and value_at(config, model) is None:
            problems.append(
                f"train.stages={chosen} needs the stage {stage}, but this config has no {model}: "
                "leave such stages out of train.stages, or take a config that has it."
            )
    if problems:
        return problems
    for stage in stages_to_train(config) if training else ():
        earlier = chosen[: chosen.index(stage)]
        for role, need in needs_of(config, stage).items():
            if need in earlier or given_file(config, need):
                continue
            key = given_key(config, need)
            trained = f", or name a trained one, such as {key}=output/my_run/{need}/best.pth"
            problems.append(
                f"train.stages has {stage}, whose {role} is the stage {need}: add {need} to "
                f"train.stages before it{trained if key else ''}."
            )
    return problems


def value_at(config: Any, key: str) -> Any:
    """The value at a dotted key; None where there is none."""
    for part in key.split("."):
        if not isinstance(config, Mapping | DictConfig) or part not in config:
            return None
        config = config[part]
    return config


def _circle(config: Config, names: list[str]) -> list[str]:
    """Stages that need each other, the first one again at the end; [] for none."""

    def follow(path: list[str]) -> list[str]:
        for need in needs_of(config, path[-1]).values():
            if need in path:
                return [*path[path.index(need) :], need]
            found = follow([*path, need])
            if found:
                return found
        return []

    return next((circle for name in names if (circle := follow([name]))), [])
