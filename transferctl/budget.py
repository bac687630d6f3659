"""A time budget: how it is written, what is left of it, and how long a training will take by what was measured here."""

from __future__ import annotations

import re
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from transferctl.errors import Problem, SpecError

UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0}
LONGEST_S = 30 * 24 * 3600.0
BACKWARD = 2.0  # forward passes that a backward pass takes, for gradients of activations and of weights
PASSES = 5  # over the weights that train, a step: gradients are cleared and looked at, momentum and weights move
FIRST_GUESS_S = 3.0  # of a run, whatever its size: to start, to save, to score with intervals


def parse(text: str) -> float:
    """'90s', '10m', '1.5h' -> seconds. Raises SpecError."""
    match = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([smh])\s*", text)
    seconds = float(match[1]) * UNITS[match[2]] if match else 0.0
    if 0 < seconds <= LONGEST_S:
        return seconds
    odd = "must be more than 0 and at most 30 days" if match else "write a number and s, m or h: 90s, 10m, 2h"
    raise SpecError([Problem("", odd, f"--budget {text}")])


def in_words(seconds: float) -> str:
    """0.4 s, 45 s, 4.5 min, 12 min, 1.5 h."""
    size, unit = (1, "s") if seconds < 100 else (60, "min") if seconds < 6000 else (3600, "h")
    seconds = max(seconds, 0.0)
    return f"{seconds / size:.{1 if seconds < 10 * size else 0}f} {unit}"


@dataclass(frozen=True)
class Clock:
    """What is left of a budget; now: of a clock that only goes forward, seconds."""

    budget_s: float
    started: float
    now: Callable[[], float] = time.monotonic

    @property
    def spent_s(self) -> float:
        return self.now() - self.started

    @property
    def left_s(self) -> float:
        return self.budget_s - self.spent_s


@dataclass(frozen=True)
class Work:
    """What a training computes. steps, images: an epoch's, of both domains; scored: validation images after each epoch;
    frozen: leading stages that nothing trains; is_kept: whether what these make of training images is computed once."""

    epochs: int
    steps: int
    images: int
    scored: int
    frozen: int
    is_kept: bool = False


@dataclass(frozen=True)
class Rates:
    """Seconds: to decode an image; for the forward pass of an image through each stage, input to output; and to pass
    once over the weights of each."""

    decode_s: float
    stages_s: tuple[float, ...]
    weights_s: tuple[float, ...]

    def seconds(self, work: Work) -> float:
        """Of all epochs. What is frozen runs forward alone, or not at all once it is kept; validation images are kept
        wherever a stage is frozen."""
        before, after = sum(self.stages_s[: work.frozen]), sum(self.stages_s[work.frozen :])
        trained = work.images * ((0.0 if work.is_kept else self.decode_s + before) + (1 + BACKWARD) * after)
        scored = work.scored * (after if work.frozen else self.decode_s + after)
        updated = work.steps * PASSES * sum(self.weights_s[work.frozen :])
        return work.epochs * (trained + scored + updated)


@dataclass(frozen=True)
class Forecast:
    """How long a run takes: a part that is the same for all, and what `rates` say, by a factor that those which have
    finished taught: theirs were `factors`."""

    rates: Rates
    overhead_s: float = FIRST_GUESS_S
    factors: tuple[float, ...] = ()

    @property
    def factor(self) -> float:
        return statistics.median(self.factors) if self.factors else 1.0

    def seconds(self, work: Work | None) -> float:
        """work None: a head on features that are computed already."""
        return self.overhead_s + (self.factor * self.rates.seconds(work) if work else 0.0)

    def taught(self, work: Work | None, took_s: float) -> Forecast:
        """By a run that has finished."""
        if work is None:
            return replace(self, overhead_s=took_s)
        computed_s = self.rates.seconds(work)
        factor = max(took_s - self.overhead_s, 0.1 * took_s) / computed_s if computed_s else 1.0
        return replace(self, factors=(*self.factors, factor))
