"""How far a training has come, and all that it goes on from: to files and back, bit for bit.

What is random is keyed by (seed, epoch, sample) and (seed, step), so that its state is the position. The schedule is a
function of the step. What remains are tensors: the optimizer's, and the average's beside the weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from transferctl.ema import Ema
from transferctl.errors import CheckpointError


@dataclass
class Sums:
    """Of the steps' losses, for means over the epoch that is under way."""

    sums: dict[str, float] = field(default_factory=dict)
    steps: int = 0

    def add(self, values: Mapping[str, float]) -> None:
        self.steps += 1
        for name, value in values.items():
            self.sums[name] = self.sums.get(name, 0.0) + value

    def mean(self, name: str) -> float:
        return self.sums[name] / self.steps

    def means(self) -> dict[str, float]:
        return {name: self.mean(name) for name in self.sums}


@dataclass
class Course:
    """How far a training has come. epochs: those that are done and scored; step: steps that are done; best, last:
    {"epoch", "step", "val": metrics} of scored epochs; best_state: what training changed, as it was at the best;
    parts: micro-batches that a step is made in."""

    epochs: int = 0
    step: int = 0
    sums: Sums = field(default_factory=Sums)
    best: dict[str, Any] = field(default_factory=dict)
    last: dict[str, Any] = field(default_factory=dict)
    best_state: dict[str, Tensor] = field(default_factory=dict)
    parts: int = 1

    def as_dict(self) -> dict[str, Any]:
        """All but tensors, as JSON can hold it."""
        sums = {"sums": self.sums.sums, "steps": self.sums.steps}
        return {"epochs": self.epochs, "step": self.step, "best": self.best, "last": self.last,
                "parts": self.parts} | {"losses": sums}  # fmt: skip

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Course:
        """Raises KeyError, TypeError, ValueError."""
        losses = values["losses"]
        sums = Sums({str(name): float(value) for name, value in losses["sums"].items()}, int(losses["steps"]))
        best, last = dict(values["best"]), dict(values["last"])
        return cls(int(values["epochs"]), int(values["step"]), sums, best, last, parts=int(values["parts"]))


@dataclass(frozen=True)
class Fitted:
    """best, last: {"epoch", "step", "val": metrics}; best_state: what training changed, as it was at the best."""

    best: dict[str, Any]
    last: dict[str, Any]
    best_state: dict[str, Tensor]


def tensors_of(optimizer: torch.optim.Optimizer, ema: Ema | None) -> dict[str, Tensor]:
    """optimizer.NUMBER.KEY and ema.NAME. NUMBER: of the parameter, in the order of the groups."""
    state = optimizer.state_dict()["state"]
    found = {f"optimizer.{i}.{key}": value for i, values in state.items() for key, value in values.items()
             if value is not None}  # fmt: skip
    return found | ({f"ema.{name}": tensor for name, tensor in ema.state().items()} if ema else {})


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """What `tensors_of` gave, into an optimizer over the same parameters. Raises CheckpointError where they are others.

    In the layout of the parameter: the fused kernels take both as they lie in memory.
    """
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        kind, number, key = name.split(".", 2) if name.count(".") >= 2 else ("", "", "")
        if kind != "optimizer":
            continue
        if not number.isdecimal() or int(number) >= len(parameters):
            raise CheckpointError(f"the optimizer's state has {name}, which no parameter of this training is")
        own = parameters[int(number)]
        if key != "step" and tensor.shape != own.shape:
            raise CheckpointError(f"the optimizer's state {name} is not of its parameter's shape")
        state.setdefault(int(number), {})[key] = (
            tensor if key == "step" else torch.empty_like(own, requires_grad=False).copy_(tensor)
        )
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
