"""Mixup and CutMix: a step's images mixed with others of their own domain, and what that makes of their labels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from transferctl.contracts import Batch, Mixed
from transferctl.trainsettings import AugmentSettings


@dataclass(frozen=True)
class Mixing:
    """mixup, cutmix: α of the Beta(α, α) that the share is drawn from, or None; with both, a coin a step decides."""

    mixup: float | None
    cutmix: float | None


def wanted(augment: Mapping[str, AugmentSettings | None]) -> dict[str, Mixing]:
    """What to mix, by domain."""
    asked = {domain: settings for domain, settings in augment.items() if settings}
    return {
        domain: Mixing(settings.mixup, settings.cutmix)
        for domain, settings in asked.items()
        if settings.mixup or settings.cutmix
    }


def mix(batch: Batch, mixing: Mapping[str, Mixing], seed: int, step: int) -> Batch:
    """A domain's images mixed with a random order of themselves, as `mixing` says of it, keyed by (seed, step). inputs
    become float, still of 0 to 255.

    mixup: share·x + (1 − share)·x' (Zhang et al., ICLR 2018). CutMix: a box of x' in x, of 1 − share of the area
    before it is cut at the border, which the share then accounts for (Yun et al., ICCV 2019).
    """
    random = np.random.default_rng([seed, step, 2])
    coin = any(how.mixup and how.cutmix for how in mixing.values()) and random.random() < 0.5
    inputs = batch.inputs.to(torch.float32, copy=True)
    partners, shares = batch.labels.clone(), torch.ones(len(batch.labels), device=inputs.device)
    for domain, rows in (("source", batch.source), ("target", batch.target)):
        images = inputs[rows].clone()
        if not len(images) or domain not in mixing:
            continue
        how = mixing[domain]
        cut = how.mixup is None or (how.cutmix is not None and coin)
        alpha = how.cutmix if cut else how.mixup
        assert alpha is not None, "nothing to mix with"
        order = torch.from_numpy(random.permutation(len(images))).to(inputs.device)
        share = float(random.beta(alpha, alpha))
        if cut:
            share = _paste(inputs[rows], images[order], share, random)
        else:
            inputs[rows] = share * images + (1 - share) * images[order]
        partners[rows], shares[rows] = batch.labels[rows][order], share
    return replace(batch, inputs=inputs, mixed=Mixed(partners, shares))


def _paste(images: Tensor, others: Tensor, share: float, random: np.random.Generator) -> float:
    """Put a box of `others` into `images` [N, 3, H, W], in place; the part of the area that is left. The box is
    torchvision's (and the paper's code's): half a side is rounded down."""
    height, width = images.shape[-2:]
    y, x = int(random.integers(height)), int(random.integers(width))
    half = 0.5 * (1 - share) ** 0.5
    half_height, half_width = int(half * height), int(half * width)
    top, bottom = max(y - half_height, 0), min(y + half_height, height)
    left, right = max(x - half_width, 0), min(x + half_width, width)
    images[..., top:bottom, left:right] = others[..., top:bottom, left:right]
    return 1 - (bottom - top) * (right - left) / (height * width)
