"""Which of a million things are equal: by sorted hashes in a file, where a dict of them all would be 100s of MB."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator
from itertools import islice

import numpy as np

from transferctl import scratch


def earlier(hashes: np.ndarray, value: Callable[[int], Hashable]) -> Iterator[tuple[int, int]]:
    """(position, first): of each thing that is equal to an earlier one, and the first of these; in order of positions.

    hashes: uint32 [n], equal where things are equal. value: a position's thing itself, asked for where hashes agree.
    """
    marked = _sorted_with_positions(hashes)
    found = scratch.Growing(np.uint64)
    first: dict[Hashable, int] = {}
    for position, starts in _with_equal_hash(marked):
        if starts:
            first.clear()
        before = first.setdefault(value(position), position)
        if before != position:
            found.append(np.array([position << 32 | before], np.uint64))
    pairs = found.array()
    pairs.sort()
    for part in scratch.pieces(len(pairs)):
        yield from ((pair >> 32, pair & 0xFFFFFFFF) for pair in pairs[part].tolist())


def hashes(values: Iterable[Hashable], n: int) -> np.ndarray:
    """uint32 [n], of n values; the same in one process alone."""
    found, values = scratch.empty(n, np.uint32), iter(values)
    for part in scratch.pieces(n):
        size = part.stop - part.start
        found[part] = np.fromiter((hash(value) & 0xFFFFFFFF for value in islice(values, size)), np.uint32, size)
    return found


def _sorted_with_positions(hashes: np.ndarray) -> np.ndarray:
    """uint64 [n], each a hash and, in its lower half, the position."""
    marked = scratch.empty(len(hashes), np.uint64)
    for part in scratch.pieces(len(hashes)):
        numbers = np.arange(part.start, part.stop, dtype=np.uint64)
        marked[part] = hashes[part].astype(np.uint64) << np.uint64(32) | numbers
    marked.sort()
    return marked


def _with_equal_hash(marked: np.ndarray) -> Iterator[tuple[int, bool]]:
    """The positions whose hash another has too, a group after the other; whether each starts its group."""
    for part in scratch.pieces(len(marked)):
        before, after = marked[max(part.start - 1, 0) : part.stop - 1], marked[part.start + 1 : part.stop + 1]
        own = marked[part] >> np.uint64(32)
        as_before, as_after = np.zeros((2, len(own)), dtype=bool)
        as_before[len(own) - len(before) :] = own[len(own) - len(before) :] == before >> np.uint64(32)
        as_after[: len(after)] = own[: len(after)] == after >> np.uint64(32)
        shared = as_before | as_after
        positions = (marked[part][shared] & np.uint64(0xFFFFFFFF)).tolist()
        yield from zip(positions, (~as_before[shared]).tolist(), strict=True)
