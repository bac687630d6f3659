"""Batches of images, the same whatever the number of worker processes.

Order and augmentation are keyed by (seed, epoch, sample), never by a worker's state. A broken sample comes
out of a worker as a value; here it stops the pass, with the list of all broken samples.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor
from torch.utils.data import DataLoader

from transferctl.contracts import BadSample, Batch, Task
from transferctl.data import Split
from transferctl.display import Display
from transferctl.errors import DataError
from transferctl.images import ImageFiles, printable
from transferctl.preprocess import Preprocessing, evaluation_image, training_image
from transferctl.spec import AugmentSettings

SHOWN_BROKEN = 20


@dataclass(frozen=True)
class Unreadable:
    """A sample that could not be read: its name and why."""

    name: str
    reason: str

    def __str__(self) -> str:
        return f"{printable(self.name)} {self.reason}"


def workers_for(asked: int | str, split: Split) -> int:
    """auto: one a core (at most 8) where files are decoded and there are enough to pay for starting them."""
    if isinstance(asked, int):
        return asked
    return min(os.cpu_count() or 1, 8) if isinstance(split.dataset, ImageFiles) and len(split) >= 64 else 0


def epoch_batches(n: int, batch_size: int, seed: int, epoch: int) -> list[np.ndarray]:
    """One pass over n samples in random order, cut into equal batches of at most batch_size: no batch is
    a leftover of one sample, which BatchNorm could not take."""
    order = np.random.default_rng([seed, epoch]).permutation(n)
    return np.array_split(order, steps_per_epoch(n, batch_size))


def steps_per_epoch(n: int, batch_size: int) -> int:
    return -(-n // batch_size)


def cycling_batches(n: int, batch_size: int, seed: int, step: int) -> list[tuple[int, int]]:
    """The (cycle, sample) pairs of a stream of passes over n samples, at a step counted from 0."""
    places = range(step * batch_size, (step + 1) * batch_size)
    orders = {cycle: np.random.default_rng([seed, cycle, 1]).permutation(n) for cycle in {p // n for p in places}}
    return [(place // n, int(orders[place // n][place % n])) for place in places]


class _Images:
    """What the workers run: (domain, epoch, position) -> uint8 [3, H, W], or why not."""

    def __init__(
        self, splits: Sequence[Split], preprocessing: Preprocessing, augment: AugmentSettings | None, seed: int
    ):
        self.splits, self.preprocessing, self.augment, self.seed = splits, preprocessing, augment, seed

    def __getitem__(self, key: tuple[int, int, int]) -> tuple[Tensor | Unreadable, int]:
        domain, epoch, position = key
        split = self.splits[domain]
        try:
            image = split.dataset.read(int(split.indices[position]))
        except BadSample as error:
            return Unreadable(split.sample_name(position), str(error)), -1
        if self.augment is None:
            return evaluation_image(image, self.preprocessing), int(split.labels[position])
        random_key = (self.seed, epoch, domain, int(split.indices[position]))
        return training_image(image, self.preprocessing, self.augment, random_key), int(split.labels[position])


def training_batches(
    target: Split | None,
    source: Split | None,
    task: Task,
    preprocessing: Preprocessing,
    augment: AugmentSettings | None,
    *,
    batch_size: int,
    source_batch_size: int,
    epochs: int,
    seed: int,
    workers: int,
) -> Iterator[Batch]:
    """Every step of every epoch, in one stream, so that workers start once. An epoch is one pass over the
    target (over the source where there is no target); the source goes in its own cycle beside it."""
    leader = target if target is not None else source
    assert leader is not None
    splits = [split for split in (source, target) if split is not None]
    steps: list[list[tuple[int, int, int]]] = []
    for epoch in range(epochs):
        for positions in epoch_batches(len(leader), batch_size, seed, epoch):
            lead = [(len(splits) - 1, epoch, int(position)) for position in positions]
            beside: list[tuple[int, int, int]] = []
            if target is not None and source is not None:
                cycle = cycling_batches(len(source), source_batch_size, seed, len(steps))
                beside = [(0, *pair) for pair in cycle]
            steps.append([*beside, *lead])
    images = _Images(splits, preprocessing, augment, seed)
    n_source = [len(step) if target is None else sum(1 for d, _, _ in step if source and d == 0) for step in steps]
    for rows, count in zip(_loader(images, steps, workers), n_source, strict=True):
        yield _batch(rows, task, images, count)


def evaluation_batches(
    split: Split, task: Task, preprocessing: Preprocessing, *, batch_size: int, workers: int
) -> Iterator[Batch]:
    """The split in order, once, without augmentation. Raises DataError listing every broken sample."""
    images = _Images([split], preprocessing, None, 0)
    positions = np.array_split(np.arange(len(split)), max(1, -(-len(split) // batch_size)))
    steps = [[(0, 0, int(p)) for p in chunk] for chunk in positions if len(chunk)]
    for rows in _loader(images, steps, workers):
        yield _batch(rows, task, images, 0)


def unreadable(split: Split, workers: int, display: Display) -> list[tuple[int, Unreadable]]:
    """Decode every sample of a split; the positions of those that fail, with the reason."""
    probe = _Images([split], Preprocessing(8, 8), None, 0)
    steps = [[(0, 0, position)] for position in range(len(split))]
    found = []
    with display.progress(f"reading {split.name}", len(split)) as progress:
        for position, rows in enumerate(_loader(probe, steps, workers)):
            if isinstance(rows[0][0], Unreadable):
                found.append((position, rows[0][0]))
            progress.advance(1)
    return found


def broken_error(broken: Sequence[Unreadable]) -> DataError:
    lines = [f"{len(broken)} unreadable samples; mend or remove them, or write on_bad_sample: skip"]
    lines += [f"  {sample}" for sample in broken[:SHOWN_BROKEN]]
    lines += [f"  and {len(broken) - SHOWN_BROKEN} more"] if len(broken) > SHOWN_BROKEN else []
    return DataError("\n".join(lines))


def _loader(images: _Images, steps: list[list[tuple[int, int, int]]], workers: int) -> Any:
    """fork where it is safe and cheap: a worker imports nothing again. Elsewhere the platform's default."""
    context = "fork" if workers and sys.platform == "linux" else None
    return DataLoader(
        images,  # type: ignore[arg-type]
        batch_sampler=steps,
        collate_fn=_keep,
        num_workers=workers,
        multiprocessing_context=context,
    )


def _keep(rows: list[Any]) -> list[Any]:
    return rows


def _batch(rows: list[tuple[Tensor | Unreadable, int]], task: Task, images: _Images, n_source: int) -> Batch:
    if any(isinstance(image, Unreadable) for image, _ in rows):
        raise broken_error(_all_unreadable(images))
    return task.collate([image for image, _ in rows], [label for _, label in rows], n_source)


def _all_unreadable(images: _Images) -> list[Unreadable]:
    """Once one sample is broken, look at every sample, so that one run names them all."""
    found = []
    for split in images.splits:
        for position in range(len(split)):
            try:
                split.dataset.read(int(split.indices[position]))
            except BadSample as error:
                found.append(Unreadable(split.sample_name(position), str(error)))
    return found
