"""Which settings a sweep tries: all of a grid, or some drawn at random; each with every seed."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence

from transferctl.errors import Problem
from transferctl.sweeps.space import MOST, SEED, Axis, Member, Points, Range, without_points
from transferctl.wording import counted

METHODS = ("grid", "random", "optuna")
TRIALS = 20  # where none are asked for
DRAWS_A_TRIAL = 1000  # of settings that were there before, until a new one is drawn

Settings = dict[str, str]


def split(axes: Sequence[Axis]) -> tuple[list[Axis], tuple[str, ...]]:
    """The axes that make settings, and the seeds that each is repeated with; ("",) without any."""
    seeds = [axis.texts for axis in axes if axis.key == SEED and isinstance(axis, Points)]
    return [axis for axis in axes if axis.key != SEED], seeds[0] if seeds else ("",)


def trials_of(axes: Sequence[Axis], asked: int | None) -> int:
    """How many settings to draw: those asked for, or as many as there are, up to a number."""
    return asked or min(TRIALS, possible(split(axes)[0]))


def problems(axes: Sequence[Axis], method: str, trials: int, *, prune: bool) -> list[Problem]:
    """Pruning among repeats; a grid over what has no points; more members, or settings to draw, than there can be."""
    varied, seeds = split(axes)
    if prune and len(seeds) > 1:
        message = "ends some of a setting's seeds and not others, so that it has no mean: prune first, then sweep seeds"
        return [Problem("", f"{message} over what is left", "--prune")]
    ranges = [axis for axis in varied if isinstance(axis, Range)]
    whole = math.prod(len(axis.texts) for axis in varied if isinstance(axis, Points))
    if method == "grid" and ranges:
        return [without_points(axis, "a grid takes points") for axis in ranges]
    if method != "grid" and not ranges and trials > whole:
        message = f"there {'is' if whole == 1 else 'are'} only {counted(whole, 'setting')} to draw from; "
        return [Problem("", f"{message}leave out --method {method} for all of them", f"--trials {trials}")]
    if (total := (whole if method == "grid" else trials) * len(seeds)) > MOST:
        fewer = "take fewer values, or --method random --trials N" if method == "grid" else "take fewer trials"
        return [Problem("", f"{total:,} members are more than the {MOST:,} of a sweep; {fewer}", "--over")]
    return []


def grid(axes: Sequence[Axis]) -> Iterator[Settings]:
    """Every combination, the last axis fastest."""
    texts = [axis.texts for axis in axes if isinstance(axis, Points)]
    assert len(texts) == len(axes), "problems() tells of ranges"
    for chosen in itertools.product(*texts):
        yield dict(zip([axis.key for axis in axes], chosen, strict=True))


def random(axes: Sequence[Axis], trials: int, seed: int) -> Iterator[Settings]:
    """Different ones, each drawn evenly. The first n of more trials are those of n trials."""
    import numpy as np

    trials = min(trials, possible(axes))
    seen: set[tuple[str, ...]] = set()
    for draw in range(trials * DRAWS_A_TRIAL):
        drawn = _drawn(axes, np.random.default_rng([seed, draw]).random(len(axes)).tolist())
        if (values := tuple(drawn.values())) in seen:
            continue
        seen.add(values)
        yield drawn
        if len(seen) == trials:
            return


def possible(axes: Sequence[Axis]) -> int:
    """How many settings there are, or a number larger than any sweep."""
    counts = [
        len(axis.texts) if isinstance(axis, Points) else int(axis.high - axis.low) + 1 if axis.is_whole else MOST + 1
        for axis in axes
    ]
    return math.prod(counts)


def _drawn(axes: Sequence[Axis], parts: Sequence[float]) -> Settings:
    """parts: in [0, 1), of each axis."""
    return {
        axis.key: axis.at(part) if isinstance(axis, Range) else axis.texts[int(part * len(axis.texts))]
        for axis, part in zip(axes, parts, strict=True)
    }


def repeated(settings: Settings, seeds: Sequence[str], axes: Sequence[Axis], first: int) -> list[Member]:
    """A setting's members, one a seed, numbered from `first`; their settings in the order of the axes."""
    found = []
    for i, seed in enumerate(seeds):
        values = settings | ({SEED: seed} if seed else {})
        found.append(Member(first + i, {axis.key: values[axis.key] for axis in axes}))
    return found
