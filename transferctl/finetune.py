"""Stage 2: thaw layers and minimise L_S + λ·L_T (L_T alone without source data)."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from transferctl import (
    checkpoint,
    loaders,
    objective,
    pipeline,
    plugins,
    pretrain,
    results,
    runs,
    scoring,
    training,
    yamlfile,
)
from transferctl.contracts import Penalty
from transferctl.data import DomainData
from transferctl.display import Display
from transferctl.errors import CheckpointError
from transferctl.model import TransferModel, restore
from transferctl.spec import Spec

SCORING_BATCH = 256


def run(spec: Spec, runs_dir: Path, display: Display, from_run: Path | None = None) -> dict[str, Any]:
    """Fine-tune from the backbone's weights, or from a run's best checkpoint (`from_run`, head included)."""
    target = pipeline.load_target(spec, display)
    source = pipeline.load_source(spec, display) if spec.source else None
    compute = pipeline.chosen_device(spec, display)
    task = pipeline.task_of(spec)
    if from_run:
        model = _continue_from(from_run, spec, target, display)
        names: pipeline.Names = [(name,) for name in model.classes.get("source", ())]
    else:
        spec = pretrain.ensure_source(spec, runs_dir, display)
        start = pipeline.load_backbone(spec)
        model, names = pipeline.transfer_model(spec, start, target.classes, display), list(start.head_names)
    if source:
        source = pipeline.align_source(source, model, names, spec.seed, display)
    elif "source" in model.heads:
        model.heads["source"].requires_grad_(False)  # kept as pretrained: nothing here trains it
    model.freeze(spec.frozen, batchnorm_trains=pipeline.batchnorm_trains(spec))
    model.to(compute.device)
    target_weight = 1.0 if spec.target_weight is None else spec.target_weight
    penalties = _penalties(spec, model)
    weights = {name: penalty.weight for name, penalty in penalties.items()}
    display.note(f"objective: {objective.in_symbols(source is not None, target_weight, weights)}")
    display.note(_what_is_trained(model, spec))
    workers = loaders.workers_for(spec.workers, target.train)
    stream = loaders.training_stream(
        target.train, source.train if source else None, task, model.preprocessing, pipeline.augmentation(spec),
        batch_size=spec.batch_size, source_batch_size=_source_batch_size(spec), epochs=spec.epochs,
        seed=spec.seed, workers=workers,
    )  # fmt: skip
    batches_of = partial(
        loaders.evaluation_batches,
        task=task, preprocessing=model.preprocessing, batch_size=SCORING_BATCH, workers=workers,
    )  # fmt: skip
    with runs.start(runs_dir, "finetune", spec.name, yamlfile.dump(spec), display) as folder:
        splits = target.named_splits("target") | (source.named_splits("source") if source else {})
        results.describe_run(folder, spec.seed, compute, model, splits)
        folder.summary |= {"from": str(from_run) if from_run else None}
        fitted = training.fit(
            model, task, spec, stream, partial(batches_of, target.val), model.features, compute, display,
            target_weight=target_weight, penalties=penalties, run=folder,
        )  # fmt: skip
        model.load_state_dict(fitted.best_state, strict=False)
        folder.summary |= {"best": fitted.best, "last": fitted.last}
        scoring.score_best(folder, model, task, target, batches_of, model.features, compute, display)
    display.result(str(folder.path))
    return folder.summary


def _continue_from(run: Path, spec: Spec, target: DomainData, display: Display) -> TransferModel:
    """A run's best model. Its preprocessing and class map hold, and must be the spec's."""
    saved = checkpoint.load(run)
    model = restore(saved)
    if "target" not in model.heads:
        raise CheckpointError(f"{run}: has no target head (is it a pretrain run? then use backbone.weights: {run})")
    if model.backbone.name != spec.backbone.name:
        raise CheckpointError(f"{run}: holds a {model.backbone.name}, the spec asks for {spec.backbone.name}")
    if model.classes["target"] != target.classes:
        raise CheckpointError(
            f"{run}: its classes ({', '.join(model.classes['target'][:5])} …) are not those of target.train "
            f"({', '.join(target.classes[:5])} …)"
        )
    display.note(f"start: {saved.path}, head included")
    display.note(f"preprocessing: {model.preprocessing} (as in that run)")
    return model


def _penalties(spec: Spec, model: TransferModel) -> dict[str, Penalty]:
    chosen = spec.penalties.chosen()
    return {name: plugins.load("penalties", name).build(settings, model) for name, settings in chosen.items()}


def _source_batch_size(spec: Spec) -> int:
    return (spec.source.batch_size if spec.source else None) or spec.batch_size


def _what_is_trained(model: TransferModel, spec: Spec) -> str:
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    total = sum(p.numel() for p in model.parameters())
    statistics = "those of the batch" if model.batchnorm_trains else "as pretrained"
    return (
        f"frozen: {spec.frozen}; {trained:,} of {total:,} parameters train; "
        f"BatchNorm statistics of thawed stages: {statistics}"
    )
