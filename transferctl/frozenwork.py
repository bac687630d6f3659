"""What fine-tuning computes once: the frozen stages, for images that come again as they are; and what that costs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

from transferctl import frozen, pipeline
from transferctl.cache.cache import Cache
from transferctl.contracts import Task
from transferctl.data import DomainData, Split
from transferctl.device import Compute
from transferctl.display import Display
from transferctl.frozen import FrozenStages
from transferctl.inputs import Inputs
from transferctl.loaders import Views
from transferctl.model import TransferModel
from transferctl.sizes import in_words
from transferctl.spec import SourceSettings, Spec

COLUMNS = ["data", "frozen stages", "images", "bytes an image", "kept"]


def inputs(
    spec: Spec, model: TransferModel, domains: Mapping[str, DomainData], task: Task, compute: Compute, cache: Cache,
    display: Display,
) -> Inputs:  # fmt: skip
    """The samples' way to the model: what no epoch changes is computed ahead, or without a graph. Raises
    BrokenSamples."""
    stages = leading_stages(spec, model, compute, display)
    found = Inputs(task, model.preprocessing, spec.workers, compute, stages)
    if stages is None:
        if any(what != "none" for what in spec.frozen_by_epoch().values()):
            display.note("no leading stage stays frozen in all epochs, so nothing is computed ahead")
        return found
    splits = [split for data in domains.values() for split in data.splits()]
    with pipeline.naming_all_broken(splits, spec, display):
        for part in repeated_splits(spec, domains):
            if part.why_recomputed:
                display.note(
                    f"{part.label}: {part.why_recomputed}, so the stages up to {stages.last} run each time, "
                    "without a graph"
                )
            else:
                found.compute_ahead(part.split, part.label, cache, display, views=part.views)
    return found


def leading_stages(spec: Spec, model: TransferModel, compute: Compute, display: Display) -> FrozenStages | None:
    """Those that no epoch changes; None without any."""
    count = frozen.leading_of(model, spec.frozen_by_epoch().values(), pipeline.batchnorm(spec))
    return FrozenStages(model, count, compute, display, compile_=spec.compile) if count else None


class RepeatedSplit(NamedTuple):
    """A split that training reads more than once. why_recomputed: why its images are others each time; empty if they
    come again as they are, or in fixed views."""

    label: str
    split: Split
    views: Views | None
    why_recomputed: str


def repeated_splits(spec: Spec, domains: Mapping[str, DomainData]) -> Iterator[RepeatedSplit]:
    for domain, data in domains.items():
        if len(data.val):
            yield RepeatedSplit(f"{domain}.val", data.val, None, "")
        settings = spec if domain == "target" else spec.source
        assert settings is not None
        if isinstance(settings, SourceSettings) and not settings.rehearsal:
            continue
        augment, label = pipeline.augmentation(settings), f"{domain}.train"
        if augment is None:
            yield RepeatedSplit(label, data.train, None, "")
        elif augment.mixup or augment.cutmix:
            yield RepeatedSplit(label, data.train, None, "images are mixed anew")
        elif augment.views is None:
            yield RepeatedSplit(
                label, data.train, None, "augmented anew in every epoch (augment.views: K fixes K versions)"
            )
        else:
            yield RepeatedSplit(label, data.train, Views(augment, augment.views, spec.seed, domain == "source"), "")


def rows(spec: Spec, domains: Mapping[str, DomainData], stages: FrozenStages, cache: Cache) -> list[list[str]]:
    """For `check`: a row a split, under COLUMNS."""
    found = []
    needed, there = 0, cache.bytes_of(stages.product)  # of all so far; what is there is taken for theirs
    for part in repeated_splits(spec, domains):
        n = len(part.split) * (part.views.number if part.views else 1)
        if part.why_recomputed:
            found.append([part.label, "in every epoch, no graph", f"{n:,}", "", part.why_recomputed])
            continue
        total = n * stages.row_bytes
        fits = cache.room_for(stages.product, max(0, needed + total - there))
        needed += total if fits else 0
        where = "in the cache" if cache.root else "until the run ends"
        kept = f"{in_words(total)} {where}" if fits else f"no room for {in_words(total)}: in every epoch"
        found.append([part.label, "once", f"{n:,}", in_words(stages.row_bytes), kept])
    return found
