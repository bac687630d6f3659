"""What the target's data are like, as far as that decides how to fine-tune: how many labels, how even, how large."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from transferctl import grouping, images
from transferctl.contracts import BadSample
from transferctl.data import DomainData, Split
from transferctl.images import ImageFiles
from transferctl.wording import printable

LOOKED_AT = 300  # training images whose size is read, at most
UNEVEN = 10.0  # of the largest class to the smallest, from which on check too advises weights


@dataclass(frozen=True)
class DataFacts:
    """Of target.train and target.val; pixels: of the images that were looked at; enlarged: the share of them whose
    short side is below `resize`, so that they are scaled up; majority: the largest class's share of validation data."""

    train: int
    val: int
    counts: Mapping[str, int]
    majority: float
    median_side: int
    enlarged: float
    resize: int
    crop: int

    @property
    def smallest(self) -> tuple[str, int]:
        name = min(self.counts, key=self.counts.__getitem__)
        return name, self.counts[name]

    @property
    def largest(self) -> tuple[str, int]:
        name = max(self.counts, key=self.counts.__getitem__)
        return name, self.counts[name]

    @property
    def imbalance(self) -> float:
        return self.largest[1] / self.smallest[1]

    def as_json(self) -> dict[str, Any]:
        return asdict(self) | {"counts": dict(self.counts), "imbalance": self.imbalance, "chance": 1 / len(self.counts)}


def look(target: DomainData, resize: int, crop: int) -> DataFacts:
    counts = grouping.counts(target.train.labels, len(target.classes))
    val = grouping.counts(target.val.labels, len(target.classes))
    short = _short_sides(target.train)
    return DataFacts(
        len(target.train), len(target.val),
        {name: int(n) for name, n in zip(target.classes, counts, strict=True)},
        float(val.max() / val.sum()), int(np.median(short)) if len(short) else 0,
        float((short < resize).mean()) if len(short) else 0.0, resize, crop,
    )  # fmt: skip


def _short_sides(split: Split) -> np.ndarray:
    """int64 [n], of a few, spread over all; what cannot be read is told where it is trained on."""
    drawn = np.linspace(0, len(split) - 1, min(LOOKED_AT, len(split))).round().astype(int)
    sides = []
    for index in split.indices[drawn].tolist():
        try:
            is_file = isinstance(split.dataset, ImageFiles)
            size = images.header_size(split.dataset.name(index)) if is_file else split.dataset.read(index).size
        except BadSample:
            continue
        sides.append(min(size))
    return np.array(sides, dtype=np.int64)


def rows(facts: DataFacts) -> list[list[str]]:
    smallest, largest = ((printable(name), n) for name, n in (facts.smallest, facts.largest))
    margin = 98 / facts.val**0.5  # half the 95 % interval of an accuracy of one half, points
    return [
        ["to train on", f"{facts.train:,} images of {len(facts.counts):,} classes"],
        ["to validate on", f"{facts.val:,} images: accuracies are told to ±{margin:.0f} points"],
        ["smallest class", f"{smallest[0]}, {smallest[1]:,}"],
        ["largest class", f"{largest[0]}, {largest[1]:,}: {facts.imbalance:.1f} to 1{_evenness(facts)}"],
        ["image size", _size(facts)],
    ]


def _evenness(facts: DataFacts) -> str:
    return "; target.balance: weights is worth a try" if facts.imbalance >= UNEVEN else ""


def _size(facts: DataFacts) -> str:
    if not facts.median_side:
        return "unknown: none could be looked at"
    scaled = f"{100 * facts.enlarged:.0f} % are enlarged" if facts.enlarged else "none is enlarged"
    return f"median short side {facts.median_side} pixels; the network sees {facts.crop} of {facts.resize}: {scaled}"
