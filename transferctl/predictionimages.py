"""Images by their paths, in batches that keep the order and name what cannot be read, for data without labels."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import NamedTuple

from torch import Tensor

from transferctl import images, loaders
from transferctl.contracts import BadSample, Batch, Task
from transferctl.loaders import Unreadable
from transferctl.predictionpaths import ListedPath
from transferctl.preprocess import Preprocessing, evaluation_image, short_side_needed


@dataclass(frozen=True)
class LoadedPaths:
    """Consecutive paths. bad: by position, those that cannot be read; batch: the others, in order, their labels all 0;
    None where there are none."""

    paths: Sequence[str]
    bad: dict[int, Unreadable]
    batch: Batch | None

    def pin_memory(self) -> LoadedPaths:
        """What a DataLoader calls."""
        return replace(self, batch=self.batch and self.batch.pin_memory())


def batches(
    paths: Iterable[ListedPath], task: Task, preprocessing: Preprocessing, *, batch_size: int, workers: int
) -> Generator[LoadedPaths]:
    """`batch_size` paths at a time, in order, as evaluation sees them. Paths are taken as they are needed."""
    return loaders.in_order(_Images(preprocessing), _parts(iter(paths), batch_size), workers, _Together(task))


def _parts(paths: Iterator[ListedPath], size: int) -> Iterator[list[ListedPath]]:
    while part := list(islice(paths, size)):
        yield part


class _Row(NamedTuple):
    path: str
    image: Tensor | Unreadable


@dataclass(frozen=True)
class _Images:
    """What the workers run: a path -> uint8 [3, crop, crop], or why not."""

    preprocessing: Preprocessing

    def __getitem__(self, found: ListedPath) -> _Row:
        if isinstance(found, Unreadable):
            return _Row(found.name, found)
        if "\0" in found:
            return _Row(found, Unreadable(found, "is no path: it has a NUL (-0 reads a list of NUL-ended paths)"))
        try:
            at_least = short_side_needed(self.preprocessing, None)
            image = images.decode(images.read_bytes(found), at_least=at_least)
            return _Row(found, evaluation_image(image, self.preprocessing))
        except BadSample as error:
            return _Row(found, Unreadable(found, str(error)))


class _Together:
    """What a worker makes of a step's rows."""

    def __init__(self, task: Task):
        self._collate = task.collate  # a function can be sent where workers do not fork, a module cannot

    def __call__(self, rows: list[_Row]) -> LoadedPaths:
        bad = {i: row.image for i, row in enumerate(rows) if isinstance(row.image, Unreadable)}
        good = [row.image for row in rows if not isinstance(row.image, Unreadable)]
        batch = self._collate(good, [0] * len(good), 0, ()) if good else None
        return LoadedPaths([row.path for row in rows], bad, batch)
