"""What several runs are beside each other: their settings, and who is right on the samples that they share."""

from __future__ import annotations

import csv
from collections.abc import Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np

from transferctl import paired, scratch
from transferctl.reporting import checked
from transferctl.reporting.gather import Told

PREDICTIONS = "predictions.csv"


def label(i: int) -> str:
    """A, B, …, Z, A2, …"""
    return chr(ord("A") + i % 26) + (str(i // 26 + 1) if i >= 26 else "")


def settings_of(run: Told) -> Mapping[str, Any]:
    """With every default in its place, so that a setting that one spec leaves out is no difference."""
    if run.spec is None:
        return run.settings
    return run.spec.model_dump(mode="json", by_alias=True, exclude_none=True)


def not_the_same(runs: Sequence[Told]) -> list[str]:
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


def against_first(runs: Sequence[Told]) -> list[Pair]:
    """From predictions.csv of each, nothing computed anew; a split that is not the same samples with the same labels in
    the same order is left out."""
    first, *others = runs
    found = []
    for i, other in enumerate(others, 1):
        for split, (before, after) in _outcomes(first.path / PREDICTIONS, other.path / PREDICTIONS).items():
            change = paired.accuracy_difference(before, after, "difference")
            value, low, high = (change[f"accuracy_difference{end}"] for end in ("", "_low", "_high"))
            test = paired.mcnemar(before, after)
            gained, lost, p = int(test["gained"]), int(test["lost"]), float(test["mcnemar_p"])
            found.append(Pair(label(i), str(other.path), split, len(before), value, low, high, gained, lost, p))
    return found


def _outcomes(first: Path, other: Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """By split, whether each sample's class was predicted by either, bool [n]."""
    found: dict[str, tuple[scratch.Growing, scratch.Growing]] = {}
    differ: set[str] = set()
    with closing(_rows(first)) as rows, closing(_rows(other)) as others:
        for mine, theirs in zip_longest(rows, others):
            if mine is None or theirs is None or mine[:3] != theirs[:3]:
                differ |= {row[0] for row in (mine, theirs) if row}
                continue
            columns = found.setdefault(mine[0], (scratch.Growing(bool), scratch.Growing(bool)))
            for column, row in zip(columns, (mine, theirs), strict=True):
                column.add(row[2] == row[3])
    return {split: (a.array(), b.array()) for split, (a, b) in found.items() if split not in differ}


def _rows(path: Path) -> Generator[tuple[str, str, str, str]]:
    """Split, path, label and predicted class; none where there is no such file, up to where it stops being one."""
    if not path.is_file():  # a pipe would block
        return
    try:
        with path.open(encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file, strict=True):
                yield row["split"], row["path"], row["label"], row["predicted"]
    except (OSError, ValueError, KeyError, csv.Error):
        return
