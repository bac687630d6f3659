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

COLUMNS = ["data", "frozen stages", "images", "bytes an image", "in the cache"]


def inputs(
    spec: Spec, model: TransferModel, domains: Mapping[str, DomainData], task: Task, compute: Compute, cache: Cache,
    display: Display,
) -> Inputs:  # fmt: skip
    """The samples' way to the model: what no epoch changes is computed ahead, or without a graph. Raises
    BrokenSamples."""
    stages = leading_stages(spec, model, compute, display)
    found = Inputs(task, model.preprocessing, spec.workers, compute, stages)
    if stages is None:
        return found
    splits = [split for data in domains.values() for split in data.splits()]
    with pipeline.naming_all_broken(splits, spec, display):
        for part in passed_over(spec, domains):
            if part.anew:
                display.note(
                    f"{part.label}: {part.anew}, so the stages up to {stages.last} run each time, without a graph"
                )
            else:
                found.compute_ahead(part.split, part.label, cache, display, views=part.views)
    return found


def leading_stages(spec: Spec, model: TransferModel, compute: Compute, display: Display) -> FrozenStages | None:
    """Those that no epoch changes; None without any."""
    count = frozen.leading_of(model, spec.frozen_by_epoch().values(), pipeline.batchnorm(spec))
    return FrozenStages(model, count, compute, display, compile_=spec.compile) if count else None


class PassedOver(NamedTuple):
    """A split that training passes over more than once. anew: why its images are others each time; empty if they come
    again as they are, or in fixed views."""

    label: str
    split: Split
    views: Views | None
    anew: str


def passed_over(spec: Spec, domains: Mapping[str, DomainData]) -> Iterator[PassedOver]:
    for domain, data in domains.items():
        if len(data.val):
            yield PassedOver(f"{domain}.val", data.val, None, "")
        settings = spec if domain == "target" else spec.source
        assert settings is not None
        if isinstance(settings, SourceSettings) and not settings.rehearsal:
            continue
        augment, label = pipeline.augmentation(settings), f"{domain}.train"
        if augment is None:
            yield PassedOver(label, data.train, None, "")
        elif augment.mixup or augment.cutmix:
            yield PassedOver(label, data.train, None, "images are mixed anew")
        elif augment.views is None:
            yield PassedOver(
                label, data.train, None, "augmented anew in every epoch (augment.views: K fixes K versions)"
            )
        else:
            yield PassedOver(label, data.train, Views(augment, augment.views, spec.seed, domain == "source"), "")


def rows(spec: Spec, domains: Mapping[str, DomainData], stages: FrozenStages, cache: Cache) -> list[list[str]]:
    """For `check`: a row a split, under COLUMNS."""
    found = []
    for part in passed_over(spec, domains):
        n = len(part.split) * (part.views.number if part.views else 1)
        if part.anew:
            found.append([part.label, "in every epoch, no graph", f"{n:,}", "", part.anew])
            continue
        total = n * stages.row_bytes
        fits = in_words(total) if cache.room_for(total) else f"no room for {in_words(total)}: in every epoch"
        found.append([part.label, "once", f"{n:,}", in_words(stages.row_bytes), fits])
    return found
