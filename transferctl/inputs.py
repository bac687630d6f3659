"""How samples reach the model: decoded by workers and mixed, or read from what was computed before; through the frozen
stages without a graph, once."""

from __future__ import annotations

import tempfile
from collections.abc import Generator, Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import replace
from itertools import repeat, tee

import numpy as np
import torch

from transferctl import features, loaders
from transferctl.cache.cache import Cache
from transferctl.contracts import Batch, Mixed, Task
from transferctl.data import Split
from transferctl.device import Compute
from transferctl.display import Display
from transferctl.features import FeatureTable
from transferctl.frozen import FrozenStages
from transferctl.loaders import Augment, Key, Stream, Views
from transferctl.mixing import mix, wanted
from transferctl.preprocess import Preprocessing
from transferctl.sizes import in_words

SCORING_BATCH = 256  # images in a forward pass without gradients


class Inputs:
    """Batches for the model, after `stages` if there are any. tables: the splits whose activations were computed
    before."""

    def __init__(
        self,
        task: Task,
        preprocessing: Preprocessing,
        workers: int | str,
        compute: Compute,
        stages: FrozenStages | None = None,
    ):
        """workers: processes that decode, or auto."""
        self._task, self._preprocessing, self._workers, self.compute = task, preprocessing, workers, compute
        self.stages, self.tables = stages, list[FeatureTable]()

    def compute_ahead(self, split: Split, label: str, cache: Cache, display: Display, *, views: Views | None) -> None:
        """Make a table of the split, of all its views, unless there is no room for it, which is said."""
        assert self.stages is not None
        table, row_bytes = features.find(self.stages, split, cache, views), self.stages.row_bytes
        cost = f"{len(table.rows):,} × {in_words(row_bytes)} = {in_words(len(table.rows) * row_bytes)}"
        if not cache.room_for(self.stages.product, len(table.rows.missing) * row_bytes):
            table.rows.close()
            display.warn(
                f"{label}: its activations after {self.stages.last} take {cost}, for which the cache has no room; the "
                "frozen stages run each time its images are read. Raise cache.limit, or make room on the disk"
            )
            return
        where = "cached" if cache.root else f"kept in {tempfile.gettempdir()} until the run ends"
        display.note(f"{label}: activations after {self.stages.last} are computed once and {where}: {cost}")
        features.complete(table, self._task, display, workers=loaders.workers_for(self._workers, split))
        self.tables.append(table)

    def scoring_batches(self, split: Split, batch_size: int = SCORING_BATCH) -> Iterator[Batch]:
        """The split in order, once, not augmented. Raises BrokenSamples."""
        table = self._table(split)
        if table is not None and not table.views:
            return features.evaluation_batches(table, batch_size)
        workers = loaders.workers_for(self._workers, split)
        batches = loaders.evaluation_batches(
            split, self._task, self._preprocessing, batch_size=batch_size, workers=workers
        )
        return map(self._through_stages, batches)

    def drawn_batches(self, split: Split, positions: np.ndarray, batch_size: int) -> Iterator[Batch]:
        """As scoring_batches, but these samples of the split alone."""
        table = self._table(split)
        if table is None or table.views:
            return self.scoring_batches(split.rows(positions), batch_size)
        return (table.batch(positions[start : start + batch_size]) for start in range(0, len(positions), batch_size))

    def training_stream(
        self,
        target: Split | None,
        source: Split | None,
        augment: Augment,
        *,
        batch_size: int,
        source_batch_size: int = 0,
        epochs: int,
        seed: int,
        first_step: int = 0,
    ) -> Stream:
        """Both domains, source first in each batch; the source goes in its own cycle beside the target. Without a
        target, `batch_size` is the source's. augment: by domain. first_step: how many steps are done already. Raises
        BrokenSamples."""
        domains = {name: split for name, split in (("source", source), ("target", target)) if split is not None}
        *beside, leader = domains.values()
        steps = loaders.training_steps(
            [*beside, leader], batch_size, source_batch_size, epochs=epochs, seed=seed, first_step=first_step
        )
        n_steps = loaders.steps_per_epoch(len(leader), batch_size)
        n_samples = len(leader) + (n_steps * source_batch_size if beside else 0)
        sizes = {"source": source_batch_size if beside else batch_size, "target": batch_size}
        decoded = sum(sizes[name] for name, split in domains.items() if self._table(split) is None)
        if self.stages and decoded:
            self.stages.prepare(epochs * n_steps * decoded, decoded)
        return Stream(self._batches(domains, steps, augment, seed, first_step), n_steps, n_samples)

    def _batches(
        self, domains: Mapping[str, Split], steps: Iterator[list[Key]], augment: Augment, seed: int, first_step: int
    ) -> Generator[Batch]:
        """A step's rows of tables and its images, put together."""
        tables = {which: (name, self._table(split)) for which, (name, split) in enumerate(domains.items())}
        decoded = {which for which, (_, table) in tables.items() if table is None}
        mixing = wanted(augment)
        steps, again = tee(steps)
        with closing(self._images(domains, again, decoded, augment, seed)) as images:
            for step, (keys, loaded) in enumerate(zip(steps, images, strict=False), first_step):
                parts = [
                    _from_table(table, [key for key in keys if key[0] == which], name)
                    for which, (name, table) in tables.items()
                    if table is not None
                ]
                if loaded is not None:
                    batch = mix(loaded.to(self.compute.device), mixing, seed, step) if mixing else loaded
                    parts.append(self._through_stages(batch))
                yield _joined(parts, self.compute)

    def _images(
        self, domains: Mapping[str, Split], steps: Iterator[list[Key]], decoded: set[int], augment: Augment, seed: int
    ) -> Generator[Batch | None]:
        """Of each step what is not in tables; None where all is."""
        if not decoded:
            yield from repeat(None)
        read = [split for which, split in enumerate(domains.values()) if which in decoded]
        workers = max(loaders.workers_for(self._workers, split) for split in read)
        keys = ([key for key in step if key[0] in decoded] for step in steps)
        batches = loaders.training_batches(
            domains, keys, self._task, self._preprocessing, augment, seed=seed, workers=workers
        )
        with closing(batches):
            yield from batches

    def _through_stages(self, batch: Batch) -> Batch:
        return self.stages.of(batch) if self.stages else batch

    def _table(self, split: Split) -> FeatureTable | None:
        return next((table for table in self.tables if table.split is split), None)


def _from_table(table: FeatureTable, keys: Iterable[Key], domain: str) -> Batch:
    """The rows that the keys mean; a sample drawn again is another view of it."""
    drawn = np.array(list(keys), dtype=np.int64)
    return table.batch(drawn[:, 2], domain, (drawn[:, 1] + drawn[:, 3]) % table.versions)


def _joined(parts: list[Batch], compute: Compute) -> Batch:
    """One batch, source rows first."""
    if len(parts) == 1:
        return parts[0]
    parts = sorted((part.to(compute.device) for part in parts), key=lambda part: -part.n_source)
    mixed = None
    if any(part.mixed for part in parts):
        every = [part.mixed or Mixed(part.labels, torch.ones(len(part.labels))) for part in parts]
        partners, shares = [one.partners for one in every], [one.share.to(compute.device) for one in every]
        mixed = Mixed(torch.cat(partners), torch.cat(shares))
    return replace(
        parts[0],
        inputs=torch.cat([part.inputs for part in parts]),
        labels=torch.cat([part.labels for part in parts]),
        n_source=parts[0].n_source,
        names=tuple(name for part in parts for name in part.names),
        mixed=mixed,
    )
