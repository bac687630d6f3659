"""Whether torch.compile pays for the frozen stages, and what it makes of them.

Compiling takes a third of a minute and a C++ compiler, and most convolutional networks then run a fifth to a half
faster; some run slower. Measured on two cores, 224 pixels, bf16, images/s fused and compiled: ResNet-50 180 and 218,
MobileNetV3-large 466 and 639, EfficientNet-B0 186 and 246, ConvNeXt-tiny 78 and 115, ViT-B/16 35 and 5.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

EXPECTED_S = 20.0  # of compiling
EXPECTED_SPEEDUP = 1.2
TIMED_RUNS = 3

Network = Callable[[Tensor], Tensor]


class Decision(NamedTuple):
    """network: what to run on inputs of the example's shape; None: as before. why: for people. final: whether more
    images would change nothing."""

    network: Network | None
    why: str
    final: bool = True


def decide(
    asked: str, n_images: int, plain: nn.Module, fused: Network, example: Tensor, largest_error: float
) -> Decision:
    """asked: auto or always. n_images: what is still to be computed. example: inputs [N, 3, H, W] as they come, on a
    CPU. To be called with gradients off and under autocast as the networks will run. What is compiled is taken only
    where it is measured to be faster, and off from `fused` by no more than largest_error."""
    before = _images_per_second(fused, example)
    expected = n_images / before
    saved = expected * (1 - 1 / EXPECTED_SPEEDUP)
    if asked == "auto" and saved < EXPECTED_S:
        why = f"not compiled: {n_images:,} images at {before:,.0f}/s, where compiling would save about {saved:.0f} s"
        return Decision(None, f"{why} and take about {EXPECTED_S:.0f}", final=False)
    started = time.perf_counter()
    try:
        compiled = _compiled(plain, example)
    except Exception as error:  # no compiler, or what it cannot compile; the fused network does as well
        reason = " ".join(str(error).split())[:160]
        return Decision(None, f"cannot be compiled ({type(error).__name__}: {reason})")
    seconds = time.perf_counter() - started
    off = relative_error(compiled, fused, example)
    if not off <= largest_error:
        return Decision(None, f"compiled in {seconds:.0f} s: not used, it would be off by {off:.1%}")
    after = _images_per_second(compiled, example)
    rates = f"{seconds:.0f} s, then {after:,.0f} images/s against {before:,.0f}"
    if after <= before:
        return Decision(None, f"compiled in {rates}: not used")
    return Decision(compiled, f"compiled in {rates}")


def relative_error(network: Network, wanted: Network, example: Tensor) -> float:
    """‖a − b‖/‖b‖ of what they make of the example."""
    expected = wanted(example).float()
    return float((network(example).float() - expected).norm() / expected.norm().clamp_min(1e-12))


def _compiled(plain: nn.Module, example: Tensor) -> Network:
    """The weights become constants: BatchNorm is folded, layouts are chosen once."""
    from torch._inductor import config

    with config.patch(freezing=True):
        network: Network = torch.compile(plain, dynamic=False)
        network(example)
    return network


def _images_per_second(network: Network, example: Tensor) -> float:
    network(example)
    times = []
    for _ in range(TIMED_RUNS):
        started = time.perf_counter()
        network(example)
        times.append(time.perf_counter() - started)
    return len(example) / sorted(times)[TIMED_RUNS // 2]
