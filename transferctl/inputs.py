"""How samples reach the model: decoded by workers, mixed, on its device."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import closing
from dataclasses import dataclass, replace

from transferctl import loaders
from transferctl.contracts import Batch, Task
from transferctl.data import Split
from transferctl.device import Compute
from transferctl.loaders import Augment, Stream
from transferctl.mixing import mix, wanted
from transferctl.preprocess import Preprocessing

SCORING_BATCH = 256  # images in a forward pass without gradients


@dataclass(frozen=True)
class Inputs:
    """workers: processes that decode, or auto."""

    task: Task
    preprocessing: Preprocessing
    workers: int | str
    compute: Compute

    def scoring_batches(self, split: Split, batch_size: int = SCORING_BATCH) -> Iterator[Batch]:
        """The split in order, once, not augmented. Raises BrokenSamples."""
        workers = loaders.workers_for(self.workers, split)
        return loaders.evaluation_batches(split, self.task, self.preprocessing, batch_size=batch_size, workers=workers)

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
    ) -> Stream:
        """As `loaders.training_stream`; each step's images are mixed where `augment` asks for that."""
        workers = max(loaders.workers_for(self.workers, split) for split in (target, source) if split is not None)
        stream = loaders.training_stream(
            target, source, self.task, self.preprocessing, augment, batch_size=batch_size,
            source_batch_size=source_batch_size, epochs=epochs, seed=seed, workers=workers,
        )  # fmt: skip
        return replace(stream, batches=self._mixed(stream, augment, seed))

    def _mixed(self, stream: Stream, augment: Augment, seed: int) -> Generator[Batch]:
        mixing = wanted(augment)
        with closing(stream):
            for step, loaded in enumerate(stream.batches):
                yield mix(loaded.to(self.compute.device), mixing, seed, step) if mixing else loaded
