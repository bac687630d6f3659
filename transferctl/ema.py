"""An exponential moving average of the weights, which is validated and kept in place of the last ones.

Polyak & Juditsky, 1992; as Tan & Le (ICML 2019) and many others train: θ̄ ← d·θ̄ + (1 − d)·θ after each step. Early on
d is (1 + t)/(10 + t) where that is less, so that the start does not linger in a short training.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from transferctl import signals
from transferctl.errors import CheckpointError
from transferctl.wording import shown


class Ema:
    """The average of some parameters, and of the running statistics beside them."""

    def __init__(self, model: nn.Module, names: Iterable[str], decay: float):
        """names: the parameters that training changes; floating-point buffers are averaged too."""
        self._decay, self.steps, self.is_applied = decay, 0, False
        parameters, buffers = dict(model.named_parameters()), dict(model.named_buffers())
        live = {name: parameters[name].data for name in names}
        live |= {name: buffer for name, buffer in buffers.items() if buffer.is_floating_point()}
        self._names, self._live = tuple(live), list(live.values())
        self._mean = [tensor.clone() for tensor in self._live]

    def update(self) -> None:
        """After an optimizer's step."""
        decay = min(self._decay, (1 + self.steps) / (10 + self.steps))
        torch._foreach_lerp_(self._mean, self._live, 1 - decay)
        self.steps += 1

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

    def state(self) -> dict[str, Tensor]:
        """What the model does not have now, by name: the average, or while that is applied, the own weights."""
        return dict(zip(self._names, self._mean, strict=True))

    def restore(self, state: Mapping[str, Tensor], steps: int, *, was_applied: bool) -> None:
        """What `state` gave, into a model that has been restored to the weights that it had then. Raises
        CheckpointError where it is of other weights."""
        if odd := [name for name in self._names if name not in state]:
            raise CheckpointError(f"its average (ema) is of other weights; it has no {shown(odd)}")
        for name, mean in zip(self._names, self._mean, strict=True):
            mean.copy_(state[name])
        self.steps = steps
        if was_applied:
            self._swap()
            self.is_applied = False

    def _swap(self) -> None:
        with torch.no_grad(), signals.held():
            for live, mean in zip(self._live, self._mean, strict=True):
                kept: Tensor = live.clone()
                live.copy_(mean)
                mean.copy_(kept)
            self.is_applied = not self.is_applied
