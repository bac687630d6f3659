"""The model of a run and the images that it was validated on, as far as both are still there and unchanged."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from transferctl import checkpoint, device, evaldata, evaluate, pipeline, runs
from transferctl.cache import hashes
from transferctl.cache.cache import Cache, open_cache
from transferctl.data import Split
from transferctl.device import Compute
from transferctl.display import Display
from transferctl.errors import CheckpointError, DataError, ResourceError, SpecError
from transferctl.features import FeatureTable
from transferctl.frozen import FrozenStages
from transferctl.inputs import Inputs
from transferctl.model import TransferModel, restore
from transferctl.reporting import checked
from transferctl.reporting.gather import RunRecord
from transferctl.spec import Spec

MOST_READ_AGAIN = 1000  # images that are decoded to see which of them cannot be
MOST_IMAGES = 300  # whose features are computed


@dataclass(frozen=True)
class Loaded:
    """trained: the run that holds the checkpoint; domain: whose head the report is about."""

    model: TransferModel
    checkpoint: str
    trained: Path
    spec: Spec
    domain: str


@dataclass(frozen=True)
class ModelOutputs:
    """Some images of a split, evenly spaced, as the model sees them. positions: int64 [n] in the split; labels: int64
    [n]; features: float32 [n, D]; logits: float32 [n, C]."""

    positions: np.ndarray
    labels: np.ndarray
    features: np.ndarray
    logits: np.ndarray


def load(run: RunRecord) -> Loaded:
    """The model that the run's scores are about. Raises CheckpointError, SpecError."""
    if run.spec is None:
        raise SpecError.at("", "the run's spec.yaml cannot be read by this version")
    trained, which = run.path, "best"
    if run.verb == "eval" and not checkpoint.exists(run.path, "best"):
        if "interpolation" in run.summary:
            raise CheckpointError("weights between start and best were scored, and none of them was kept")
        trained, which = Path(checked.text(run.summary.get("evaluated"), 4000)), _checkpoint_named(run)
    if run.state == "failed" and trained == run.path and not checkpoint.exists(trained, which):
        raise CheckpointError(f"the run failed before it had a checkpoint: {checked.text(run.error, 160)}")
    saved = checkpoint.load(trained, which)
    model = restore(saved)
    domain = "source" if "target" not in model.heads or run.is_of_source else "target"
    return Loaded(model.eval(), saved.path.name, trained, run.spec, domain)


def _checkpoint_named(run: RunRecord) -> str:
    name = checked.text(run.summary.get("checkpoint"), 60)
    if not checkpoint.NAME.fullmatch(name):
        raise CheckpointError("the evaluation does not say which checkpoint it is about")
    return name


def split_of(run: RunRecord, loaded: Loaded, display: Display) -> Split:
    """Validation data, or what an evaluation scored, if it is what it was. Raises DataError, SpecError, …"""
    named = checked.text(run.summary.get("split"), 40) if run.verb == "eval" else "val"
    path = checked.text(run.summary.get("data"), 4000) if run.verb == "eval" else ""
    asked = evaldata.asked(path or None, named if not path or named != "data" else None)
    spec = loaded.spec
    if run.summary.get("skipped"):
        _refuse_to_read_many(run, f"{loaded.domain}.{named}")
    else:
        spec = spec.model_copy(update={"on_bad_sample": "stop"})  # nothing was unreadable: no need to look again
    split = evaldata.load(asked, spec, run.path, loaded.model, loaded.domain, display)
    name = f"{loaded.domain}.{split.name}"
    refuse_others(run, name, split)
    refuse_rewritten(run, name, split, loaded.model.classes[loaded.domain])
    return split


def _refuse_to_read_many(run: RunRecord, name: str) -> None:
    """To find the unreadable ones, all images are decoded. Raises DataError."""
    n = sum(checked.count(value) or 0 for value in checked.mapping(_files(run, name).get("samples")).values())
    if n > MOST_READ_AGAIN:
        raise DataError(f"the run left out unreadable images, and {n:,} of {name} are too many to look for them again")


def refuse_others(run: RunRecord, name: str, split: Split) -> None:
    """By names and labels. Raises DataError. name: target.val."""
    if split.fingerprint() != runs.data_fingerprints(run.path).get(name):
        raise DataError(f"the images of {name} are not those that the run had")


def refuse_rewritten(run: RunRecord, name: str, split: Split, classes: Sequence[str]) -> None:
    """By how many bytes their files have, where the run says so. Raises DataError."""
    was, now = checked.count(_files(run, name).get("bytes")), split.facts(classes)["bytes"]
    if was is not None and was != now:
        raise DataError(
            f"the files of {name} have {now:,} bytes, and had {was:,} when the run read them: their contents changed"
        )


def written_since(run: RunRecord, name: str, split: Split, classes: Sequence[str]) -> str:
    """In words, where files have other times than they had: a copy has, and so has what was changed. Else empty."""
    was = _files(run, name).get("written")
    if was is None or was == split.facts(classes)["written"]:
        return ""
    return f"some files of {name} were written after the run read them, so their pictures may not be what it saw"


def _files(run: RunRecord, name: str) -> Mapping[str, Any]:
    return checked.mapping(checked.mapping(run.environment.get("files")).get(name))


def compute_of(spec: Spec) -> Compute:
    """The device of the run, or what this machine has instead."""
    try:
        return device.choose(spec.device, spec.precision)
    except ResourceError:
        return device.choose("auto", spec.precision)


def outputs_of(loaded: Loaded, split: Split, display: Display) -> ModelOutputs:
    """One pass over at most MOST_IMAGES images, in the precision of the run; features are taken from its cache
    where that has all of them. Raises DataError."""
    positions = np.unique(np.linspace(0, len(split) - 1, min(len(split), MOST_IMAGES)).round().astype(np.int64))
    chosen = split if len(positions) == len(split) else split.rows(positions)
    spec = loaded.spec.model_copy(update={"compile": "never"})  # which takes longer than the images
    model, compute = loaded.model, compute_of(spec)
    task = pipeline.task_of(spec)
    inputs = evaluate.inputs_as_trained(model, task, spec, loaded.trained, loaded.domain, compute, display)
    if inputs.stages and inputs.stages.is_whole:
        _use_cached(inputs, inputs.stages, chosen, open_cache(spec.cache, display.warn))
    features, logits, labels = [], [], []
    model.eval()
    with torch.inference_mode():
        for batch in inputs.scoring_batches(chosen):
            batch = batch.to(compute.device)
            with torch.autocast(compute.device.type, torch.bfloat16, enabled=compute.bf16):
                found = model.features_of(batch)
            found = found.in_fp32()
            features.append(found.pooled.cpu().numpy())
            logits.append(model.heads[loaded.domain](found).float().cpu().numpy())
            labels.append(batch.labels.cpu().numpy())
    return ModelOutputs(positions, *(np.concatenate(parts) for parts in (labels, features, logits)))


def _use_cached(inputs: Inputs, stages: FrozenStages, split: Split, cache: Cache) -> None:
    """What the cache has of the split, if that is all; nothing is added to it, as a report writes one file alone."""
    rows = cache.rows(stages.product, hashes.digests(split, memo=None))
    rows.close()  # after which they can be read
    if not len(rows.missing):
        inputs.tables.append(FeatureTable(split, stages, rows))
