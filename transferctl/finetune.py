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
    preprocess,
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
from transferctl.errors import CheckpointError, Problem, SpecError
from transferctl.model import TransferModel, preprocessing_of, restore
from transferctl.spec import HeadSettings, Spec

SCORING_BATCH = 256


def run(spec: Spec, runs_dir: Path, display: Display) -> dict[str, Any]:
    """Fine-tune from the backbone's weights, or from the best checkpoint of the run `from`, head included."""
    target = pipeline.load_target(spec, display)
    source = pipeline.load_source(spec, display) if spec.source else None
    compute = pipeline.chosen_device(spec, display)
    task = pipeline.task_of(spec)
    spec, model, source = _start(spec, runs_dir, target, source, display)
    model.freeze(spec.frozen, batchnorm_trains=pipeline.batchnorm_trains(spec))
    model.to(compute.device)
    target_weight = 1.0 if spec.target_weight is None else spec.target_weight
    penalties = _penalties(spec, model)
    weights = {name: penalty.weight for name, penalty in penalties.items()}
    display.note(f"objective: {objective.in_symbols(source is not None, target_weight, weights)}")
    display.note(_what_is_trained(model, spec))
    pipeline.say_unused(spec, ("baseline",), "finetune", display)
    splits = target.named_splits("target") | (source.named_splits("source") if source else {})
    with pipeline.naming_all_broken(list(splits.values()), spec, display):
        pipeline.read_ahead(target.splits()[1:], spec, display)
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
    with (
        runs.start(runs_dir, "finetune", spec.name, yamlfile.dump(spec), display) as folder,
        pipeline.naming_all_broken(list(splits.values()), spec, display),
    ):
        results.describe_run(folder, spec.seed, compute, model, splits)
        folder.summary |= {"from": str(spec.from_run) if spec.from_run else None}
        fitted = training.fit(
            model, task, spec, stream, partial(batches_of, target.val), model.features, compute, display,
            target_weight=target_weight, penalties=penalties, run=folder,
        )  # fmt: skip
        model.load_state_dict(fitted.best_state, strict=False)
        scoring.score_best(folder, model, task, target, batches_of, model.features, compute, display)
    display.result(str(folder.path))
    return folder.summary


def _start(
    spec: Spec, runs_dir: Path, target: DomainData, source: DomainData | None, display: Display
) -> tuple[Spec, TransferModel, DomainData | None]:
    """The model as it starts, the source data mapped to its source head, and the spec with what was settled."""
    names: pipeline.Names
    if spec.from_run:
        model = _continue_from(spec.from_run, spec, target, display)
        spec = spec.model_copy(update={"head": _head_settings(model)})
        names = [(name,) for name in model.classes.get("source", ())]
    else:
        spec = pretrain.ensure_source(spec, runs_dir, display)
        start = pipeline.load_backbone(spec)
        model, names = pipeline.transfer_model(spec, start, target.classes, display), start.head_names
    if source:
        source = pipeline.align_source(source, model, names, spec.seed, display)
    elif "source" in model.heads:
        model.heads["source"].requires_grad_(False)  # kept as pretrained: nothing here trains it
    return spec, model, source


def _continue_from(run: Path, spec: Spec, target: DomainData, display: Display) -> TransferModel:
    """A run's best model. Its architecture, head and class map must be the spec's; its preprocessing holds
    where the spec does not say otherwise."""
    saved = checkpoint.load(run)
    its_own = preprocessing_of(saved)
    model = restore(saved, preprocess.resolve(spec.preprocess, its_own))
    if "target" not in model.heads:
        raise CheckpointError(f"{run}: has no target head (is it a pretrain run? then use backbone.weights: {run})")
    if model.backbone.name != spec.backbone.name:
        raise CheckpointError(f"{run}: holds a {model.backbone.name}, the spec asks for {spec.backbone.name}")
    if model.classes["target"] != target.classes:
        raise CheckpointError(
            f"{run}: its classes ({', '.join(model.classes['target'][:5])} …) are not those of target.train "
            f"({', '.join(target.classes[:5])} …)"
        )
    _refuse_another_head(spec.head, _head_settings(model))
    pipeline.compare_with_run(run, "target", spec.target.val, target.val, display)
    display.note(f"start: {saved.path}, target head included; backbone.weights is not used")
    note = "as in that run" if model.preprocessing == its_own else f"as the spec says; that run had {its_own}"
    display.note(f"preprocessing: {model.preprocessing} ({note})")
    return model


def _head_settings(model: TransferModel) -> HeadSettings:
    made_of = model.heads_made_of["target"]
    return HeadSettings(size=made_of["outputs"], hidden=tuple(made_of["hidden"]), dropout=made_of["dropout"])


def _refuse_another_head(asked: HeadSettings, found: HeadSettings) -> None:
    """A head that the spec describes and the run does not have; what the spec leaves out is the run's."""
    problems = [
        Problem(f"head.{key}", f"is {getattr(asked, key)}, but the head of the run that it starts from has "
                f"{getattr(found, key)}; remove it, or start without `from`")
        for key in ("hidden", "dropout")
        if key in asked.model_fields_set and getattr(asked, key) != getattr(found, key)
    ]  # fmt: skip
    if problems:
        raise SpecError(problems)


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
