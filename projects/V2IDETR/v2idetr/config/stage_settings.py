"""Settings of the stages of a config, read as plain data before anything is built.

``stages`` defines stages by name, ``train.stages`` lists those of a run, in order::

    settings   section with max_iter, batch_size, optimizer, init_checkpoint, init_partial and, if
               it is not that of `train`, eval_period; or `train` (and `optimizer`), whose numbers
               also stand in for null ones
    given      key of a checkpoint that replaces the training if it is set; "" for none
    needs      earlier stages by role, such as {teacher: teacher}
    split      key below `data` of the frames that it is trained on; `train` by default
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

from omegaconf import DictConfig

Config = Mapping[str, Any] | DictConfig

EVALUATION = "evaluation"  # folder in that of a run where --eval-only writes


def stage_names(config: Config) -> list[str]:
    """Names of all stages that the config defines."""
    return [str(name) for name in config.get("stages") or {}]


def settings_of(config: Config, stage: str) -> str:
    """Name of the section with a stage's settings."""
    return str(config["stages"][stage].get("settings") or "train")


def model_key(config: Config, stage: str) -> str:
    """Key of the detector that a stage trains."""
    return str(config["stages"][stage].get("model") or "model")


def needs_of(config: Config, stage: str) -> dict[str, str]:
    """Earlier stages that a stage needs, by role."""
    return dict(config["stages"][stage].get("needs") or {})


def split_of(config: Config, stage: str) -> str:
    """Key below `data` of the split that a stage is trained on."""
    return str(config["stages"][stage].get("split") or "train")


def given_key(config: Config, stage: str) -> str:
    """Key of the checkpoint that replaces a stage's training; "" for none."""
    return str(config["stages"][stage].get("given") or "")


def given_file(config: Config, stage: str) -> str:
    """The checkpoint that replaces a stage's training; "" if the stage is trained."""
    key = given_key(config, stage)
    return str(value_at(config, key) or "") if key else ""


def stages_to_train(config: Config) -> list[str]:
    """The run's stages without those that a given checkpoint replaces."""
    return [s for s in config["train"]["stages"] if not given_file(config, s)]


def key_of(config: Config, stage: str, name: str) -> str:
    """Key of a setting of a stage: in its own section, else in `train`."""
    own = f"{settings_of(config, stage)}.{name}"
    return own if value_at(config, own) is not None else f"train.{name}"


def optimizer_key(config: Config, stage: str) -> str:
    """Key of the optimizer of a stage."""
    own = f"{settings_of(config, stage)}.optimizer"
    return own if value_at(config, own) is not None else "optimizer"


def batch_size_key(config: Config, stage: str) -> str:
    """Key of the batch size of a stage (clips per step over all processes)."""
    return key_of(config, stage, "batch_size")


def steps_of(config: Config, stage: str) -> int:
    """Maximum number of training steps of a stage."""
    return int(value_at(config, key_of(config, stage, "max_iter")))


def eval_period_key(config: Config, stage: str) -> str:
    """Key of the number of steps between evaluations of a stage."""
    return key_of(config, stage, "eval_period")


def eval_period_of(config: Config, stage: str) -> int:
    """Steps between evaluations of a stage on the validation split; 0 for none."""
    return int(value_at(config, eval_period_key(config, stage)))


def check_stages(config: Config, *, training: bool) -> list[str]:
    """Error messages about stages: unknown, without a model, in the wrong order, in a circle.

    Args:
        config: resolved config.
        training: whether anything is trained; an evaluation needs no earlier stage.
    """
    known, chosen = stage_names(config), list(config["train"]["stages"])
    if malformed := _malformed(config, known):
        return [malformed]
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
        node = config["stages"][stage]
        for name in ("settings", "given"):
            if node.get(name) and value_at(config, node[name]) is None:
                problems.append(
                    f"stages.{stage}.{name} is {node[name]}, which is no key of the config."
                )
        model = node.get("model")
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


def _malformed(config: Config, known: list[str]) -> str:
    """What is wrong with the definition of a stage; "" if nothing is."""
    for stage in known:
        node = config["stages"][stage]
        if not isinstance(node, Mapping | DictConfig):
            return f"stages.{stage} must be a mapping with a _target_, but is {node!r}."
        if not isinstance(node.get("needs") or {}, Mapping | DictConfig):
            return (
                f"stages.{stage}.needs must name stages by role, such as {{teacher: teacher}}, but "
                f"is {node['needs']!r}."
            )
        if stage == EVALUATION:
            return f"stages.{stage}: the folder of this name is --eval-only's; rename the stage."
    return ""


def value_at(config: Any, key: str, default: Any = None) -> Any:
    """The value at a dotted key; `default` where there is none."""
    for part in key.split("."):
        if not isinstance(config, Mapping | DictConfig) or part not in config:
            return default
        config = config[part]
    return config


def _circle(config: Config, names: list[str]) -> list[str]:
    """A cycle of stages, with its first one repeated at the end; [] for none."""

    def follow(path: list[str]) -> list[str]:
        for need in needs_of(config, path[-1]).values():
            if need in path:
                return [*path[path.index(need) :], need]
            found = follow([*path, need])
            if found:
                return found
        return []

    return next((circle for name in names if (circle := follow([name]))), [])
