"""The same image twice: in two splits, where it flatters the score, or in training data under two labels.

Identical samples are found by their digests, those that look alike by their hashes. A sample is said once, with the
first that it is identical to, or else with the nearest; of identical ones the first alone is compared with others.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, chain, pairwise

import numpy as np

from transferctl import nearduplicates, perceptual, repeats, scratch
from transferctl.audit import Looked


@dataclass(frozen=True)
class Pair:
    """Two samples, the earlier one first. bits: how many of 256 differ; None where the samples are identical."""

    names: tuple[str, str]
    classes: tuple[str, str]
    bits: int | None = None


@dataclass(frozen=True)
class Copies:
    """A domain's pairs, made as they are asked for. identical, near: of different splits; conflicts: of the training
    split and of different classes, the identical ones first. flat: readable samples too flat or too small to be
    compared; cut: samples that more look alike with than were compared."""

    identical: Iterator[Pair]
    near: Iterator[Pair]
    conflicts: Iterator[Pair]
    flat: int
    cut: int


def find(audits: Sequence[Looked], classes: Sequence[str]) -> Copies:
    """Of a domain's splits, the training split first. classes: its class map."""
    samples = _Samples(audits, classes)
    identical, conflicts = scratch.Growing(np.uint64), scratch.Growing(np.uint64)
    compared = samples.column(lambda audit, part: audit.samples["mode"][part] != b"", bool)
    readable = int(np.count_nonzero(compared))
    words = samples.column(lambda audit, part: audit.samples["hash"][part], np.uint64, (perceptual.WORDS,))
    for part in scratch.pieces(len(words)):
        compared[part] &= words[part].any(axis=1)
    flat = readable - int(np.count_nonzero(compared))
    for later, first in repeats.earlier(samples.column(_short_digest, np.uint32), samples.content):
        compared[later] = False
        if samples.splits[later] != samples.splits[first]:
            identical.add(later << 32 | first)
        elif samples.splits[first] == 0 and samples.labels[later] != samples.labels[first]:
            conflicts.add(later << 32 | first)
    near = nearduplicates.search(words, samples.splits, samples.labels, scratch.positions(compared))
    return Copies(
        samples.pairs(_unpacked(identical.array())),
        samples.pairs(nearduplicates.pairs(near.across)),
        chain(samples.pairs(_unpacked(conflicts.array())), samples.pairs(nearduplicates.pairs(near.conflicting))),
        flat,
        near.cut,
    )


class _Samples:
    """All splits in a row, the training split first. splits: uint8 [n]; labels: int32 [n]."""

    def __init__(self, audits: Sequence[Looked], classes: Sequence[str]):
        self._audits, self._classes = audits, classes
        self._ends = list(accumulate(len(audit.split) for audit in audits))
        numbers = {id(audit): number for number, audit in enumerate(audits)}
        self.splits = self.column(lambda audit, part: numbers[id(audit)], np.uint8)
        self.labels = self.column(lambda audit, part: audit.split.labels[part], np.int32)

    def column(
        self, of: Callable[[Looked, slice], np.ndarray | int], dtype: type, shape: tuple[int, ...] = ()
    ) -> np.ndarray:
        """[n, *shape]: what `of` makes of pieces of the splits."""
        found = scratch.empty((self._ends[-1], *shape), dtype)
        for audit, (start, end) in zip(self._audits, pairwise([0, *self._ends]), strict=True):
            for part in scratch.pieces(end - start):
                found[start + part.start : start + part.stop] = of(audit, part)
        return found

    def content(self, number: int) -> Hashable:
        """Unreadable samples are equal to none; they are reported already."""
        audit, position = self._located(number)
        return number if position in audit.broken else audit.digests[position].tobytes()

    def pairs(self, found: Iterator[tuple[int, int, int | None]]) -> Iterator[Pair]:
        """found: later, earlier, bits."""
        for later, earlier, bits in found:
            names, classes = zip(self._called(earlier), self._called(later), strict=True)
            yield Pair(names, classes, bits)

    def _called(self, number: int) -> tuple[str, str]:
        """The sample's name and its class's; a class that training data does not have is reported already."""
        audit, position = self._located(number)
        label = int(audit.split.labels[position])
        return audit.split.sample_name(position), self._classes[label] if label >= 0 else ""

    def _located(self, number: int) -> tuple[Looked, int]:
        which = bisect_right(self._ends, number)
        return self._audits[which], number - self._ends[which] + len(self._audits[which].split)


def _short_digest(audit: Looked, part: slice) -> np.ndarray:
    """uint32: the first four bytes of the digests."""
    return np.ascontiguousarray(audit.digests[part, :4]).view(np.uint32)[:, 0]


def _unpacked(packed: np.ndarray) -> Iterator[tuple[int, int, None]]:
    for part in scratch.pieces(len(packed)):
        yield from ((pair >> 32, pair & 0xFFFFFFFF, None) for pair in packed[part].tolist())
