"""Which of a million images look alike: all pairs within a few bits of 64, without looking at all pairs.

Pigeonhole (multi-index hashing: Norouzi, Punjani & Fleet, CVPR 2012; with sorted tables: Manku, Jain & Das Sarma, WWW
2007): bits that differ in at most r places leave, of r + k bands, at least k untouched. So for each choice of k bands
the hashes are sorted by these, and compared where they agree. Arrays are files (see scratch.py).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations, count

import numpy as np

from transferctl import grouping, scratch

RADIUS = 9  # of the first 64 bits so many may differ …
WHOLE_RADIUS = 80  # … and of all 256 so many
AGREEING = 16  # samples that agree in a choice of bands by chance; fewer bands would make more of them
WINDOW = 4 * AGREEING  # of those that agree so many are compared with each, where photographs make more than chance …
EFFORT, TIRED = 4000, 4  # comparisons a sample, twice what chance makes; after these a window of so many
COMPARISONS = 4_000_000  # … or as many as there is time for, where the samples are few
NONE = np.uint64(0xFFFFFFFFFFFFFFFF)
_HALF, _LOW, _HIGH = np.uint64(32), np.uint64(0xFFFFFFFF), np.uint64(0xFFFFFFFF00000000)


@dataclass(frozen=True)
class Near:
    """Of each sample the nearest earlier one of another split, and, in the first split, of another label: uint64 [n],
    distance << 32 | position; NONE where there is none. cut: samples with more neighbours than were looked at."""

    across: np.ndarray
    conflicting: np.ndarray
    cut: int


def search(words: np.ndarray, splits: np.ndarray, labels: np.ndarray, compared: np.ndarray) -> Near:
    """words: uint64 [n, 4], see perceptual.py; splits, labels: of each; compared: int32 [k], the positions that take
    part. Complete where no more than WINDOW samples agree in any choice of bands; of more, drawn ones are
    compared, and so few after EFFORT that hashes which all are alike take minutes, not days."""
    near = _Nearest(words, splits, labels)
    order = scratch.taken(compared, grouping.permutation(len(compared), np.random.default_rng(0)))
    keys = scratch.mapped(lambda positions: words[positions, 0], order, np.uint64)
    cut, effort = scratch.filled(len(order), False, bool), 0
    for mask in _masks(len(order)):
        window = max(WINDOW, COMPARISONS // max(len(order), 1)) if effort < EFFORT * len(order) else TIRED
        for one, other, comparisons in _alike(keys, mask, window, cut):
            effort += comparisons
            near.add(order[one], order[other])
    return Near(near.across, near.conflicting, int(np.count_nonzero(cut)))


def pairs(nearest: np.ndarray) -> Iterator[tuple[int, int, int]]:
    """(position, earlier, distance) of each sample that has a near one, the nearest first."""

    def marked(positions: np.ndarray) -> np.ndarray:
        by_distance: np.ndarray = nearest[positions] & _HIGH | positions.astype(np.uint64)
        return by_distance

    order = scratch.mapped(marked, scratch.positions(nearest != NONE), np.uint64)
    order.sort()
    for part in scratch.pieces(len(order)):
        positions = _low(order[part])
        earlier, distances = _low(nearest[positions]), order[part] >> _HALF
        yield from zip(positions.tolist(), earlier.tolist(), distances.tolist(), strict=True)


def _low(packed: np.ndarray) -> np.ndarray:
    """The lower halves, int64."""
    halves: np.ndarray = (packed & _LOW).astype(np.int64)
    return halves


def _masks(n: int) -> Iterator[np.uint64]:
    """The bits of each choice of k bands, of which k suffice to tell n hashes apart."""
    k = next(k for k in count(1) if n <= AGREEING * 2 ** (64 * k / (RADIUS + k)))
    bands = [sum(1 << bit for bit in range(band, 64, RADIUS + k)) for band in range(RADIUS + k)]
    return (np.uint64(sum(chosen)) for chosen in combinations(bands, k))


def _alike(
    keys: np.ndarray, mask: np.uint64, window: int, cut: np.ndarray
) -> Iterator[tuple[np.ndarray, np.ndarray, int]]:
    """Rows of pairs of keys that agree in `mask` and differ in RADIUS bits at most, and how many were compared: each
    with its next `window` in sorted order. Rows are in random order, so these are drawn where more agree."""
    marked = _sorted_by(keys, mask)
    for part in scratch.pieces(len(marked)):
        piece = marked[part.start : part.stop + window + 1]
        rows, agreed = _low(piece), piece >> _HALF
        own, at = keys[rows], np.arange(part.stop - part.start)
        for step in range(1, window + 2):
            at = at[: np.searchsorted(at, len(piece) - step)]
            at = at[agreed[at] == agreed[at + step]]
            if not len(at) or step > window:
                break
            close = at[differing(own[at] ^ own[at + step]) <= RADIUS]
            yield rows[close], rows[close + step], len(at)
        cut[rows[at]] = True


def _sorted_by(keys: np.ndarray, mask: np.uint64) -> np.ndarray:
    """uint64 [n]: 32 bits that are the same where the masked keys are (and seldom elsewhere), then the row."""
    marked = scratch.empty(len(keys), np.uint64)
    for part in scratch.pieces(len(keys)):
        spread = (keys[part] & mask) * np.uint64(0x9E3779B97F4A7C15)  # Knuth's multiplicative hashing
        rows = np.arange(part.start, part.stop, dtype=np.uint64)
        marked[part] = spread & _HIGH | rows
    marked.sort()
    return marked


class _Nearest:
    """The nearest so far: one of each sample, however many there are."""

    def __init__(self, words: np.ndarray, splits: np.ndarray, labels: np.ndarray):
        self._words, self._splits, self._labels = words, splits, labels
        self.across, self.conflicting = (scratch.filled(len(words), NONE, np.uint64) for _ in range(2))

    def add(self, one: np.ndarray, other: np.ndarray) -> None:
        if not len(one):
            return
        first, later = np.minimum(one, other), np.maximum(one, other)
        across = self._splits[first] != self._splits[later]
        conflicting = ~across & (self._splits[first] == 0) & (self._labels[first] != self._labels[later])
        for nearest, kind in ((self.across, across), (self.conflicting, conflicting)):
            if kind.any():
                self._note(nearest, first[kind], later[kind])

    def _note(self, nearest: np.ndarray, first: np.ndarray, later: np.ndarray) -> None:
        nearer = nearest[later] > _LOW  # no more of those at distance 0, where all hashes are the same
        first, later = first[nearer], later[nearer]
        distance = differing(self._words[first] ^ self._words[later]).sum(axis=1)
        near = distance <= WHOLE_RADIUS
        value = distance[near].astype(np.uint64) << _HALF | first[near].astype(np.uint64)
        np.minimum.at(nearest, later[near], value)


def differing(words: np.ndarray) -> np.ndarray:
    """uint64 -> how many bits are set, int64. numpy has it only since 2.0."""
    quarters = np.ascontiguousarray(words).view(np.uint16).reshape(*words.shape, 4)
    total: np.ndarray = _SET_BITS[quarters].sum(axis=-1, dtype=np.int64)
    return total


_SET_BITS = np.array([number.bit_count() for number in range(1 << 16)], np.uint8)
