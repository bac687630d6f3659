"""Stage 1: a new head on frozen features. The backbone runs once an image; its features feed every epoch."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from transferctl import baseline, features, loaders, pipeline, pretrain, results, runs, scoring, training, yamlfile
from transferctl.contracts import Features, Task
from transferctl.data import DomainData
from transferctl.device import Compute
from transferctl.display import Display
from transferctl.features import FeatureTable
from transferctl.model import TransferModel
from transferctl.runs import Run
from transferctl.spec import Spec
from transferctl.training import Fitted

SCORING_BATCH = 64


def run(spec: Spec, runs_dir: Path, display: Display) -> dict[str, Any]:
    """Compute features once, train the head, keep the best by validation, score test data once."""
    target = pipeline.load_target(spec, display)
    compute = pipeline.chosen_device(spec, display)
    pipeline.refuse_reused_hold_out(spec, target, display)
    start = pipeline.load_backbone(pretrain.ensure_source(spec, runs_dir, display))
    task = pipeline.task_of(spec)
    model = pipeline.transfer_model(spec, start, target.classes, display)
    model.freeze("all", batchnorm_trains=False)
    model.freeze_head("source")
    model.to(compute.device)
    unused = ["from_run", "frozen", "batchnorm", "target_weight", "penalties", "augment"]
    unused += ["source"] if spec.backbone.weights != "source" else []
    unused += ["pretrain"] if spec.backbone.weights != "source" and spec.baseline is None else []
    pipeline.say_unused(spec, unused, "extract (the backbone is frozen, features are computed once)", display)
    display.note(f"objective: min over the head of L_T on frozen features, {spec.epochs} epochs")
    with (
        runs.start(runs_dir, "extract", spec.name, yamlfile.dump(spec), display) as folder,
        pipeline.naming_all_broken(target.splits(), spec, display),
    ):
        folder.summary |= {"start": start.origin, "skipped": target.skipped}
        results.describe_run(folder, spec.seed, compute, model, target.named_splits("target"))
        tables = _tables(spec, model, task, target, compute, display)
        fitted = _fit_head(spec, model, task, tables["train"], tables["val"], compute, display, folder)
        _save(folder, model, fitted)
        folder.summary |= {"best": fitted.best, "last": fitted.last}
        scoring.score_best(folder, model, task, target, lambda split: features.evaluation_batches(tables[split.name]),
                           Features, compute, display)  # fmt: skip
        if spec.baseline:
            again = partial(run, runs_dir=runs_dir, display=display)
            folder.summary["baseline"] = baseline.compare(spec, folder.summary, again, compute, display)
    display.result(str(folder.path))
    return folder.summary


def _tables(
    spec: Spec, model: TransferModel, task: Task, target: DomainData, compute: Compute, display: Display
) -> dict[str, FeatureTable]:
    return {
        split.name: features.compute(
            model, task, split, compute, display,
            batch_size=SCORING_BATCH, workers=loaders.workers_for(spec.workers, split),
        )
        for split in target.splits()
    }  # fmt: skip


def _fit_head(
    spec: Spec,
    model: TransferModel,
    task: Task,
    train: FeatureTable,
    val: FeatureTable,
    compute: Compute,
    display: Display,
    folder: Run,
) -> Fitted:
    stream = features.training_stream(train, batch_size=spec.batch_size, epochs=spec.epochs, seed=spec.seed)
    validation = partial(features.evaluation_batches, val)
    return training.fit(
        model, task, spec, stream, validation, Features, compute, display,
        seed=spec.seed, run=folder, save_each_epoch=False,
    )  # fmt: skip


def _save(folder: Run, model: TransferModel, fitted: Fitted) -> None:
    """The head trains in seconds, so both checkpoints are written at its end: last, then best. The model stays
    as it was at its best epoch."""
    if fitted.best == fitted.last:
        results.save_checkpoint(folder, model, fitted.best, ("best", "last"))
        return
    results.save_checkpoint(folder, model, fitted.last, ("last",))
    model.load_state_dict(fitted.best_state, strict=False)
    results.save_checkpoint(folder, model, fitted.best, ("best",))
