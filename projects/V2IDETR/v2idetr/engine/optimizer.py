"""Optimizers of a model's parameters, and the learning rate of every step."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn
from torch.optim import SGD, AdamW, Optimizer

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class AdamWRecipe:
    """Model -> AdamW with its own learning rates for the backbone and for the slow parameters.

    Attributes:
        lr: of everything that is in no other group.
        backbone_lr: of parameters with `backbone_name` in their name.
        slow_factor: `lr` times this is the rate of the slow parameters.
        slow_names: a parameter whose name contains one of these is slow (Deformable DETR, main.py).
        weight_decay: decoupled, of all groups.
        backbone_name: what names of the pretrained backbone contain; "bottom_up" below an FPN of
            Detectron2, which is new and learns at `lr`.
    """

    lr: float
    backbone_lr: float
    slow_factor: float = 0.1
    slow_names: Sequence[str] = ("sampling_offsets", "reference_points")
    weight_decay: float = 1e-4
    backbone_name: str = "backbone"

    def __call__(self, model: nn.Module) -> AdamW:
        """Every parameter that requires a gradient in exactly one group; the counts are logged.

        Raises:
            ValueError: nothing in the model is trainable.
        """
        rates = {"main": self.lr, "backbone": self.backbone_lr, "slow": self.lr * self.slow_factor}
        groups: dict[str, list[nn.Parameter]] = {name: [] for name in rates}
        frozen = 0
        for name, parameter in model.named_parameters():  # shared parameters come once
            if parameter.requires_grad:
                groups[self._group(name)].append(parameter)
            else:
                frozen += parameter.numel()
        for name, parameters in groups.items():
            count = sum(parameter.numel() for parameter in parameters)
            logger.info("optimizer: %s: %d parameters, lr %g", name, count, rates[name])
        logger.info("optimizer: frozen: %d parameters", frozen)
        if not any(groups.values()):
            raise ValueError("the model has no parameter to train: everything is frozen")
        return AdamW(
            [
                {"params": parameters, "lr": rates[name], "initial_lr": rates[name], "name": name}
                for name, parameters in groups.items()
                if parameters
            ],
            weight_decay=self.weight_decay,
        )

    def _group(self, name: str) -> str:
        if self.backbone_name in name:
            return "backbone"
        return "slow" if any(word in name for word in self.slow_names) else "main"


@dataclass(frozen=True, kw_only=True)
class SGDRecipe:
    """Model -> SGD with momentum, one learning rate for everything.

    Attributes:
        lr, momentum: see torch.optim.SGD.
        weight_decay: coupled, of all parameters.
    """

    lr: float
    momentum: float = 0.9
    weight_decay: float = 1e-4

    def __call__(self, model: nn.Module) -> SGD:
        """All parameters that require a gradient; the counts are logged.

        Raises:
            ValueError: nothing in the model is trainable.
        """
        parameters = [p for p in model.parameters() if p.requires_grad]
        if not parameters:
            raise ValueError("the model has no parameter to train: everything is frozen")
        count, everything = (sum(p.numel() for p in ps) for ps in (parameters, model.parameters()))
        logger.info(
            "optimizer: %d parameters, lr %g; frozen: %d", count, self.lr, everything - count
        )
        group = {"params": parameters, "lr": self.lr, "initial_lr": self.lr, "name": "main"}
        return SGD([group], momentum=self.momentum, weight_decay=self.weight_decay)


def set_learning_rates(optimizer: Optimizer, factor: float) -> float:
    """Set every group to its initial rate times a factor; the rate of the first group."""
    for group in optimizer.param_groups:
        group["lr"] = group["initial_lr"] * factor
    return float(optimizer.param_groups[0]["lr"])
