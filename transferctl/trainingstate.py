"""How far a training has come, and all that it goes on from: to files and back, bit for bit.

What is random is keyed by (seed, epoch, sample) and (seed, step), so that its state is the position. The schedule is a
function of the step. What remains are tensors: the optimizer's, and the average's beside the weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from torch import Tensor, nn

from transferctl.checkpoint import Checkpoint
from transferctl.ema import Ema
from transferctl.errors import CheckpointError
from transferctl.wording import faults_in, printable


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
    {"epoch", "step", "val": scalars} of scored epochs; best_state: what training changed, as it was at the best;
    parts: micro-batches that a step is made in."""

    steps_per_epoch: int
    epochs: int = 0
    step: int = 0
    sums: Sums = field(default_factory=Sums)
    best: dict[str, Any] = field(default_factory=dict)
    last: dict[str, Any] = field(default_factory=dict)
    best_state: dict[str, Tensor] = field(default_factory=dict)
    parts: int = 1

    def epochs_of_note(self) -> dict[str, Any]:
        """For the summary."""
        scored = {"best": self.best, "last": self.last} if self.best else {}
        return scored | ({"micro_batches": self.parts} if self.parts > 1 else {})


class _Saved(BaseModel):
    """A checkpoint may come from anyone."""

    model_config = ConfigDict(strict=True, allow_inf_nan=False, extra="forbid")


class _Epoch(_Saved):
    epoch: int = Field(gt=0)
    step: int = Field(gt=0)
    val: dict[str, int | float]


class _Average(_Saved):
    steps: int = Field(ge=0)
    is_applied: bool


class Position(_Saved):
    """A course as JSON has it, with all that goes with it: the size of metrics.jsonl, whether the model is the average
    of its weights, what the optimizer's tensors belong to."""

    steps_per_epoch: int = Field(gt=0)
    epochs: int = Field(ge=0)
    step: int = Field(ge=0, lt=1 << 48)
    parts: int = Field(gt=0)
    losses: dict[str, float]
    loss_steps: int = Field(ge=0)
    best: _Epoch | None
    last: _Epoch | None
    metrics_bytes: int = Field(ge=0)
    ema: _Average | None
    optimizer: str

    @model_validator(mode="after")
    def _is_one(self) -> Position:
        """Its numbers go together."""
        done = self.epochs * self.steps_per_epoch
        if not done <= self.step <= done + self.steps_per_epoch:
            raise ValueError(f"step {self.step} is not in epoch {self.epochs + 1} of {self.steps_per_epoch} steps")
        if bool(self.epochs) != bool(self.best and self.last):
            raise ValueError("scored epochs have a best and a last one")
        if self.loss_steps != self.step - done or bool(self.loss_steps) != ("loss" in self.losses):
            raise ValueError(f"losses are those of {self.step - done} steps, not of {self.loss_steps}")
        return self

    @classmethod
    def of(cls, course: Course, optimizer: torch.optim.Optimizer, ema: Ema | None, metrics_bytes: int) -> Position:
        return cls(
            steps_per_epoch=course.steps_per_epoch, epochs=course.epochs, step=course.step, parts=course.parts,
            losses=course.sums.sums, loss_steps=course.sums.steps, metrics_bytes=metrics_bytes,
            best=_Epoch(**course.best) if course.best else None, last=_Epoch(**course.last) if course.last else None,
            ema=_Average(steps=ema.steps, is_applied=ema.is_applied) if ema else None,
            optimizer=type(optimizer).__name__,
        )  # fmt: skip

    def course(self) -> Course:
        """Less its best state."""
        best, last = (epoch.model_dump() if epoch else {} for epoch in (self.best, self.last))
        sums = Sums(dict(self.losses), self.loss_steps)
        return Course(self.steps_per_epoch, self.epochs, self.step, sums, best, last, parts=self.parts)


def read_position(checkpoint: Checkpoint) -> Position:
    """Of a manifest. Raises CheckpointError naming each key that is not what it must be."""
    try:
        return Position.model_validate(checkpoint.manifest["training"])
    except ValidationError as error:
        message = f"does not describe a training ({faults_in(error)}); use a run folder as transferctl wrote it"
        raise CheckpointError(f"{checkpoint.path}/manifest.json: {message}") from None


@dataclass(frozen=True)
class Fitted:
    """best, last: {"epoch", "step", "val": metrics}; best_state: what training changed, as it was at the best."""

    best: dict[str, Any]
    last: dict[str, Any]
    best_state: dict[str, Tensor]


def tensors_of(
    weights: Mapping[str, nn.Parameter], optimizer: torch.optim.Optimizer, ema: Ema | None
) -> dict[str, Tensor]:
    """optimizer/KEY/WEIGHT and ema/NAME. weights: all that the optimizer trains, by name."""
    names = {id(weight): name for name, weight in weights.items()}
    found = {
        f"optimizer/{key}/{names[id(weight)]}": value
        for weight, values in optimizer.state.items()
        for key, value in values.items()
        if value is not None
    }
    return found | ({f"ema/{name}": tensor for name, tensor in ema.state().items()} if ema else {})


def restore_optimizer(
    optimizer: torch.optim.Optimizer, weights: Mapping[str, nn.Parameter], tensors: Mapping[str, Tensor]
) -> None:
    """What `tensors_of` gave. Raises CheckpointError where it is of other weights.

    In the layout of the weight: the fused kernels take both as they lie in memory.
    """
    order = {id(p): i for i, p in enumerate(p for group in optimizer.param_groups for p in group["params"])}
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        if not name.startswith("optimizer/"):
            continue
        _, key, of = name.split("/", 2)
        weight = weights.get(of)
        if weight is None or (tensor.ndim and tensor.shape != weight.shape):
            raise CheckpointError(f"its optimizer trained {printable(of)}, which is another weight here, or none")
        own = torch.empty_like(weight, requires_grad=False).copy_(tensor) if tensor.ndim or not weight.ndim else tensor
        state.setdefault(order[id(weight)], {})[key] = own
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
