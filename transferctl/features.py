"""What frozen stages make of each image, computed once and kept in the cache: features for heads, or the activations
that partial fine-tuning goes on from."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from transferctl import loaders, scratch
from transferctl.cache import hashes
from transferctl.cache.cache import Cache
from transferctl.cache.rows import Rows
from transferctl.contracts import Batch, Task
from transferctl.data import Split
from transferctl.display import Display
from transferctl.frozen import FrozenStages
from transferctl.loaders import Stream, Views
from transferctl.wording import counted

COMPUTING_BATCH = 64  # images that a worker hands over together
Decode = Callable[..., Iterator[Batch]]  # called as `loaders.view_batches`


@dataclass(frozen=True)
class FeatureTable:
    """A row a sample of the split and view of it, read from the cache's files as it is needed."""

    split: Split
    stages: FrozenStages
    rows: Rows
    views: Views | None = None

    @property
    def versions(self) -> int:
        """Of each image."""
        return self.views.number if self.views else 1

    def __len__(self) -> int:
        return len(self.split)

    def batch(self, positions: np.ndarray, domain: str = "target", view: np.ndarray | int = 0) -> Batch:
        """positions: [n] in the split; view: of each."""
        names = tuple(map(self.split.sample_name, positions.tolist()))
        n_source = len(positions) if domain == "source" else 0
        return replace(self.unnamed(positions, view), n_source=n_source, names=names)

    def unnamed(self, positions: np.ndarray, view: np.ndarray | int = 0) -> Batch:
        """Where no message will name a sample: to look the names up would take longer than to read the rows."""
        read = self.rows.read(np.asarray(view, np.int64) * len(self.split) + positions)
        labels = torch.from_numpy(self.split.labels[positions].astype(np.int64))
        return Batch(_from_rows(read, self.stages), labels, after=self.stages.count)


def compute(
    stages: FrozenStages, split: Split, task: Task, cache: Cache, display: Display, *, workers: int,
    decode: Decode = loaders.view_batches,
) -> FeatureTable:  # fmt: skip
    """A table of the split. Only what the cache does not have is decoded and computed. decode: where images come from.
    Raises as `find` and `complete`."""
    table = find(stages, split, cache)
    complete(table, task, display, workers=workers, decode=decode)
    return table


def find(stages: FrozenStages, split: Split, cache: Cache, views: Views | None = None) -> FeatureTable:
    """What the cache has of a split, or of fixed random views of it; to be completed, or its rows to be closed.

    Raises DataError for a file that changes all the time.
    """
    memo = cache.memo()
    with contextlib.nullcontext() if memo is None else memo:
        digests = hashes.digests(split, memo, verify=cache.verify)
    return FeatureTable(split, stages, cache.rows(stages.product, _keys(digests, split, views)), views)


def complete(
    table: FeatureTable, task: Task, display: Display, *, workers: int, decode: Decode = loaders.view_batches
) -> None:
    """Decode and compute what is missing. Raises BrokenSamples."""
    computed = 0
    distinct = table.rows.distinct
    with table.rows as rows:
        while len(missing := rows.missing):  # again, where a file changed while it was read and had an equal
            _fill(table, missing, task, display, workers, decode)
            computed += len(missing)
    title, name = table.stages.product.title, table.split.name
    equal = f", {counted(len(rows) - distinct, 'duplicate')}" if distinct < len(rows) else ""
    display.note(f"{title}: {name}: {max(distinct - computed, 0):,} of {distinct:,} from the cache{equal}")


def _fill(table: FeatureTable, missing: np.ndarray, task: Task, display: Display, workers: int, decode: Decode) -> None:
    table.stages.prepare(len(missing), COMPUTING_BATCH)
    batches = decode(
        table.split, missing, table.views, task, table.stages.preprocessing, batch_size=COMPUTING_BATCH, workers=workers
    )
    done = 0
    with display.progress(f"features of {table.split.name}", len(missing)) as progress:
        for batch in batches:
            positions = missing[done : done + len(batch.labels)]
            values = _to_rows(table.stages.of(batch).inputs)
            assert batch.digests is not None
            table.rows.add(positions, _real_keys(batch.digests, positions, table.split, table.views), values)
            done += len(positions)
            progress.advance(len(positions))


def _keys(digests: np.ndarray, split: Split, views: Views | None) -> np.ndarray:
    """uint8 [views · n, 32]: of a sample its content, of a view that and what the view is made by."""
    if views is None:
        return digests
    keys = scratch.empty((views.number * len(split), 32), np.uint8)
    for start in range(0, len(keys), 4096):
        positions = np.arange(start, min(start + 4096, len(keys)))
        keys[positions] = _real_keys(digests[positions % len(split)], positions, split, views)
    return keys


def _real_keys(digests: np.ndarray, rows: np.ndarray, split: Split, views: Views | None) -> np.ndarray:
    """digests: of the contents that rows [m] of a table were made from. Zeros, for what cannot be read, stay."""
    if views is None:
        return digests
    made_by = json.dumps([views.augment.model_dump(mode="json", exclude={"views"}), views.seed, views.is_source])
    keys = np.zeros((len(rows), 32), np.uint8)
    for i, (digest, row) in enumerate(zip(digests, rows.tolist(), strict=True)):
        if digest.any():
            view, index = row // len(split), int(split.indices[row % len(split)])
            keyed = hashlib.sha256(digest.tobytes() + f"{made_by} {view} {index}".encode())
            keys[i] = np.frombuffer(keyed.digest(), np.uint8)
    return keys


def _to_rows(activations: Tensor) -> np.ndarray:
    """[n, …] -> uint8 [n, row_bytes]; maps in channels_last order, as the stages make them."""
    if activations.ndim == 4:
        activations = activations.permute(0, 2, 3, 1)
    rows: np.ndarray = activations.cpu().contiguous().flatten(1).view(torch.uint8).numpy()
    return rows


def _from_rows(rows: np.ndarray, stages: FrozenStages) -> Tensor:
    values = torch.from_numpy(rows).view(stages.dtype)
    if len(stages.shape) == 3:
        channels, height, width = stages.shape
        return values.view(-1, height, width, channels).permute(0, 3, 1, 2)
    return values.view(-1, *stages.shape)


def training_stream(
    table: FeatureTable, *, batch_size: int, epochs: int, seed: int, domain: str, first_step: int = 0
) -> Stream:
    """The same order as images would have: every step of every epoch, from first_step on."""
    split = table.split
    steps = loaders.batches_from(first_step, split.labels, batch_size, seed, split.balanced, epochs=epochs)
    batches = (table.batch(drawn[:, 0], domain) for _, drawn in steps)
    return Stream(batches, loaders.steps_per_epoch(len(table), batch_size), len(table))


def evaluation_batches(table: FeatureTable, batch_size: int = 4096) -> Iterator[Batch]:
    """In the split's order, once."""
    for start in range(0, len(table), batch_size):
        yield table.unnamed(np.arange(start, min(start + batch_size, len(table))))
