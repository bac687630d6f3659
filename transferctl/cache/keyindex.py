"""Which samples have which key: an index in files, not in memory, whatever the number of samples."""

from __future__ import annotations

import numpy as np

from transferctl import scratch
from transferctl.cache.shards import KEY_BYTES


class KeyIndex:
    """keys: uint8 [n, 32]. `first`: int32 [n], of each sample the first one that has the same key. A key of zeros is
    no key: such a sample equals no other and is never found.

    Keys are told apart as a whole. Of different ones that agree in their first 44 bits (at a million samples), equal
    samples may be taken for different ones: then a row is there twice.
    """

    def __init__(self, keys: np.ndarray):
        assert keys.dtype == np.uint8 and keys.ndim == 2 and keys.shape[1] == KEY_BYTES
        self.keys = keys
        self._bits = np.uint64(max(1, (len(keys) - 1).bit_length()))
        self._in_order = self._sorted()
        self.first = self._firsts()

    def _sorted(self) -> np.ndarray:
        """uint64 [n] in order: the sample in the low bits, and as many bits of its key as fit above."""
        packed = scratch.empty(len(self.keys), np.uint64)
        for part in scratch.pieces(len(self.keys)):
            packed[part] = self._prefix(self.keys[part]) | np.arange(part.start, part.stop, dtype=np.uint64)
        packed.sort()
        return packed

    def _prefix(self, keys: np.ndarray) -> np.ndarray:
        prefix: np.ndarray = words(keys)[:, 0] >> self._bits << self._bits
        return prefix

    def _samples(self, packed: np.ndarray) -> np.ndarray:
        samples: np.ndarray = (packed & ((np.uint64(1) << self._bits) - np.uint64(1))).astype(np.int64)
        return samples

    def _firsts(self) -> np.ndarray:
        first = scratch.empty(len(self.keys), np.int32)
        leader, content = -1, np.zeros((1, KEY_BYTES // 8), np.uint64)
        for part in scratch.pieces(len(self.keys)):
            samples = self._samples(self._in_order[part])
            content = np.concatenate([content[-1:], words(self.keys[samples])])
            same = (content[1:] == content[:-1]).all(axis=1) & content[1:].any(axis=1)
            leads = np.maximum.accumulate(np.where(same, -1, np.arange(len(samples))))
            leaders = np.where(leads >= 0, samples[leads], leader)
            first[samples], leader = leaders, int(leaders[-1])
        return first

    def find(self, keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """keys: uint8 [m, 32]. Of those that samples have: the first such sample, and the row in `keys`, int64."""
        prefix = self._prefix(keys)
        rows = np.argsort(prefix)[: len(keys) if len(self.keys) else 0]  # in order the search walks the index once
        at = np.searchsorted(self._in_order, prefix[rows])
        found: list[tuple[np.ndarray, np.ndarray]] = []
        while len(rows) or not found:  # once, unless the prefixes of different keys are equal
            packed = self._in_order[np.minimum(at, len(self.keys) - 1)]
            alike = (at < len(self.keys)) & (packed >> self._bits << self._bits == prefix[rows])
            rows, at, samples = rows[alike], at[alike], self._samples(packed[alike])
            same = (words(self.keys[samples]) == words(keys[rows])).all(axis=1)
            found.append((samples[same], rows[same]))
            rows, at = rows[~same], at[~same] + 1
        return np.concatenate([samples for samples, _ in found]), np.concatenate([rows for _, rows in found])


def words(keys: np.ndarray) -> np.ndarray:
    """uint64 [n, 4]."""
    return np.ascontiguousarray(keys).view("<u8")
