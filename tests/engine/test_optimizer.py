"""Every trainable parameter has one learning rate, and it is the right one at every step."""

from __future__ import annotations

import logging

import pytest
import torch
from fvcore.common.param_scheduler import MultiStepParamScheduler
from torch import nn

from v2idetr.engine.optimizer import AdamWRecipe, set_learning_rates

RECIPE = AdamWRecipe(lr=1e-4, backbone_lr=1e-5, weight_decay=1e-4)


def model() -> nn.Module:
    net = nn.Module()
    net.backbone = nn.Linear(2, 3)
    net.attention = nn.Module()
    net.attention.sampling_offsets = nn.Linear(2, 2)
    net.reference_points = nn.Linear(2, 2)
    net.head = nn.Linear(4, 1)
    net.same_head = net.head
    net.frozen = nn.Linear(5, 5).requires_grad_(False)
    return net


def test_groups_have_their_rates_and_every_parameter_comes_once(caplog) -> None:
    net = model()
    with caplog.at_level(logging.INFO, "v2idetr"):
        optimizer = RECIPE(net)
    rates = {group["name"]: group["lr"] for group in optimizer.param_groups}
    assert rates == pytest.approx({"main": 1e-4, "backbone": 1e-5, "slow": 1e-5})
    sizes = {g["name"]: sum(p.numel() for p in g["params"]) for g in optimizer.param_groups}
    assert sizes == {"main": 5, "backbone": 9, "slow": 12}
    parameters = [id(p) for group in optimizer.param_groups for p in group["params"]]
    assert len(parameters) == len(set(parameters))
    assert all(group["weight_decay"] == 1e-4 for group in optimizer.param_groups)
    assert "slow: 12 parameters, lr 1e-05" in caplog.text
    assert "frozen: 30 parameters" in caplog.text


def test_a_model_without_trainable_parameters_is_an_error() -> None:
    with pytest.raises(ValueError, match="everything is frozen"):
        RECIPE(nn.Linear(1, 1).requires_grad_(False))


def test_the_rate_drops_at_the_tenth_of_twelve_epochs() -> None:
    optimizer = torch.optim.AdamW([{"params": [nn.Parameter(torch.ones(1))], "initial_lr": 0.5}])
    schedule = MultiStepParamScheduler([1.0, 0.1], milestones=[10], num_updates=12)
    rates = [set_learning_rates(optimizer, schedule(step / 120)) for step in (0, 99, 100, 119)]
    assert rates == pytest.approx([0.5, 0.5, 0.05, 0.05])
