"""Samples by their label, in arrays of 4 bytes a sample that are no memory of the process (see scratch.py)."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from transferctl import scratch


def counts(labels: np.ndarray, n_classes: int) -> np.ndarray:
    """int64 [n_classes]: how many samples have each label; negative ones are of no class."""
    total = np.zeros(n_classes, dtype=np.int64)
    for part in scratch.pieces(len(labels)):
        piece = labels[part]
        total += np.bincount(piece[piece >= 0], minlength=n_classes)
    return total


def members(labels: np.ndarray, n_classes: int) -> Iterator[tuple[int, np.ndarray]]:
    """Of each label that occurs, ascending: (label, positions), int32 [n_c], ascending. No label may be negative."""
    sizes = counts(labels, n_classes)
    ends = np.cumsum(sizes)
    free, positions = ends - sizes, scratch.empty(len(labels), np.int32)  # free: where a class's next one goes
    for part in scratch.pieces(len(labels)):
        order = np.argsort(labels[part], kind="stable")
        here = np.bincount(labels[part], minlength=n_classes)
        earlier = np.arange(len(order)) - np.repeat(np.cumsum(here) - here, here)  # of the same class, in this piece
        positions[np.repeat(free, here) + earlier] = order + part.start
        free += here
    yield from ((int(i), positions[ends[i] - sizes[i] : ends[i]]) for i in np.flatnonzero(sizes))


def shuffled(values: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """`random.permutation(values)`, the same order, as int32 [n]."""
    result = scratch.empty(len(values), np.int32)
    result[:] = values
    random.shuffle(result)
    return result


def permutation(n: int, random: np.random.Generator) -> np.ndarray:
    """`random.permutation(n)`, the same order, as int32 [n]."""
    numbers = scratch.arange(n)
    random.shuffle(numbers)
    return numbers
