"""Parameter groups, optimizers by name, and learning rates as functions of progress."""

from __future__ import annotations

import difflib
import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from transferctl.errors import SpecError
from transferctl.model import TransferModel
from transferctl.trainsettings import (
    AdamWSettings,
    ConstantSettings,
    CosineSettings,
    OneCycleSettings,
    Optimizer,
    Schedule,
    SgdSettings,
    StepSettings,
)

HEADS = {"head": "target", "source_head": "source"}  # what stage_lr calls them


@dataclass(frozen=True)
class Group:
    """Parameters of one stage or head that share a learning rate and a weight decay. lr: before the schedule."""

    stage: str
    lr: float
    weight_decay: float
    parameters: tuple[nn.Parameter, ...]


def groups(settings: Optimizer, model: TransferModel, trained: Collection[str], settings_key: str = "") -> list[Group]:
    """The parameters named in `trained`, a stage after the other, then the heads; norms and biases apart where
    weight decay spares them. Raises SpecError for a stage_lr of what the model does not have."""
    rates = stage_rates(settings, model, settings_key)
    found = []
    for stage, parameters in by_stage(model).items():
        own = [p for name, p in parameters if name in trained]
        spared = [p for p in own if settings.decayed == "weights" and p.ndim <= 1]
        decayed = [p for p in own if not any(p is other for other in spared)]
        for members, decay in ((decayed, settings.weight_decay), (spared, 0.0)):
            if members:
                found.append(Group(stage, rates[stage], decay, tuple(members)))
    return found


def stage_rates(settings: Optimizer, model: TransferModel, settings_key: str = "") -> dict[str, float]:
    """The learning rate of each stage and head: `stage_lr`, else lr · layer_decay^depth, the heads at depth 0
    (Clark et al., ICLR 2020). Raises SpecError for names that the model does not have."""
    stages = list(by_stage(model))
    backbone = [stage for stage in stages if stage not in HEADS]
    for name in settings.stage_lr:
        if name not in stages:
            near = difflib.get_close_matches(name, stages, 1, 0.6)
            hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(stages)}"
            raise SpecError.at(f"{settings_key}optimizer.stage_lr.{name}", f"the model has no stage {name!r}; {hint}")
    depth = {stage: len(backbone) - i for i, stage in enumerate(backbone)}
    by_depth = {stage: settings.lr * settings.layer_decay ** depth.get(stage, 0) for stage in stages}
    return by_depth | settings.stage_lr


def by_stage(model: TransferModel) -> dict[str, list[tuple[str, nn.Parameter]]]:
    """Parameters by stage, input to output, then by head; names as in the model."""
    net = list(model.backbone.net.named_parameters())
    found = {
        stage.name: [(f"backbone.net.{name}", p) for name, p in net if stage.owns(name)]
        for stage in model.backbone.stages()
    }
    for name, domain in HEADS.items():
        if domain in model.heads:
            found[name] = [(f"heads.{domain}.{key}", p) for key, p in model.heads[domain].named_parameters()]
    return {stage: parameters for stage, parameters in found.items() if parameters}


def build(settings: Optimizer, grouped: Sequence[Group]) -> torch.optim.Optimizer:
    """The optimizer over these groups, one pass over the memory a step where the device can (ResNet-50 on two cores:
    SGD 12 ms in place of 26). A parameter that is frozen for now has no gradient, and stays as it is."""
    fused = all(p.device.type in ("cpu", "cuda") for group in grouped for p in group.parameters)
    parameters = [
        {"params": list(group.parameters), "lr": group.lr, "weight_decay": group.weight_decay} for group in grouped
    ]
    if isinstance(settings, SgdSettings):
        return torch.optim.SGD(
            parameters, lr=settings.lr, momentum=settings.momentum, nesterov=settings.nesterov, fused=fused
        )
    kind = torch.optim.AdamW if isinstance(settings, AdamWSettings) else torch.optim.Adam
    return kind(parameters, lr=settings.lr, betas=settings.betas, fused=fused)


def set_learning_rates(optimizer: torch.optim.Optimizer, grouped: Sequence[Group], factor: float) -> None:
    """Each group's own rate times the schedule's factor."""
    for state, group in zip(optimizer.param_groups, grouped, strict=True):
        state["lr"] = group.lr * factor


def rate_factor(schedule: Schedule, progress: float) -> float:
    """What the learning rate is multiplied by. progress: part of all steps already made, 0 to 1.

    cosine: (1 + cos π·p)/2 (Loshchilov & Hutter, ICLR 2017, without restarts). one_cycle: from 1/25 up to 1 and down
    to 1/250,000 (Smith & Topin, 2019, in two phases and without a cycle of the momentum). A warm-up of the others
    rises from 0.01 to 1, and p counts from its end.
    """
    if isinstance(schedule, OneCycleSettings):
        if progress < schedule.warmup:
            return _cosine(1 / 25, 1.0, progress / schedule.warmup)
        return _cosine(1.0, 1 / 250_000, (progress - schedule.warmup) / (1 - schedule.warmup))
    if progress < schedule.warmup:
        return 0.01 + 0.99 * progress / schedule.warmup
    if isinstance(schedule, StepSettings):
        return schedule.factor ** sum(progress >= at for at in schedule.at)
    after = (progress - schedule.warmup) / (1 - schedule.warmup)
    if isinstance(schedule, CosineSettings):
        return _cosine(1.0, 0.0, after)
    return 1.0 if isinstance(schedule, ConstantSettings) else 1 - after


def _cosine(start: float, end: float, progress: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * progress)) / 2
