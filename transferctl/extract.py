"""Stage 1: a new head on frozen features. The backbone runs once an image; its features feed every epoch."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from transferctl import data, features, loaders, pipeline, pretrain, results, runs, scoring, training, yamlfile
from transferctl.contracts import Features, Task
from transferctl.data import DomainData
from transferctl.device import Compute
from transferctl.display import Display
from transferctl.features import FeatureTable
from transferctl.model import TransferModel
from transferctl.runs import Run
from transferctl.spec import BaselineSettings, Spec
from transferctl.training import Fitted

SCORING_BATCH = 64


def run(spec: Spec, runs_dir: Path, display: Display) -> dict[str, Any]:
    """Compute features once, train the head, keep the best by validation, score test data once."""
    target = pipeline.load_target(spec, display)
    compute = pipeline.chosen_device(spec, display)
    spec = pretrain.ensure_source(spec, runs_dir, display)
    start = pipeline.load_backbone(spec)
    task = pipeline.task_of(spec)
    model = pipeline.transfer_model(spec, start, target.classes, display)
    model.freeze("all", batchnorm_trains=False)
    _freeze_source_head(model)
    model.to(compute.device)
    unused = ("from_run", "frozen", "batchnorm", "target_weight", "penalties", "augment")
    pipeline.say_unused(spec, unused, "extract (the backbone is frozen, features are computed once)", display)
    display.note(f"objective: min over the head of L_T on frozen features, {spec.epochs} epochs")
    with runs.start(runs_dir, "extract", spec.name, yamlfile.dump(spec), display) as folder:
        results.describe_run(folder, spec.seed, compute, model, target.named_splits("target"))
        tables = _tables(spec, model, task, target, compute, display)
        fitted = _fit_head(spec, model, task, tables["train"], tables["val"], compute, display, folder)
        folder.summary |= {"best": fitted.best, "last": fitted.last}
        _save(folder, model, fitted)
        scoring.score_best(folder, model, task, target, lambda split: features.evaluation_batches(tables[split.name]),
                           Features, compute, display)  # fmt: skip
        if spec.baseline:
            comparison = _compare_with_scratch(spec, spec.baseline, model, task, target, tables, compute, display)
            folder.summary["baseline"] = comparison
    display.result(str(folder.path))
    return folder.summary


def _freeze_source_head(model: TransferModel) -> None:
    if "source" in model.heads:
        model.heads["source"].requires_grad_(False)


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
    folder: Run | None,
) -> Fitted:
    stream = features.training_stream(train, batch_size=spec.batch_size, epochs=spec.epochs, seed=spec.seed)
    validation = partial(features.evaluation_batches, val)
    return training.fit(
        model, task, spec, stream, validation, Features, compute, display, run=folder, save_each_epoch=False
    )


def _save(folder: Run, model: TransferModel, fitted: Fitted) -> None:
    """The head trains in seconds, so both checkpoints are written at its end: last, then best. The model stays
    as it was at its best epoch."""
    if fitted.best == fitted.last:
        results.save_checkpoint(folder, model, fitted.best, ("best", "last"))
        return
    results.save_checkpoint(folder, model, fitted.last, ("last",))
    model.load_state_dict(fitted.best_state, strict=False)
    results.save_checkpoint(folder, model, fitted.best, ("best",))


# -- beside it: the same network from random weights on the same images ---------------------------------


def _compare_with_scratch(
    spec: Spec,
    baseline: BaselineSettings,
    model: TransferModel,
    task: Task,
    target: DomainData,
    tables: dict[str, FeatureTable],
    compute: Compute,
    display: Display,
) -> dict[str, Any]:
    """Transfer and scratch for seeds seed, seed+1, …: the same images within a seed, the same rule for the
    best epoch, scored on test data (validation data where there is none). Accuracies and their spread."""
    rows = []
    for seed in range(spec.seed, spec.seed + baseline.repeats):
        seeded = spec.model_copy(update={"seed": seed})
        if seed != spec.seed:
            settings = spec.target
            target = data.load_domain(settings.train, settings.val, settings.test, seed, domain="target")
            tables = _tables(seeded, model, task, target, compute, display)
        model.add_new_head("target", target.classes, hidden=spec.head.hidden, dropout=spec.head.dropout, seed=seed)
        model.to(compute.device)
        fitted = _fit_head(seeded, model, task, tables["train"], tables["val"], compute, display, None)
        model.load_state_dict(fitted.best_state, strict=False)
        scored = "test" if target.test else "val"
        batches = features.evaluation_batches(tables[scored])
        transfer = scoring.measure(model, task, batches, Features, compute)["accuracy"]
        rows.append(
            {"seed": seed, "transfer": transfer, "scratch": _scratch(seeded, baseline, task, target, compute, display)}
        )
        display.note(f"seed {seed}: transfer {transfer:.4f}, from scratch {rows[-1]['scratch']:.4f} ({scored})")
    return _compared(rows, scored, len(target.train), display)


def _scratch(
    spec: Spec, baseline: BaselineSettings, task: Task, target: DomainData, compute: Compute, display: Display
) -> float:
    """Accuracy of the same architecture trained from random weights on the target images alone."""
    from_random = spec.model_copy(
        update={"backbone": spec.backbone.model_copy(update={"weights": "none"}), "epochs": baseline.epochs}
    )
    start = pipeline.load_backbone(from_random)
    model = TransferModel(spec.backbone.library, start.backbone, start.preprocessing, spec.task)
    model.add_new_head("target", target.classes, hidden=spec.head.hidden, dropout=spec.head.dropout, seed=spec.seed)
    model.freeze("none", batchnorm_trains=True)
    model.to(compute.device)
    settings = spec.pretrain.model_copy(update={"epochs": baseline.epochs, "batch_size": spec.batch_size})
    stream = loaders.training_stream(
        target.train, None, task, model.preprocessing, pipeline.augmentation(settings),
        batch_size=settings.batch_size, source_batch_size=0, epochs=baseline.epochs, seed=spec.seed, workers=0,
    )  # fmt: skip
    batches_of = partial(
        loaders.evaluation_batches, task=task, preprocessing=model.preprocessing, batch_size=256, workers=0
    )
    fitted = training.fit(
        model, task, settings, stream, partial(batches_of, target.val), model.features, compute, display
    )
    model.load_state_dict(fitted.best_state, strict=False)
    scored = scoring.measure(model, task, batches_of(target.test or target.val), model.features, compute)
    return float(scored["accuracy"])


def _compared(rows: Sequence[dict[str, Any]], scored: str, n_train: int, display: Display) -> dict[str, Any]:
    summary: dict[str, Any] = {"scored_on": scored, "train_samples": n_train, "runs": list(rows)}
    table = []
    for arm, words in (("transfer", "transfer: frozen features + new head"), ("scratch", "from scratch")):
        values = np.array([row[arm] for row in rows])
        spread = float(values.std(ddof=1)) if len(values) > 1 else 0.0
        summary[arm] = {
            "mean": float(values.mean()),
            "sd": spread,
            "min": float(values.min()),
            "max": float(values.max()),
        }
        table.append(
            [
                words,
                f"{100 * values.mean():.1f}",
                f"{100 * spread:.1f}",
                f"{100 * values.min():.1f}",
                f"{100 * values.max():.1f}",
            ]
        )
    title = f"{scored} accuracy, %, on the same {n_train} training images; {len(rows)} seeds"
    display.table(title, ["", "mean", "sd", "lowest", "highest"], table)
    return summary
