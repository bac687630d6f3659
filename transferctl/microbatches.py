"""A step in parts, where the whole batch does not fit into memory: gradients add up, so the effective batch stays.

Each domain's loss is a mean over its own samples, so a part's mean counts by its share of them: exact but for the order
of sums, and for what looks at a batch as a whole (BatchNorm with the batch's statistics, the penalty bss).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from transferctl.contracts import Batch
from transferctl.device import Compute, release_memory
from transferctl.errors import ResourceError, is_out_of_memory
from transferctl.model import TransferModel, norms

T = TypeVar("T")


class Share(NamedTuple):
    """What part of a step's source and target samples a micro-batch has; has_source: whether the step has any."""

    source: float
    target: float
    has_source: bool


def of(batch: Batch, parts: int) -> Iterator[tuple[Batch, Share]]:
    """The batch in so many micro-batches, source rows first in each, both domains spread evenly."""
    n_source, n_target = batch.n_source, len(batch.labels) - batch.n_source
    for source, target in _cuts(n_source, n_target, parts):
        counts = _rows_in(source), _rows_in(target)
        if any(counts):
            share = Share(counts[0] / max(n_source, 1), counts[1] / max(n_target, 1), n_source > 0)
            yield (batch if parts == 1 else _rows(batch, source, target)), share


def _cuts(n_source: int, n_target: int, parts: int) -> Iterator[tuple[slice, slice]]:
    """Source and target rows of each part."""
    for i in range(parts):
        source = slice(i * n_source // parts, (i + 1) * n_source // parts)
        yield source, slice(n_source + i * n_target // parts, n_source + (i + 1) * n_target // parts)


def _rows_in(cut: slice) -> int:
    return int(cut.stop - cut.start)


def _rows(batch: Batch, source: slice, target: slice) -> Batch:
    def both(rows: Tensor) -> Tensor:
        return torch.cat([rows[source], rows[target]])

    return replace(
        batch,
        inputs=both(batch.inputs),
        labels=both(batch.labels),
        n_source=_rows_in(source),
        names=batch.names[source] + batch.names[target],
        mixed=batch.mixed and replace(batch.mixed, partners=both(batch.mixed.partners), share=both(batch.mixed.share)),
        digests=None,
    )


def halving(
    compute_in: Callable[[int], T], parts: int, batch: Batch, model: TransferModel, compute: Compute,
    say: Callable[[str], None],
) -> tuple[T, int]:  # fmt: skip
    """compute_in(parts), in twice as many parts of the batch for as long as memory runs out; and in how many it went.
    What BatchNorm saw in attempts that failed is taken back. Raises ResourceError where nothing helps."""
    moving = dict(_moving(model))
    kept = {name: tensor.clone() for name, tensor in moving.items()}
    while True:
        try:
            return compute_in(parts), parts
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            least = 2 if moving else 1  # samples: BatchNorm takes no statistics from one
            more = _more_parts(batch, parts, least)
            if more == parts:
                message = f"out of memory, {least} at a time; lower preprocess.crop, or free memory"
                raise ResourceError(message) from None
        parts = more
        for name, tensor in moving.items():
            tensor.copy_(kept[name])
        release_memory(compute.device)
        say(parts_in_words(parts))


def _more_parts(batch: Batch, parts: int, least: int) -> int:
    """Twice as many, or as many as leave so many samples in each; as many as before where there are none."""
    n_source, n_target = batch.n_source, len(batch.labels) - batch.n_source

    def smallest(n: int) -> int:
        return min(_rows_in(source) + _rows_in(target) for source, target in _cuts(n_source, n_target, n))

    return next((n for n in range(2 * parts, parts, -1) if smallest(n) >= least), parts)


def parts_in_words(parts: int) -> str:
    return f"out of memory: from here on each step is made in {parts} micro-batches, whose gradients add up"


def _moving(model: TransferModel) -> Iterator[tuple[str, Tensor]]:
    """Statistics of norms that follow the batches, by name."""
    for name, norm in norms(model).items():
        if norm.training:
            yield from ((f"{name}.{key}", buffer) for key, buffer in norm.named_buffers())
