"""Optimizers by name, and learning rates as functions of progress."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import nn

from transferctl.trainsettings import AdamSettings, AdamWSettings, SgdSettings


def build(settings: SgdSettings | AdamSettings, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    """The optimizer over the parameters that are trained."""
    trained = [p for p in parameters if p.requires_grad]
    if isinstance(settings, SgdSettings):
        return torch.optim.SGD(
            trained,
            lr=settings.lr,
            momentum=settings.momentum,
            nesterov=settings.nesterov,
            weight_decay=settings.weight_decay,
        )
    kind = torch.optim.AdamW if isinstance(settings, AdamWSettings) else torch.optim.Adam
    return kind(trained, lr=settings.lr, betas=settings.betas, weight_decay=settings.weight_decay)


def learning_rate(schedule: str, base: float, progress: float) -> float:
    """progress: part of all steps already made, 0 to 1. cosine: base·(1 + cos π·progress)/2
    (Loshchilov & Hutter, ICLR 2017, without restarts)."""
    return base if schedule == "constant" else base * (1 + math.cos(math.pi * progress)) / 2


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate
