"""Batches of images, the same whatever the number of worker processes.

Order and augmentation are keyed by (seed, epoch, sample), never by a worker's state. A broken sample comes
out of a worker as a value; here it stops the pass, with the list of all broken samples.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from itertools import chain, count, islice, pairwise
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from transferctl import grouping, scratch, signals
from transferctl.contracts import BadSample, Batch, Dataset, Task
from transferctl.data import Split
from transferctl.display import Display
from transferctl.errors import DataError
from transferctl.preprocess import Preprocessing, evaluation_image, short_side_needed, training_image
from transferctl.trainsettings import AugmentSettings
from transferctl.wording import counted, printable

SHOWN_BROKEN = 20
AUDIT_CHUNK = 32  # samples a worker reads between two reports
FEW_FILES = 64  # for fewer, starting workers does not pay


@dataclass(frozen=True)
class Unreadable:
    """A sample that could not be read: its name and why."""

    name: str
    reason: str

    def __str__(self) -> str:
        return f"{printable(self.name)} {self.reason}"


def workers_for(asked: int | str, split: Split) -> int:
    """auto: where a GPU computes one a core (at most 8), if files are decoded, enough to pay for starting them.
    Where the CPU computes none: workers and OpenMP's threads would take the cores from each other, so decoding and
    computing take turns on all cores (ResNet-50, two cores: 123 images/s in turns, 99 with two workers)."""
    return workers_for_files(asked, len(split) if split.dataset.reads_files else 0)


def workers_for_files(asked: int | str, n: int) -> int:
    """As workers_for. n: files to decode, or as many as are known of."""
    if isinstance(asked, int):
        return asked
    return min(os.cpu_count() or 1, 8) if _gpu_computes() and n >= FEW_FILES else 0


def _gpu_computes() -> bool:
    """Not whether there is one: whether the model is on it."""
    return bool(torch.cuda.is_initialized())  # type: ignore[no-untyped-call]


def batches_from(
    first_step: int, labels: np.ndarray, batch_size: int, seed: int, balanced: bool, *, epochs: int
) -> Iterator[tuple[int, np.ndarray]]:
    """(epoch, draws) of each step of these epochs. first_step: how many steps are left out, as if they had been
    taken."""
    steps = steps_per_epoch(len(labels), batch_size)
    for epoch in range(first_step // steps, epochs):
        batches = epoch_batches(labels, batch_size, seed, epoch, balanced)
        for drawn in islice(batches, max(first_step - epoch * steps, 0), None):
            yield epoch, drawn


def epoch_batches(labels: np.ndarray, batch_size: int, seed: int, epoch: int, balanced: bool) -> Iterator[np.ndarray]:
    """One pass over the samples in random order, cut into equal batches of draws, int64 [n, 2] (see `draws`)."""
    drawn = draws(labels, balanced, [seed, epoch])
    for part in _equal_parts(len(drawn), steps_per_epoch(len(labels), batch_size)):
        yield drawn[part].astype(np.int64)


def _equal_parts(n: int, parts: int) -> Iterator[slice]:
    """As np.array_split cuts: the first ones have one more where they cannot be equal."""
    each, more = divmod(n, parts)
    stops = (i * each + min(i, more) for i in range(1, parts + 1))
    return (slice(start, stop) for start, stop in pairwise(chain([0], stops)))


def _full_parts(n: int, size: int) -> Iterator[tuple[int, int]]:
    """Starts and stops of parts of `size`; the last is what is left. Where nothing learns, full ones run fastest."""
    return ((start, min(start + size, n)) for start in range(0, n, size))


def draws(labels: np.ndarray, balanced: bool, key: Sequence[int]) -> np.ndarray:
    """As many draws as there are samples, in an order keyed by `key`: int32 [n, 2], a sample's position and how often
    it was drawn before. Each sample once; `balanced`: each class as often as any other, its samples in turn."""
    random, n = np.random.default_rng(key), len(labels)
    drawn = scratch.empty((n, 2), np.int32)
    if not balanced:
        drawn[:, 0], drawn[:, 1] = grouping.permutation(n, random), 0
        return drawn
    n_classes = int(labels.max(initial=-1)) + 1
    classes = np.flatnonzero(grouping.counts(labels, n_classes))
    shares = np.full(len(classes), n // len(classes))
    shares[random.permutation(len(classes))[: n % len(classes)]] += 1
    done = 0
    for (_, members), share in zip(grouping.members(labels, n_classes), shares.tolist(), strict=True):
        for turn in range(_parts(share, len(members))):
            positions = grouping.shuffled(members, random)[: share - turn * len(members)]
            rows = slice(done, done + len(positions))
            drawn[rows, 0], drawn[rows, 1] = positions, turn
            done = rows.stop
    return scratch.taken(drawn, grouping.permutation(n, random))


def steps_per_epoch(n: int, batch_size: int) -> int:
    """So many that a batch has at most batch_size samples; but no batch of several is a leftover of one, which
    BatchNorm could not take: of an odd number in pairs, the odd one makes a three."""
    return max(n // 2, 1) if batch_size == 2 else _parts(n, batch_size)


def _parts(n: int, size: int) -> int:
    return -(-n // size)


def cycle(labels: np.ndarray, seed: int, balanced: bool, first: int = 0) -> Iterator[tuple[int, int, int]]:
    """(pass, position, repeat): passes over the samples without end, each in an order of its own. first: how many
    draws are left out, as if they had been taken."""
    passes, done = divmod(first, len(labels))
    for number in count(passes):
        drawn = draws(labels, balanced, [seed, number, 1])
        for position, repeat in drawn[done if number == passes else 0 :]:  # a list of them would be 8 times as large
            yield number, int(position), int(repeat)


Key = tuple[int, int, int, int]  # which of the splits, pass, position in the split, how often drawn before


Augment = Mapping[str, AugmentSettings | None]  # of each domain


@dataclass(frozen=True)
class Views:
    """Fixed random versions of each image of a training split: those of the epochs 0 to number − 1."""

    augment: AugmentSettings
    number: int
    seed: int
    is_source: bool


@dataclass(frozen=True)
class Stream:
    """Every training step in order, in one stream, so that workers start once. An epoch is one pass over the
    target (over the source where there is no target); samples_per_epoch counts both domains."""

    batches: Generator[Batch]
    steps_per_epoch: int
    samples_per_epoch: int

    def close(self) -> None:
        """End the worker processes."""
        self.batches.close()


class _Images:
    """What the workers run: a key -> uint8 [3, H, W], or why not; its label; whether it is a source sample."""

    def __init__(
        self,
        splits: Sequence[Split],
        preprocessing: Preprocessing,
        augment: Sequence[AugmentSettings | None],
        seed: int,
        sources: int = 0,
        hashed: bool = False,
    ):
        """augment: of each split. The first `sources` splits are source data."""
        self.splits, self.preprocessing, self.augment, self.seed = splits, preprocessing, augment, seed
        self.sources, self.hashed = sources, hashed

    def __getitem__(self, key: Key) -> _Row:
        which, epoch, position, repeat = key
        split = self.splits[which]
        is_source = which < self.sources
        index, augment = int(split.indices[position]), self.augment[which]
        try:
            image, digest = self._read(split.dataset, index, short_side_needed(self.preprocessing, augment))
        except BadSample as error:
            return _Row(Unreadable(split.sample_name(position), str(error)), -1, is_source, "")
        if augment is None:
            pixels = evaluation_image(image, self.preprocessing)
        else:
            if augment.views:
                epoch, repeat = (epoch + repeat) % augment.views, 0
            random_key = (self.seed, epoch, int(is_source), index, *([repeat] if repeat else []))
            pixels = training_image(image, self.preprocessing, augment, random_key)
        return _Row(pixels, int(split.labels[position]), is_source, split.sample_name(position), digest)

    def _read(self, dataset: Dataset, index: int, at_least: int) -> tuple[Any, bytes]:
        return dataset.read_hashed(index, at_least) if self.hashed else (dataset.read(index, at_least), b"")


class _Row(NamedTuple):
    """digest: of what the image was read from; empty if it was not asked for."""

    image: Tensor | Unreadable
    label: int
    is_source: bool
    name: str
    digest: bytes = b""


@dataclass(frozen=True)
class _Together:
    """What a worker makes of a step's rows: one batch, as each tensor that it hands over costs a descriptor; or the
    list of what cannot be read. collate: the task's function, which can be sent where workers do not fork."""

    collate: Callable[[Sequence[Any], Sequence[int], int, Sequence[str]], Batch]

    def __call__(self, rows: list[_Row]) -> Batch | list[Unreadable]:
        if broken := [row.image for row in rows if isinstance(row.image, Unreadable)]:
            return broken
        images, labels, sources, names, digests = map(list, zip(*rows, strict=True))
        batch = self.collate(images, labels, sum(sources), names)
        if not all(digests):
            return batch
        return replace(batch, digests=np.frombuffer(b"".join(digests), np.uint8).reshape(-1, 32))


def training_steps(
    splits: Sequence[Split], batch_size: int, source_batch_size: int, *, epochs: int, seed: int, first_step: int = 0
) -> Iterator[list[Key]]:
    """The keys of each step from first_step on, source first. The last split sets the epoch; one before it goes in its
    own cycle."""
    which = len(splits) - 1
    leader = splits[which]
    source = cycle(splits[0].labels, seed, splits[0].balanced, first_step * source_batch_size)
    steps = batches_from(first_step, leader.labels, batch_size, seed, leader.balanced, epochs=epochs)
    for epoch, drawn in steps:
        beside = [(0, *next(source)) for _ in range(source_batch_size)] if which else []
        yield [*beside, *((which, epoch, position, repeat) for position, repeat in drawn.tolist())]


def training_batches(
    domains: Mapping[str, Split],
    steps: Iterator[list[Key]],
    task: Task,
    preprocessing: Preprocessing,
    augment: Augment,
    *,
    seed: int,
    workers: int,
) -> Generator[Batch]:
    """The images of each step. domains: their training splits, source first. Raises BrokenSamples."""
    augments = [augment[domain] for domain in domains]
    images = _Images(list(domains.values()), preprocessing, augments, seed, sources=int("source" in domains))
    return _batches(images, steps, task, workers)


