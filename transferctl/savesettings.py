"""How often a training saves itself. No torch here."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import Field, field_validator

from transferctl.settings import Settings, Text, as_mapping


@dataclass(frozen=True)
class Every:
    """After so many steps, epochs or seconds; None: these do not count."""

    steps: int | None = None
    epochs: int | None = None
    seconds: float | None = None

    def due(self, step: int, elapsed_s: float, epochs: int | None = None) -> bool:
        """step, epochs: that are done; epochs None: between two ends of epochs. elapsed_s: since the last save."""
        by_step = self.steps is not None and step % self.steps == 0
        by_epoch = self.epochs is not None and epochs is not None and epochs % self.epochs == 0
        return by_step or by_epoch or (self.seconds is not None and elapsed_s >= self.seconds)


class CheckpointSettings(Settings):
    every: Annotated[Text, Field(pattern=r"^(auto|[0-9]{1,9} *(steps?|epochs?|minutes?))$")] = Field(
        "auto",
        description="How often training is saved, to be resumed from: 200 steps, 2 epochs, 10 minutes. auto = every "
        "epoch, and after ten minutes; heads on frozen features, which train in seconds, after five minutes.",
    )

    @field_validator("every")
    @classmethod
    def _at_least_one(cls, every: str) -> str:
        if re.match("0+(?![0-9])", every):
            raise ValueError("must be 1 or more steps, epochs or minutes")
        return every

    def of_epochs(self) -> Every:
        """For a training that runs the network."""
        return self._parsed() or Every(epochs=1, seconds=600.0)

    def of_heads(self) -> Every:
        """For heads alone, on features: a checkpoint takes longer than most of their epochs."""
        return self._parsed() or Every(seconds=300.0)

    def _parsed(self) -> Every | None:
        match = re.match(r"([0-9]+) *(step|epoch|minute)", self.every)
        if match is None:
            return None
        n = int(match[1])
        return {"step": Every(steps=n), "epoch": Every(epochs=n), "minute": Every(seconds=60.0 * n)}[match[2]]


def checkpoint_shorthand(value: Any) -> Any:
    return {"every": value} if isinstance(value, str) else as_mapping(value, "text such as 200 steps, or a mapping")
