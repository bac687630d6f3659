"""What several runs are beside each other: their settings, and who is right on the samples that they share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from transferctl import paired
from transferctl.errors import DataError
from transferctl.reporting import checked, predictions
from transferctl.reporting.gather import RunRecord
from transferctl.reporting.predictions import Outcomes


def label(i: int) -> str:
    """A, B, …, Z, A2, …"""
    return chr(ord("A") + i % 26) + (str(i // 26 + 1) if i >= 26 else "")


def settings_of(run: RunRecord) -> Mapping[str, Any]:
    """With every default in its place, so that a setting that one spec leaves out is no difference."""
    if run.spec is None:
        return run.settings
    return run.spec.model_dump(mode="json", by_alias=True, exclude_none=True)


def not_the_same(runs: Sequence[RunRecord]) -> list[str]:
    """Splits that are not the same images in all runs that have them: their scores do not compare."""
    seen = [checked.mapping(run.environment.get("data")) for run in runs]
    names = dict.fromkeys(name for one in seen for name in one if isinstance(name, str) and not name.endswith(".train"))
    return [name for name in names if len({str(one[name]) for one in seen if name in one}) > 1]


@dataclass(frozen=True)
class Pair:
    """A run less the first, on the n samples of a split that both scored: the difference of accuracies with its 95 %
    interval, how many samples it alone has right (gained) and the first alone (lost), McNemar's exact p."""

    label: str
    run: str
    split: str
    n: int
    difference: float
    low: float
    high: float
    gained: int
    lost: int
    p: float


@dataclass(frozen=True)
class LeftOut:
    """A split of a run that is not paired with the first, and why. split: empty for all of them."""

    label: str
    run: str
    split: str
    reason: str

    def __str__(self) -> str:
        return f"{self.label} is not paired with A{f' on {self.split}' if self.split else ''}: {self.reason}"


@dataclass(frozen=True)
class Paired:
    pairs: tuple[Pair, ...]
    left_out: tuple[LeftOut, ...]


def against_first(runs: Sequence[RunRecord]) -> Paired:
    """From predictions.csv of each, nothing computed anew, split by split: one that is not the same samples with the
    same labels in the same order is left out."""
    first, *others = runs
    mine, fault = _outcomes(label(0), first)
    pairs, left_out = list[Pair](), list[LeftOut]()
    for i, other in enumerate(others, 1):
        name, path = label(i), str(other.path)
        theirs, own_fault = _outcomes(name, other)
        reason = fault or own_fault
        if first.domain != other.domain:
            reason = f"A was scored on the {first.domain}, {name} on the {other.domain}"
        if reason:
            left_out.append(LeftOut(name, path, "", reason))
            continue
        for split in dict.fromkeys([*mine, *theirs]):
            before, after, shown = mine.get(split), theirs.get(split), checked.text(split, 40)
            if before is None or after is None:
                left_out.append(LeftOut(name, path, shown, f"only {name if before is None else 'A'} predicted it"))
            elif before.samples != after.samples:
                left_out.append(LeftOut(name, path, shown, "not the same samples, labels and order"))
            else:
                pairs.append(_pair(name, path, shown, before.hits, after.hits))
    return Paired(tuple(pairs), tuple(left_out))


def _outcomes(name: str, run: RunRecord) -> tuple[Mapping[str, Outcomes], str]:
    """By split; or why there are none."""
    try:
        found = predictions.outcomes(run.path)
    except DataError as error:
        return {}, f"of {name}, {error}"
    return found, "" if found else f"{name} has no {predictions.FILE}"


def _pair(name: str, path: str, split: str, before: np.ndarray, after: np.ndarray) -> Pair:
    change = paired.accuracy_difference(before, after, "difference")
    value, low, high = (change[f"accuracy_difference{end}"] for end in ("", "_low", "_high"))
    test = paired.mcnemar(before, after)
    gained, lost, p = int(test["gained"]), int(test["lost"]), float(test["mcnemar_p"])
    return Pair(name, path, split, len(before), value, low, high, gained, lost, p)