def evaluation_batches(
    split: Split, task: Task, preprocessing: Preprocessing, *, batch_size: int, workers: int
) -> Iterator[Batch]:
    """The split in order, once, without augmentation. Raises BrokenSamples."""
    images = _Images([split], preprocessing, [None], 0)
    steps = ([(0, 0, position, 0) for position in range(*part)] for part in _full_parts(len(split), batch_size))
    return _batches(images, steps, task, workers)


def view_batches(
    split: Split, rows: np.ndarray, views: Views | None, task: Task, preprocessing: Preprocessing, *, batch_size: int,
    workers: int,
) -> Iterator[Batch]:  # fmt: skip
    """Chosen rows (view · n + position) of a split's views, or of the split as evaluation sees it, with digests of what
    was read. Raises BrokenSamples."""
    augment, seed = (views.augment, views.seed) if views else (None, 0)
    sources = int(views is not None and views.is_source)
    images = _Images([split], preprocessing, [augment], seed, sources, hashed=True)
    parts = (rows[slice(*part)].tolist() for part in _full_parts(len(rows), batch_size))
    steps = ([(0, row // len(split), row % len(split), 0) for row in part] for part in parts)
    return _batches(images, steps, task, workers)


@dataclass(frozen=True)
class Audit:
    """What a pass over a split found. broken: by position; digests: SHA-256 of each sample's content, uint8
    [n, 32], zeros where it could not be read; [0, 32] where it was not asked for."""

    split: Split
    broken: Mapping[int, Unreadable]
    digests: np.ndarray


def audit(split: Split, workers: int, display: Display, *, hashed: bool = False) -> Audit:
    """Decode every sample of a split once; `hashed`: take its digest too."""
    if hashed:
        broken, digests = look_at_all(split, _digest, np.dtype((np.void, 32)), workers, display)
        return Audit(split, broken, digests.view(np.uint8).reshape(-1, 32))
    broken, _ = look_at_all(split, _decoded, np.dtype(np.uint8), workers, display)
    return Audit(split, broken, np.empty((0, 32), np.uint8))


def _digest(dataset: Dataset, index: int) -> bytes:
    return dataset.read_hashed(index)[1]


def _decoded(dataset: Dataset, index: int) -> bytes:
    dataset.read(index)
    return bytes(1)


def look_at_all(
    split: Split, look: Callable[[Dataset, int], bytes], dtype: np.dtype[Any], workers: int, display: Display
) -> tuple[dict[int, Unreadable], np.ndarray]:
    """One pass over a split, with progress: what cannot be read, by position; and [n] of `dtype`, of which `look` makes
    the bytes, zeros for what cannot be read. `look` raises BadSample."""
    broken: dict[int, Unreadable] = {}
    seen, done, nothing = scratch.empty(len(split), dtype), 0, bytes(dtype.itemsize)
    parts = _equal_parts(len(split), max(1, _parts(len(split), AUDIT_CHUNK)))
    steps = (range(part.start, part.stop) for part in parts)
    with display.progress(f"reading {split.name}", len(split)) as progress:
        for rows in in_order(_Probe(split, look), steps, workers):
            broken |= {position: found for position, found in enumerate(rows, done) if isinstance(found, Unreadable)}
            content = b"".join(nothing if isinstance(found, Unreadable) else found for found in rows)
            seen[done : done + len(rows)] = np.frombuffer(content, dtype)
            done += len(rows)
            progress.advance(len(rows))
    return broken, seen


@dataclass(frozen=True)
class _Probe:
    """What the workers run for an audit: a position -> what `look` makes of the sample, or why it cannot be read."""

    split: Split
    look: Callable[[Dataset, int], bytes]

    def __getitem__(self, position: int) -> bytes | Unreadable:
        try:
            return self.look(self.split.dataset, int(self.split.indices[position]))
        except BadSample as error:
            return Unreadable(self.split.sample_name(int(position)), str(error))


class BrokenSamples(DataError):
    """Samples that cannot be read."""


def broken_error(broken: Sequence[Unreadable]) -> BrokenSamples:
    lines = [f"{counted(len(broken), 'unreadable sample')}; mend or remove them, or write on_bad_sample: skip"]
    lines += [f"  {sample}" for sample in broken[:SHOWN_BROKEN]]
    lines += [f"  and {len(broken) - SHOWN_BROKEN} more"] if len(broken) > SHOWN_BROKEN else []
    return BrokenSamples("\n".join(lines))


def _batches(images: _Images, steps: Iterator[list[Key]], task: Task, workers: int) -> Generator[Batch]:
    with closing(in_order(images, steps, workers, _Together(task.collate))) as loaded:
        for batch in loaded:
            if not isinstance(batch, Batch):
                raise broken_error(batch)
            yield batch


def in_order(
    dataset: Any, steps: Iterable[Any], workers: int, together: Callable[[list[Any]], Any] = list
) -> Generator[Any]:
    """For each step what `together` makes of the list of dataset[key] for its keys. Steps are taken as they are needed.

    Without workers by threads, as many as torch computes with. Workers are forked where that is safe and cheap: they
    import nothing again. Elsewhere the platform's default."""
    if not workers:
        with ThreadPoolExecutor(torch.get_num_threads()) as threads:
            for keys in steps:
                yield together(list(threads.map(dataset.__getitem__, keys)))
        return
    loader = DataLoader(
        dataset,
        batch_sampler=steps,
        collate_fn=together,
        num_workers=workers,
        multiprocessing_context="fork" if sys.platform == "linux" else None,
        worker_init_fn=_leave_quietly,
        pin_memory=_gpu_computes(),  # a thread puts batches where the GPU can fetch them while it computes
    )
    with signals.held():  # a worker that is not set up yet would die of a signal
        rows = iter(loader)
    try:
        yield from rows
    finally:
        with signals.held(), _deaths_unheeded():  # Python drops what is raised in a __del__, where torch ends them
            del rows


@contextmanager
def _deaths_unheeded() -> Iterator[None]:
    """Inside, a worker that dies raises nothing, wherever the main thread is: all are about to end."""
    if threading.current_thread() is not threading.main_thread():
        yield  # handlers run in the main thread alone
        return
    before = signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGCHLD, before)


def _leave_quietly(worker: int) -> None:
    """Signals sent to the whole process group: the main process says so and ends its workers. At SIGTERM a worker just
    goes; at SIGINT it waits for that, as one that dies in a queue's lock can leave the main process hanging."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    # What a worker raises reaches the main process as a value; its thread that hands over descriptors
    # (multiprocessing.resource_sharer) would print a traceback where the other end is gone.
    sys.excepthook = lambda *_: None
