"""An exponential moving average of the weights, which is validated and kept in place of the last ones.

Polyak & Juditsky, 1992; as Tan & Le (ICML 2019) and many others train: θ̄ ← d·θ̄ + (1 − d)·θ after each step. Early on
d is (1 + t)/(10 + t) where that is less, so that the start does not linger in a short training.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class Ema:
    """The average of some parameters, and of the running statistics beside them."""

    def __init__(self, model: nn.Module, names: Iterable[str], decay: float):
        """names: the parameters that training changes; floating-point buffers are averaged too."""
        self._decay, self._steps = decay, 0
        parameters, buffers = dict(model.named_parameters()), dict(model.named_buffers())
        self._live = [parameters[name].data for name in names]
        self._live += [buffer for buffer in buffers.values() if buffer.is_floating_point()]
        self._mean = [tensor.clone() for tensor in self._live]

    def update(self) -> None:
        """After an optimizer's step."""
        decay = min(self._decay, (1 + self._steps) / (10 + self._steps))
        torch._foreach_lerp_(self._mean, self._live, 1 - decay)
        self._steps += 1

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Inside, the model has the average; then its own weights again."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def settle(self) -> None:
        """The model has the average from here on."""
        self._swap()

    def _swap(self) -> None:
        with torch.no_grad():
            for live, mean in zip(self._live, self._mean, strict=True):
                kept: Tensor = live.clone()
                live.copy_(mean)
                mean.copy_(kept)
