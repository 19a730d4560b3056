"""The stages of a config, tied to those that they need."""

from __future__ import annotations

import difflib

from omegaconf import DictConfig

from v2idetr.config.load import build
from v2idetr.engine.stage import Stage, StageModels


def resolve_stages(config: DictConfig) -> dict[str, Stage]:
    """The stages that a config defines, tied to those that they need.

    Raises:
        ValueError: one of them is no :class:`Stage`.
    """
    stages: dict[str, Stage] = {}
    for name in config.stages:
        stage = build(config, f"stages.{name}")
        if not isinstance(stage, Stage):
            raise ValueError(f"stages.{name}: {type(stage).__name__} is no Stage.")
        stage.name = str(name)
        stages[stage.name] = stage
    for stage in stages.values():
        for role in stage.needs:
            if role not in stage.roles:
                raise ValueError(_no_such_role(stage, role))
        stage.earlier = {role: stages[need] for role, need in stage.needs.items()}
    return stages


def _no_such_role(stage: Stage, role: str) -> str:
    kind, key = type(stage).__name__, f"stages.{stage.name}.needs"
    if not stage.roles:
        return f"{key}.{role}: {kind} needs no earlier stage; remove it."
    near = difflib.get_close_matches(role, stage.roles, n=1)
    hint = f" Did you mean {near[0]}?" if near else ""
    return f"{key}.{role}: {kind} has no such role, only {', '.join(stage.roles)}.{hint}"


def build_stage(config: DictConfig, name: str, *, pretrained: bool = True) -> StageModels:
    """The models of a stage, see :meth:`Stage.build`."""
    return resolve_stages(config)[name].build(config, pretrained=pretrained)
