"""The trials of `advise`: ordinary runs of extract and finetune that never see test data; what each costs and gets
right."""

from __future__ import annotations

import csv
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from transferctl import extract, finetune, frozen, grouping, loaders, pipeline, runs
from transferctl.budget import Rates, Work
from transferctl.contracts import Task
from transferctl.data import DomainData, Split
from transferctl.device import Compute
from transferctl.display import Display
from transferctl.model import TransferModel
from transferctl.paired import Round
from transferctl.preprocess import normalise
from transferctl.savesettings import CheckpointSettings
from transferctl.spec import Spec
from transferctl.strategies import Candidate
from transferctl.trackersettings import TrackersSettings

TIMED_IMAGES = 32
NEVER_SAVED = CheckpointSettings(every="999999 minutes")  # but at the end


@dataclass(frozen=True)
class Outcome:
    """A finished trial. val: what it got right of its validation data; metrics: of these; source_change: of the
    source's accuracy, 0 where no weight moved that it depends on, None without source."""

    run: Path
    val: Round
    metrics: Mapping[str, Any]
    source_change: float | None
    elapsed_s: float


def run(spec: Spec, candidate: Candidate, seed: int, trials: Path, display: Display) -> Outcome:
    """spec: with the candidate's changes. The trial keeps its scores, curves and predictions, and no weights."""
    started, verb = time.monotonic(), {"extract": extract.run, "finetune": finetune.run}[candidate.verb]
    try:
        with display.quietly(warnings=False):  # they have been said
            summary = verb(as_trial(spec, candidate.name, seed), trials, display)
    except BaseException as error:
        if "run" in (told := getattr(error, "summary", {})):
            _without_weights(told)
        raise
    path = _without_weights(summary)
    source = summary.get("source", {})
    change = source.get("accuracy_change") if candidate.verb == "finetune" else 0.0 if spec.source else None
    return Outcome(path, _right(path), summary["best"]["val"], change, time.monotonic() - started)


def _without_weights(summary: Mapping[str, Any]) -> Path:
    """The run folder, of whose weights nothing is left, which its summary says."""
    path = Path(summary["run"])
    shutil.rmtree(path / "checkpoints", ignore_errors=True)
    told = "it was a trial of advise, which keeps no weights; train the spec that it advised"
    runs.write_atomically(path / "summary.json", runs.json_text(dict(summary) | {"without_model": told}))
    return path


def as_trial(spec: Spec, name: str, seed: int) -> Spec:
    """Without test data, and without what a trial has no use for: another training beside it, a page, trackers, saves
    to be resumed from."""
    target = spec.target.model_copy(update={"test": None})
    stem = name.replace("+", "-")
    update = {"name": stem if seed == spec.seed else f"{stem}-seed{seed}", "seed": seed, "target": target}
    update |= {"baseline": None, "report": False, "trackers": TrackersSettings(), "checkpoint": NEVER_SAVED}
    return spec.model_copy(update=update)


def _right(path: Path) -> Round:
    with (path / "predictions.csv").open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["split"] == "val"]
    return Round(
        tuple(row["path"] for row in rows), np.array([row["label"] == row["predicted"] for row in rows], dtype=bool)
    )


def choosing(val: Split, is_held_out: bool, seed: int) -> frozenset[str]:
    """The names of the validation images that choose; the others confirm. Where they are held out by seed, those of
    the first seed choose, and other seeds hold out others. Named validation data is the same with every seed: half of
    each class chooses."""
    if is_held_out:
        return frozenset(val.names())
    chosen: list[int] = []
    for _, members in grouping.members(val.labels, int(val.labels.max()) + 1):
        order = np.random.default_rng([seed, *b"choosing"]).permutation(members)
        chosen += order[: -(-len(order) // 2)].tolist()
    return frozenset(map(val.sample_name, chosen))


def those(outcomes: Round, names: frozenset[str], *, within: bool = True) -> Round:
    """Of samples that are among these, or that are not."""
    kept = np.array([(name in names) == within for name in outcomes.names], dtype=bool)
    return Round(tuple(name for name in outcomes.names if (name in names) == within), outcomes.right[kept])


# -- what they cost -----------------------------------------------------------------------------------------


def measured_rates(model: TransferModel, task: Task, split: Split, compute: Compute) -> Rates:
    """On a few images: how long it takes to decode one, and each stage's forward pass, as training has it; and a pass
    over the weights of each stage."""
    some = split.rows(np.linspace(0, len(split) - 1, min(TIMED_IMAGES, len(split))).astype(np.int32))
    n = len(some)
    decode_s, (batch,) = _timed(
        lambda: list(loaders.evaluation_batches(some, task, model.preprocessing, batch_size=n, workers=0)), compute
    )
    model.eval()
    with torch.no_grad(), torch.autocast(compute.device.type, torch.bfloat16, enabled=compute.bf16):
        inputs = normalise(batch.to(compute.device).inputs, model.preprocessing)
        stages_s, weights_s = [], []
        for stage in model.backbone.stages():
            stage.forward(inputs)  # the first time takes longer
            seconds, inputs = _timed(partial(stage.forward, inputs), compute)
            stages_s.append(seconds / n)
            own = [p for name, p in model.backbone.net.named_parameters() if stage.owns(name)]
            weights_s.append(_timed(partial(_passed_over, own), compute)[0])
    return Rates(decode_s / n, tuple(stages_s), tuple(weights_s))


def _passed_over(weights: Sequence[Tensor]) -> None:
    for tensor in weights:
        tensor + 1


def _timed(function: Callable[[], Any], compute: Compute) -> tuple[float, Any]:
    started = time.perf_counter()
    found = function()
    if compute.device.type == "cuda":
        torch.cuda.synchronize(compute.device)
    return time.perf_counter() - started, found


def work_of(
    spec: Spec, candidate: Candidate, model: TransferModel, target: DomainData, source: DomainData | None
) -> Work | None:
    """What its training computes; None: a head on features. Leaves the model frozen as in the last epochs."""
    if candidate.verb == "extract":
        return None
    n, source_images = len(target.train), 0
    steps = loaders.steps_per_epoch(n, spec.batch_size)
    if source and spec.source and spec.source.rehearsal:
        source_images = steps * (spec.source.batch_size or spec.batch_size)
    before = frozen.leading_of(model, spec.frozen_by_epoch().values(), pipeline.batchnorm(spec))
    augment = pipeline.augmentation(spec)
    is_kept = before > 0 and (augment is None or (augment.views is not None and not (augment.mixup or augment.cutmix)))
    return Work(spec.epochs, steps, n + source_images, len(target.val), before, is_kept)


def thawed_stages(spec: Spec, model: TransferModel) -> tuple[tuple[str, ...], int]:
    """The names of the stages that have parameters, and how many of them the spec trains, from the first that does."""
    model.freeze([*spec.frozen_by_epoch().values()][-1], pipeline.batchnorm(spec))
    names, trained = [], []
    for stage in model.backbone.stages():
        own = [p.requires_grad for name, p in model.backbone.net.named_parameters() if stage.owns(name)]
        if own:
            names.append(stage.name)
            trained.append(any(own))
    return tuple(names), len(trained) - trained.index(True) if True in trained else 0
