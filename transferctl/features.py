"""Frozen features, computed once an image. (A cache on disk, keyed by content, belongs here.)"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from transferctl import loaders
from transferctl.contracts import Batch, Features, Task
from transferctl.data import Split
from transferctl.device import Compute
from transferctl.display import Display
from transferctl.loaders import Stream
from transferctl.model import TransferModel


@dataclass(frozen=True)
class FeatureTable:
    """pooled: float32 [n, D]; labels: int64 [n]; in the split's order, on the CPU."""

    pooled: Tensor
    labels: Tensor
    split: Split

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, positions: np.ndarray, domain: str) -> Batch:
        index = torch.from_numpy(positions)
        names = tuple(map(self.split.sample_name, positions.tolist()))
        n_source = len(positions) if domain == "source" else 0
        return Batch(self.pooled[index], self.labels[index], n_source, names)


def compute(
    model: TransferModel,
    task: Task,
    split: Split,
    compute_on: Compute,
    display: Display,
    *,
    batch_size: int,
    workers: int,
) -> FeatureTable:
    """One pass of the frozen backbone, in eval mode, over a split. Raises DataError for broken samples."""
    model.eval()
    pooled = torch.empty(len(split), model.backbone.feature_dim)
    labels = torch.empty(len(split), dtype=torch.int64)
    done = 0
    batches = loaders.evaluation_batches(split, task, model.preprocessing, batch_size=batch_size, workers=workers)
    with torch.inference_mode(), display.progress(f"features of {split.name}", len(split)) as progress:
        for batch in batches:
            with torch.autocast(compute_on.device.type, torch.bfloat16, enabled=compute_on.bf16):
                features = model.features(batch.inputs.to(compute_on.device))
            rows = slice(done, done + len(batch.labels))
            pooled[rows], labels[rows] = features.pooled.float().cpu(), batch.labels
            done = rows.stop
            progress.advance(len(batch.labels))
    return FeatureTable(pooled, labels, split)


def training_stream(table: FeatureTable, *, batch_size: int, epochs: int, seed: int, domain: str) -> Stream:
    """The same order as images would have: every step of every epoch."""
    batches = (
        table.batch(drawn[:, 0], domain)
        for epoch in range(epochs)
        for drawn in loaders.epoch_batches(table.split.labels, batch_size, seed, epoch, table.split.balanced)
    )
    return Stream(batches, loaders.steps_per_epoch(len(table), batch_size), len(table))


def of_batch(batch: Batch) -> Features:
    return Features(batch.inputs)


def evaluation_batches(table: FeatureTable, batch_size: int = 4096) -> Iterator[Batch]:
    for start in range(0, len(table), batch_size):
        yield Batch(table.pooled[start : start + batch_size], table.labels[start : start + batch_size])
