"""predictions.csv, read row by row: the mistakes a report shows, how well confidence agrees with accuracy, and which
samples were predicted."""

from __future__ import annotations

import csv
import hashlib
import heapq
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from transferctl import calibration, scratch
from transferctl.calibration import Bin
from transferctl.errors import DataError
from transferctl.wording import one_line

FILE = "predictions.csv"
COLUMNS = ("split", "path", "label", "predicted", "probability")
LINE = 100_000  # characters that are looked at as one line; a longer one is none of ours
MOST_SPLITS = 20


class Row(NamedTuple):
    """probability: of the predicted class."""

    split: str
    path: str
    label: str
    predicted: str
    probability: float


def rows(run: Path) -> Iterator[Row]:
    """Of a run's predictions.csv, in order; none where it has no such file. Raises DataError with the line where it
    stops being one."""
    path, line = run / FILE, 0
    try:
        if not path.exists():
            return
        if not path.is_file():  # a pipe would block
            raise ValueError("it is not a regular file")
        with path.open(encoding="utf-8", newline="") as file:
            found = csv.reader(iter(partial(file.readline, LINE), ""), strict=True)
            line = 1
            header = next(found, [])
            if missing := [name for name in COLUMNS if name not in header]:
                raise ValueError(f"no column {missing[0]}")
            places = [header.index(name) for name in COLUMNS]
            line = found.line_num + 1
            for cells in found:
                yield _row(cells, len(header), places)
                line = found.line_num + 1
    except (OSError, ValueError, csv.Error) as error:
        where = f"line {line}: " if line else ""
        raise DataError(f"{FILE} cannot be read: {where}{one_line(error, 120)}") from None


def _row(cells: list[str], width: int, places: list[int]) -> Row:
    if len(cells) != width:
        raise ValueError(f"it has {len(cells)} cells, not {width}")
    split, path, label, predicted, text = (cells[place] for place in places)
    probability = float(text)
    if not 0 <= probability <= 1:
        raise ValueError("a probability is none")
    return Row(split, path, label, predicted, probability)


# -- of one split: the mistakes -----------------------------------------------------------------------


@dataclass(frozen=True)
class Prediction:
    """position: in its split, None where its image is not known; probability: of the predicted class."""

    position: int | None
    path: str
    label: str
    predicted: str
    probability: float

    @property
    def is_right(self) -> bool:
        return self.label == self.predicted


@dataclass(frozen=True)
class Predicted:
    """Of a split: how many predictions there are and are wrong, the worst mistakes (the surest first), the least
    certain; of: samples of the split, which are more where only some were looked at; folder: that all paths share."""

    n: int
    wrong: int
    worst: tuple[Prediction, ...]
    uncertain: tuple[Prediction, ...]
    bins: tuple[Bin, ...]
    of: int
    folder: str = ""


def read(run: Path, split: str, most: int) -> Predicted | None:
    """None where the run kept no predictions of the split. most: examples of each kind. Raises DataError."""
    return summarised(_of_split(run, split), most)


def _of_split(run: Path, split: str) -> Iterator[Prediction]:
    own = (row for row in rows(run) if row.split == split)
    for position, row in enumerate(own):
        yield Prediction(position, row.path, row.label, row.predicted, row.probability)


def summarised(rows: Iterator[Prediction], most: int, of: int | None = None) -> Predicted | None:
    """None without a row. of: samples that these are some of."""
    worst, uncertain = _Least(most, lambda row: -row.probability), _Least(most, lambda row: row.probability)
    confidence, right = scratch.Growing(np.float64), scratch.Growing(bool)
    first = last = None
    n = hits = 0
    for n, row in enumerate(rows, 1):
        if not row.is_right:
            worst.offer(row, n)
        uncertain.offer(row, n)
        confidence.add(row.probability)
        right.add(row.is_right)
        hits += row.is_right
        first = row.path if first is None else min(first, row.path)
        last = row.path if last is None else max(last, row.path)
    if first is None or last is None:
        return None
    bins = tuple(Bin(**one) for one in calibration.reliability(confidence.array(), right.array()))
    folder = shared_folder(first, last)
    return Predicted(n, n - hits, worst.kept(), uncertain.kept(), bins, of or n, folder)


def shared_folder(first: str, last: str) -> str:
    """Of all names from the first to the last in their order; what follows it is the same where data was moved as a
    whole, as Split.fingerprint counts names."""
    try:
        return os.path.commonpath((first, last))
    except ValueError:  # some begin at / and some do not
        return ""


class _Least:
    """The few rows with the least keys; of equal ones the first."""

    def __init__(self, most: int, key: Callable[[Prediction], float]):
        self._most, self._key = most, key
        self._heap: list[tuple[float, int, Prediction]] = []  # negated, so that the greatest key is on top

    def offer(self, row: Prediction, number: int) -> None:
        entry = (-self._key(row), -number, row)
        if len(self._heap) < self._most:
            heapq.heappush(self._heap, entry)
        elif entry > self._heap[0]:
            heapq.heapreplace(self._heap, entry)

    def kept(self) -> tuple[Prediction, ...]:
        return tuple(row for _, _, row in sorted(self._heap, reverse=True))


# -- of all splits: which samples, and whether they are right -----------------------------------------


@dataclass
class Outcomes:
    """Of one split: a digest of the samples' paths and labels in their order, and of each whether its class was
    predicted."""

    _samples: hashlib._Hash = field(default_factory=hashlib.sha256)
    _hits: scratch.Growing = field(default_factory=lambda: scratch.Growing(bool))

    def add(self, row: Row) -> None:
        for text in (row.path, row.label):
            content = text.encode()
            self._samples.update(len(content).to_bytes(8) + content)
        self._hits.add(row.label == row.predicted)

    @property
    def samples(self) -> str:
        return self._samples.hexdigest()

    @property
    def hits(self) -> np.ndarray:
        """bool [n]."""
        return self._hits.array()


def outcomes(run: Path) -> dict[str, Outcomes]:
    """By split. Raises DataError."""
    found: dict[str, Outcomes] = {}
    for row in rows(run):
        if row.split not in found and len(found) == MOST_SPLITS:
            raise DataError(f"{FILE} cannot be read: it has more than {MOST_SPLITS} splits")
        found.setdefault(row.split, Outcomes()).add(row)
    return found
