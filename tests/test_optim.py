"""Optimizers by name, and the learning rate over the training."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from transferctl import optim
from transferctl.trainsettings import AdamSettings, AdamWSettings, SgdSettings


@pytest.mark.parametrize(
    ("settings", "kind", "defaults"),
    [
        (
            SgdSettings(lr=0.3, momentum=0.8, nesterov=True, weight_decay=0.1),
            torch.optim.SGD,
            {"lr": 0.3, "momentum": 0.8, "nesterov": True, "weight_decay": 0.1},
        ),
        (
            AdamSettings(name="adam", lr=0.2, betas=(0.5, 0.6), weight_decay=0.1),
            torch.optim.Adam,
            {"lr": 0.2, "betas": (0.5, 0.6), "weight_decay": 0.1, "decoupled_weight_decay": False},
        ),
        (AdamWSettings(name="adamw"), torch.optim.AdamW, {"lr": 0.001, "betas": (0.9, 0.999), "weight_decay": 0.01}),
    ],
)
def test_a_name_gives_torchs_optimizer_with_every_setting(settings: Any, kind: type, defaults: dict[str, Any]) -> None:
    optimizer = optim.build(settings, nn.Linear(2, 2).parameters())
    assert type(optimizer) is kind
    assert {key: optimizer.defaults[key] for key in defaults} == defaults


def test_only_what_is_trained_is_handed_to_the_optimizer() -> None:
    layers = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    layers[0].requires_grad_(False)
    (group,) = optim.build(SgdSettings(), layers.parameters()).param_groups
    assert {id(p) for p in group["params"]} == {id(p) for p in layers[1].parameters()}


def test_the_cosine_is_torchs_cosine_annealing() -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.3)
    reference = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=20)
    for step in range(20):
        assert optim.learning_rate("cosine", 0.3, step / 20) == pytest.approx(reference.get_last_lr()[0], abs=1e-12)
        optimizer.step()
        reference.step()


def test_a_constant_rate_is_constant_and_is_what_the_optimizer_uses() -> None:
    optimizer = optim.build(SgdSettings(lr=0.5, momentum=0.0), [weight := nn.Parameter(torch.ones(1))])
    optim.set_learning_rate(optimizer, optim.learning_rate("constant", 0.25, 0.9))
    weight.grad = torch.ones(1)
    optimizer.step()
    assert weight.item() == 0.75
