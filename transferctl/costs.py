"""What a backbone costs to use: parameters, arithmetic, and the speed that is measured here."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

MEASURED_S = 0.5  # for the speed of one backbone, its first pass apart


@dataclass(frozen=True)
class Costs:
    """Of a backbone less its last layer, at its input size. crop: pixels; gflop: of one image, 2 a multiply-add, of
    convolutions, matrix products and attention; images_per_s: from decoded pixels to features; cache_bytes: of the
    features of all images."""

    crop: int
    feature_dim: int
    parameters: int
    gflop: float
    images_per_s: float
    cache_bytes: int


def gflop(backbone: Any, crop: int) -> float:
    """Billions of operations for one image, as torch counts them: a multiply-add is two; element-wise work is none.
    backbone: in eval mode, on a CPU or a GPU."""
    device = next(backbone.parameters()).device
    counter = FlopCounterMode(display=False)
    fast_path = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # attention in one operation of its own is not counted: not this
    try:
        with _constant(backbone), torch.no_grad(), sdpa_kernel(SDPBackend.MATH), counter:  # nor the CPU's
            backbone(torch.zeros(1, 3, crop, crop, device=device))
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)
    return counter.get_total_flops() / 1e9


@contextmanager
def _constant(backbone: Any) -> Iterator[None]:
    """Inside, no parameter wants a gradient: torch's counter would wait for that of a view of one (the class token of
    PiT, say) that is handed from module to module, which has none."""
    wanting = [parameter for parameter in backbone.parameters() if parameter.requires_grad]
    try:
        for parameter in wanting:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter in wanting:
            parameter.requires_grad_(True)


def images_per_s(compute: Callable[[Tensor], Tensor], images: Tensor) -> float:
    """The median of passes over a batch of decoded images, uint8 [N, 3, H, W], within half a second. The first pass,
    which allocates, counts only where it alone takes as long."""
    seconds = [_timed(compute, images)]
    if seconds[0] < MEASURED_S:
        seconds.clear()
        while sum(seconds) < MEASURED_S:
            seconds.append(_timed(compute, images))
    return len(images) / statistics.median(seconds)


def _timed(compute: Callable[[Tensor], Tensor], images: Tensor) -> float:
    started = time.perf_counter()
    compute(images)[:1].cpu()  # waits for a GPU
    return time.perf_counter() - started
