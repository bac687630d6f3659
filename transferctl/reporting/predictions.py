"""predictions.csv, read once, row by row: the mistakes a report shows, and how well confidence agrees with accuracy."""

from __future__ import annotations

import csv
import heapq
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

BINS = 15  # of equal width, as Guo et al. (ICML 2017) have them


@dataclass(frozen=True)
class Prediction:
    """position: in its split; probability: of the predicted class."""

    position: int
    path: str
    label: str
    predicted: str
    probability: float

    @property
    def is_right(self) -> bool:
        return self.label == self.predicted


@dataclass(frozen=True)
class Bin:
    """Samples whose confidence is in (low, high]: how many, their mean confidence, and the share that is right."""

    low: float
    high: float
    n: int
    confidence: float
    accuracy: float


@dataclass(frozen=True)
class Predicted:
    """Of a split: how many there are and are wrong, the worst mistakes (the surest first), the least certain."""

    n: int
    wrong: int
    worst: tuple[Prediction, ...]
    uncertain: tuple[Prediction, ...]
    bins: tuple[Bin, ...]


def read(path: Path, split: str, most: int) -> Predicted | None:
    """None where there is no such file, no row of the split, or a row that is none. most: examples of each kind."""
    if not path.is_file():  # a pipe would block
        return None
    try:
        with path.open(encoding="utf-8", newline="") as file:
            return summarised(_rows(file, split), most)
    except (OSError, ValueError, csv.Error):
        return None


def _rows(file: Iterator[str], split: str) -> Iterator[Prediction]:
    """Raises ValueError where a column is missing or a probability is none."""
    rows = csv.reader(file, strict=True)
    header = next(rows, [])
    columns = [header.index(name) for name in ("split", "path", "label", "predicted", "probability")]
    position = 0
    for row in rows:
        if len(row) != len(header):
            raise ValueError("a row is cut")
        found, name, label, predicted, probability = (row[column] for column in columns)
        if found != split:
            continue
        p = float(probability)
        if not 0 <= p <= 1:
            raise ValueError("a probability is none")
        yield Prediction(position, name, label, predicted, p)
        position += 1


def summarised(rows: Iterator[Prediction], most: int) -> Predicted | None:
    """None without a row. A million rows take no memory."""
    worst, uncertain = _Least(most, lambda row: -row.probability), _Least(most, lambda row: row.probability)
    counts, confidences, right = (np.zeros(BINS) for _ in range(3))
    for row in rows:
        if not row.is_right:
            worst.offer(row)
        uncertain.offer(row)
        place = min(max(math.ceil(row.probability * BINS) - 1, 0), BINS - 1)
        counts[place] += 1
        confidences[place] += row.probability
        right[place] += row.is_right
    n = int(counts.sum())
    if not n:
        return None
    bins = [
        Bin(i / BINS, (i + 1) / BINS, int(m), float(confidences[i] / m), float(right[i] / m))
        for i, m in enumerate(counts)
        if m
    ]
    return Predicted(n, n - int(right.sum()), worst.kept(), uncertain.kept(), tuple(bins))


def expected_error(bins: Sequence[Bin]) -> float:
    """ECE: the mean over samples of |accuracy − confidence| of their bins."""
    n = sum(one.n for one in bins)
    return sum(one.n * abs(one.accuracy - one.confidence) for one in bins) / n if n else 0.0


class _Least:
    """The few rows with the least keys; of equal ones the first."""

    def __init__(self, most: int, key: Callable[[Prediction], float]):
        self._most, self._key = most, key
        self._heap: list[tuple[float, int, Prediction]] = []  # negated, so that the greatest key is on top

    def offer(self, row: Prediction) -> None:
        entry = (-self._key(row), -row.position, row)
        if len(self._heap) < self._most:
            heapq.heappush(self._heap, entry)
        elif entry > self._heap[0]:
            heapq.heapreplace(self._heap, entry)

    def kept(self) -> tuple[Prediction, ...]:
        return tuple(row for _, _, row in sorted(self._heap, reverse=True))
