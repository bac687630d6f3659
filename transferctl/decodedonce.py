"""Images that one backbone has been shown, kept for the next that wants the same pixels: decoding photographs of twelve
megapixels takes longer than a small network."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass, replace

import numpy as np
import torch

from transferctl import loaders, scratch
from transferctl.contracts import Batch, Task
from transferctl.data import Split
from transferctl.errors import ResourceError
from transferctl.loaders import Views
from transferctl.preprocess import Preprocessing

LIMIT = 10**9  # bytes, in a temporary file


class DecodedOnce:
    """For one split: batches as `loaders.view_batches` gives them. Where the pixels of all its images are more than the
    limit, or the temporary folder has no room, none are kept."""

    def __init__(self, limit: int = LIMIT):
        self._limit = limit
        self._held: dict[Preprocessing, _Held] = {}

    def __call__(
        self, split: Split, rows: np.ndarray, views: Views | None, task: Task, preprocessing: Preprocessing, *,
        batch_size: int, workers: int,
    ) -> Generator[Batch]:  # fmt: skip
        """rows: positions in the split, int64. Raises BrokenSamples."""
        assert views is None, "random views are another's each time"
        held = self._for(split, preprocessing)
        parts = [rows[start : start + batch_size] for start in range(0, len(rows), batch_size)]
        unknown = [part for part in parts if held is None or not held.has(part)]
        missing = np.concatenate([rows[:0], *unknown])
        decoded = loaders.view_batches(
            split, missing, None, task, preprocessing, batch_size=batch_size, workers=workers
        )  # fmt: skip
        for part in parts:
            if held is not None and held.has(part):
                yield held.batch(part)
                continue
            batch = next(decoded)
            if held is not None:
                held.keep(part, batch)
            yield batch

    def _for(self, split: Split, preprocessing: Preprocessing) -> _Held | None:
        """Where pixels like these are kept; of others as many as the limit leaves room for, the newest."""
        pixels = replace(preprocessing, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))  # taken off later, by the network
        size = len(split) * 3 * preprocessing.crop**2
        if pixels not in self._held and size <= self._limit:
            while sum(held.pixels.nbytes for held in self._held.values()) + size > self._limit:
                del self._held[next(iter(self._held))]
            try:
                self._held[pixels] = _Held.empty(split, preprocessing.crop)
            except ResourceError:
                return None
        return self._held.get(pixels)


@dataclass(frozen=True)
class _Held:
    """pixels: uint8 [n, crop, crop, 3]; digests: uint8 [n, 32], of what each was read from; known: bool [n]."""

    split: Split
    pixels: np.ndarray
    digests: np.ndarray
    known: np.ndarray

    @classmethod
    def empty(cls, split: Split, crop: int) -> _Held:
        n = len(split)
        pixels, digests = scratch.empty((n, crop, crop, 3), np.uint8), scratch.empty((n, 32), np.uint8)
        return cls(split, pixels, digests, scratch.filled(n, False, bool))

    def has(self, rows: np.ndarray) -> bool:
        return bool(self.known[rows].all())

    def keep(self, rows: np.ndarray, batch: Batch) -> None:
        assert batch.digests is not None
        self.pixels[rows] = batch.inputs.permute(0, 2, 3, 1).numpy()
        self.digests[rows] = batch.digests
        self.known[rows] = True

    def batch(self, rows: np.ndarray) -> Batch:
        """channels_last, as images are decoded."""
        inputs = torch.from_numpy(self.pixels[rows]).permute(0, 3, 1, 2)
        labels = torch.from_numpy(self.split.labels[rows].astype(np.int64))
        return Batch(inputs, labels, digests=self.digests[rows])
