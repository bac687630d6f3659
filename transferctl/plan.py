"""What fine-tuning will do, in words: the objective, what is frozen when, each stage's learning rate."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from transferctl import objective, optim, pipeline, plugins
from transferctl.display import Display
from transferctl.model import TransferModel, in_words, norms
from transferctl.spec import Spec
from transferctl.trainsettings import HeadTrainingSettings
from transferctl.wording import counted


def say(spec: Spec, model: TransferModel, display: Display) -> None:
    """The plan as notes. Raises SpecError where `frozen` or `optimizer.stage_lr` names nothing."""
    rows = stage_rows(spec, model)
    total, trained = (sum(row[i] for row in rows) for i in (1, 2))
    display.note(f"objective: {in_symbols(spec)}")
    display.note(f"frozen: {in_words(spec.frozen_by_epoch())}; {trained:,} of {total:,} parameters train")
    rates = {row[3] for row in rows if row[2]}
    if len(rates) > 1:
        display.note(f"learning rates: {', '.join(f'{row[0]} {row[3]}' for row in rows if row[2])}")
    fixed = pipeline.batchnorm(spec)
    if norms(model.backbone.net):
        display.note(f"BatchNorm: {_NORMS[fixed.thawed]} in thawed stages, {_NORMS[fixed.frozen]} in frozen ones")


def in_symbols(spec: Spec) -> str:
    weights = {name: settings.weight for name, settings in spec.penalties.chosen().items()}
    rehearsed = spec.source is not None and spec.source.rehearsal
    return objective.in_symbols(rehearsed, 1.0 if spec.target_weight is None else spec.target_weight, weights)


_NORMS = {
    "frozen": "statistics as pretrained",
    "statistics": "statistics of the batch, scale and shift as pretrained",
    "train": "statistics of the batch",
}
STAGE_COLUMNS = ["stage", "parameters", "trained", "learning rate", "trains from", "BatchNorm"]


def stage_rows(spec: Spec, model: TransferModel) -> list[list[Any]]:
    """A row a stage, then the heads: parameters, how many some epoch trains, at which rate, from which epoch on, and
    whose statistics BatchNorm takes at the end. Leaves the model frozen as in the last epochs."""
    rates = optim.stage_rates(spec.optimizer, model)
    rows: dict[str, list[Any]] = {}
    for epoch, frozen in spec.frozen_by_epoch().items():
        model.freeze(frozen, pipeline.batchnorm(spec))
        for stage, parameters in optim.by_stage(model).items():
            row = rows.setdefault(stage, [stage, sum(p.numel() for _, p in parameters), 0, "", "", ""])
            trained = sum(p.numel() for _, p in parameters if p.requires_grad)
            if trained > row[2]:
                row[2:5] = [trained, f"{rates[stage]:g}", row[4] or f"epoch {epoch}"]
    model.train()
    for stage in model.backbone.stages():
        if stage.name in rows:
            moving = {norm.training for name, norm in norms(model.backbone.net).items() if stage.owns(name)}
            rows[stage.name][5] = _STATISTICS[frozenset(moving)]
    names = {"head": "target head", "source_head": "source head"}
    return [[names.get(stage, stage), *row[1:]] for stage, row in rows.items()]


_STATISTICS = {
    frozenset(): "",
    frozenset({True}): "batch statistics",
    frozenset({False}): "statistics fixed",
    frozenset({True, False}): "partly fixed",
}


def head_first(spec: Spec) -> str:
    assert spec.head_first is not None
    return f"the new heads alone, on frozen features: {optimizer(spec, spec.head_first)}"


def optimizer(spec: Spec, settings: HeadTrainingSettings | None = None) -> str:
    settings = settings or spec
    warmup = settings.schedule.warmup
    schedule = f"{settings.schedule.name}, warm-up {warmup:.0%}" if warmup else settings.schedule.name
    return (
        f"{settings.optimizer.name}, lr {settings.optimizer.lr:g}, {schedule}, "
        f"{counted(settings.epochs, 'epoch')} of batches ≤ {settings.batch_size}"
    )


def penalty(name: str, needs: Sequence[str]) -> str:
    """The penalty's first docstring line, and what it needs."""
    doc = str(plugins.load("penalties", name).__doc__).splitlines()[0]
    return doc + (f" Needs {', '.join(needs)}." if needs else "")


def extras(spec: Spec) -> str:
    """What else the training does that is not on by default."""
    augment = pipeline.augmentation(spec)
    smoothed = {"": spec.label_smoothing, " of L_S": spec.source.label_smoothing if spec.source else 0}
    balanced = {"": spec.target.balance, " of L_S": spec.source.balance if spec.source else "none"}
    said = [
        *(f"label smoothing{of} {value:g}" for of, value in smoothed.items() if value),
        *(f"{name} {value}" for name in ("mixup", "cutmix") if augment and (value := getattr(augment, name))),
        f"RandAugment {augment.randaugment.magnitude}" if augment and augment.randaugment else "",
        *(f"balance{of}: {value}" for of, value in balanced.items() if value != "none"),
        f"running mean of the weights (EMA {spec.ema:g})" if spec.ema else "",
        f"early stopping after {counted(spec.early_stopping, 'epoch')}" if spec.early_stopping else "",
    ]
    return ", ".join(filter(None, said))
