"""Optimizers by name, parameter groups, and the learning rate over the training."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler

from transferctl import optim
from transferctl.backbones import torchvision as plugin
from transferctl.errors import SpecError
from transferctl.model import BatchNorm, TransferModel
from transferctl.optim import Group
from transferctl.preprocess import Preprocessing
from transferctl.trainsettings import (
    AdamSettings,
    AdamWSettings,
    ConstantSettings,
    CosineSettings,
    LinearSettings,
    OneCycleSettings,
    SgdSettings,
    StepSettings,
)


@pytest.fixture(scope="module")
def model() -> TransferModel:
    backbone, _ = plugin.build("resnet18", image_size=32)
    model = TransferModel("torchvision", backbone, Preprocessing(32, 32), "classification")
    for domain in ("target", "source"):
        model.add_new_head(domain, ["x", "y"], hidden=(), dropout=0.0, seed=0)
    return model


def _groups(model: TransferModel, settings: Any, frozen: str = "none") -> list[Group]:
    model.freeze(frozen, BatchNorm())
    return optim.groups(settings, model, {name for name, p in model.named_parameters() if p.requires_grad})


@pytest.mark.parametrize(
    ("settings", "kind", "options"),
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
def test_a_name_gives_torchs_optimizer_with_every_setting(
    model: TransferModel, settings: Any, kind: type, options: dict[str, Any]
) -> None:
    optimizer = optim.build(settings, _groups(model, settings))
    assert type(optimizer) is kind
    weights = next(group for group in optimizer.param_groups if group["params"][0].ndim > 1)
    assert {key: weights[key] for key in options} == options


def test_only_what_is_trained_is_handed_to_the_optimizer_and_each_parameter_once(model: TransferModel) -> None:
    groups = _groups(model, SgdSettings(), "layer3")
    handed = [id(p) for group in groups for p in group.parameters]
    trained = [id(p) for p in model.parameters() if p.requires_grad]
    assert sorted(handed) == sorted(trained) and len(set(handed)) == len(handed)
    assert {group.stage for group in groups} == {"layer4", "head", "source_head"}


def test_weight_decay_spares_norms_and_biases_unless_it_is_for_all(model: TransferModel) -> None:
    for group in _groups(model, SgdSettings(weight_decay=0.1)):
        assert {p.ndim > 1 for p in group.parameters} == {group.weight_decay > 0}
    assert {group.weight_decay for group in _groups(model, SgdSettings(weight_decay=0.1, decayed="all"))} == {0.1}


def test_layer_decay_multiplies_once_a_stage_from_the_top_and_stage_lr_holds_over_it(model: TransferModel) -> None:
    rates = optim.stage_rates(SgdSettings(lr=1.0, layer_decay=0.5, stage_lr={"layer2": 0.7, "head": 3.0}), model)
    assert rates == {
        "stem": 0.5**5, "layer1": 0.5**4, "layer2": 0.7, "layer3": 0.5**2, "layer4": 0.5, "head": 3.0, "source_head": 1.0,
    }  # fmt: skip


def test_a_rate_for_a_stage_that_is_not_there_is_told_with_the_nearest(model: TransferModel) -> None:
    with pytest.raises(SpecError, match=r"optimizer\.stage_lr\.layr4: .* did you mean layer4\?"):
        optim.stage_rates(SgdSettings(stage_lr={"layr4": 0.1}), model)


SCHEDULES = [
    (CosineSettings(), lambda o, n: lr_scheduler.CosineAnnealingLR(o, n)),
    (ConstantSettings(name="constant"), lambda o, n: lr_scheduler.ConstantLR(o, factor=1.0)),
    (LinearSettings(name="linear"), lambda o, n: lr_scheduler.LinearLR(o, 1.0, 0.0, n)),
    (
        StepSettings(name="step", at=(0.5, 0.75), factor=0.3),
        lambda o, n: lr_scheduler.MultiStepLR(o, [n // 2, 3 * n // 4], 0.3),
    ),
    (
        CosineSettings(warmup=0.25),
        lambda o, n: lr_scheduler.SequentialLR(
            o,
            [lr_scheduler.LinearLR(o, 0.01, 1.0, n // 4), lr_scheduler.CosineAnnealingLR(o, n - n // 4)],
            [n // 4],
        ),
    ),
]


@pytest.mark.parametrize(("settings", "reference"), SCHEDULES)
def test_a_schedule_is_torchs(settings: Any, reference: Any) -> None:
    steps = 40
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own schedulers warn of each other
        scheduler = reference(optimizer, steps)
        for step in range(steps):
            rate = 0.3 * optim.rate_factor(settings, step / steps)
            assert rate == pytest.approx(optimizer.param_groups[0]["lr"], abs=1e-12)
            optimizer.step()
            scheduler.step()


def test_one_cycle_is_torchs_but_for_where_its_last_step_lies() -> None:
    """torch reaches the end at step n − 1; progress counts the steps made, of n."""
    steps = 41
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1)
    scheduler = lr_scheduler.OneCycleLR(optimizer, 0.3, total_steps=steps, pct_start=(0.25 * 40 + 1) / 41)
    for step in range(steps - 1):
        rate = 0.3 * optim.rate_factor(OneCycleSettings(name="one_cycle", warmup=0.25), step / (steps - 1))
        assert rate == pytest.approx(scheduler.get_last_lr()[0], abs=1e-9)
        optimizer.step()
        scheduler.step()


def test_a_rate_is_what_the_optimizer_uses() -> None:
    weight = nn.Parameter(torch.ones(1))
    groups = [Group("head", 0.5, 0.0, (weight,))]
    optimizer = optim.build(SgdSettings(momentum=0.0), groups)
    optim.set_learning_rates(optimizer, groups, 0.5)
    weight.grad = torch.ones(1)
    optimizer.step()
    assert weight.item() == 0.75


def test_a_step_within_the_warm_up_is_refused() -> None:
    with pytest.raises(ValueError, match=r"falls at 0\.1, before the warm-up ends at 0\.3"):
        StepSettings(name="step", at=(0.1, 0.5), warmup=0.3)
