"""What fine-tuning will do, in words: the objective, what is frozen when, each stage's learning rate."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from transferctl import objective, optim, pipeline, plugins
from transferctl.display import Display
from transferctl.model import TransferModel, in_words, norms
from transferctl.settings import PenaltySettings, Settings
from transferctl.spec import HeadSettings, SourceSettings, Spec
from transferctl.trainsettings import HeadTrainingSettings
from transferctl.wording import counted


def say(spec: Spec, model: TransferModel, display: Display) -> None:
    """The plan as notes. Raises SpecError where `frozen` or `optimizer.stage_lr` names nothing."""
    rows = stage_rows(spec, model)
    total, trained = (sum(row[i] for row in rows) for i in (1, 2))
    display.note(f"objective: {in_symbols(spec)}")
    display.note(f"frozen: {in_words(spec.frozen_by_epoch())}; {trained:,} of {total:,} parameters train")
    say_idle_rates(spec, rows, display)
    rates = {row[3] for row in rows if row[2]}
    if len(rates) > 1:
        display.note(f"learning rates: {', '.join(f'{row[0]} {row[3]}' for row in rows if row[2])}")
    fixed = pipeline.batchnorm(spec)
    if norms(model.backbone.net):
        display.note(f"BatchNorm: {_NORMS[fixed.thawed]} in thawed stages, {_NORMS[fixed.frozen]} in frozen ones")


def say_idle_rates(spec: Spec, rows: Sequence[Sequence[Any]], display: Display) -> None:
    """Rates of stages that nothing trains. rows: as `stage_rows` makes them."""
    for stage, _, trained, *_ in rows:
        if not trained and stage in spec.optimizer.stage_lr:
            display.note(f"optimizer.stage_lr.{stage} has no effect: nothing of it trains")


def unused(spec: Spec) -> list[str]:
    """What fine-tuning does not read of the spec, as keys for `pipeline.say_unused`."""
    stage0 = spec.backbone.weights == "source" and not spec.from_run
    by_lbfgs = spec.head.solver == "lbfgs"
    measured_alone = spec.source is not None and not spec.source.rehearsal
    return [
        "baseline",
        "candidates",
        *([] if stage0 else ["pretrain"]),
        *([f"source.{key}" for key in (*OF_THE_JOINT_STEP, "balance")] if measured_alone else []),
        *(["head.solver", "head.regularisation"] if by_lbfgs and not spec.head_first else []),
        *([f"head_first.{key}" for key in OF_SGD] if by_lbfgs else []),
        *(OF_FROZEN_STAGES if "none" in spec.frozen_by_epoch().values() and not spec.head_first else []),
    ]


def unused_by_extract(spec: Spec) -> list[str]:
    """The same of extract."""
    found = list(OF_FINETUNE)
    found += ["source"] if spec.backbone.weights != "source" else []
    found += ["pretrain"] if spec.backbone.weights != "source" and spec.baseline is None else []
    if spec.head.solver == "lbfgs":  # the network from scratch has epochs of its own, but this batch size
        found += [key for key in OF_SGD if key != "batch_size" or spec.baseline is None]
        found += ["checkpoint"]
    return found


OF_FINETUNE = ("candidates", "from_run", "frozen", "batchnorm", "head_first", "target_weight", "penalties", "augment")
OF_FROZEN_STAGES = ("cache", "compile")
OF_THE_JOINT_STEP = ("batch_size", "label_smoothing", "augment", "gradient_cosine")  # keys of `source`
OF_SGD = (
    "epochs",
    "batch_size",
    "optimizer",
    "schedule",
    "keep",
    "early_stopping",
    "ema",
    "on_oom",
)  # not of L-BFGS


def in_symbols(spec: Spec) -> str:
    weights = {name: settings.weight for name, settings in spec.penalties.chosen().items()}
    rehearsed = spec.source is not None and spec.source.rehearsal
    return objective.in_symbols(rehearsed, 1.0 if spec.target_weight is None else spec.target_weight, weights)


_NORMS = {
    "frozen": "statistics as pretrained",
    "statistics": "statistics of the batch, scale and shift as pretrained",
    "train": "statistics of the batch",
}
STAGE_COLUMNS = ["stage", "parameters", "trained", "learning rate", "in epochs", "BatchNorm"]


def stage_rows(spec: Spec, model: TransferModel) -> list[list[Any]]:
    """A row a stage, then the heads: parameters, how many some epoch trains, at which rate, in which epochs, and whose
    statistics BatchNorm takes at the end. Leaves the model frozen as in the last epochs. Raises SpecError for a
    `frozen` or a `stage_lr`, also those of `head_first` and `pretrain`, that names nothing."""
    rates = optim.stage_rates(spec.optimizer, model)
    optim.stage_rates(spec.pretrain.optimizer, model, "pretrain.")
    if spec.head_first:
        optim.stage_rates(spec.head_first.optimizer, model, "head_first.")
    rows: dict[str, list[Any]] = {}
    starts = [*spec.frozen_by_epoch(), spec.epochs + 1]
    for (first, frozen), end in zip(spec.frozen_by_epoch().items(), starts[1:], strict=True):
        model.freeze(frozen, pipeline.batchnorm(spec))
        for stage, parameters in optim.by_stage(model).items():
            row = rows.setdefault(stage, [stage, sum(p.numel() for _, p in parameters), 0, "", "", ""])
            trained = sum(p.numel() for _, p in parameters if p.requires_grad)
            if trained:
                row[2:5] = [max(trained, row[2]), f"{rates[stage]:g}", _joined(row[4], first, end - 1)]
    model.train()
    for stage in model.backbone.stages():
        if stage.name in rows:
            moving = {norm.training for name, norm in norms(model.backbone.net).items() if stage.owns(name)}
            rows[stage.name][5] = _STATISTICS[frozenset(moving)]
    return list(rows.values())


def _joined(epochs: str, first: int, last: int) -> str:
    """'1–2' and 3 to 5: '1–5'."""
    before, _, end = epochs.rpartition("–")
    return f"{before}–{last}" if end == str(first - 1) else f"{epochs}, {first}–{last}".lstrip(", ")


_STATISTICS = {
    frozenset(): "",
    frozenset({True}): "batch statistics",
    frozenset({False}): "statistics fixed",
    frozenset({True, False}): "partly fixed",
}


def head_first(spec: Spec) -> str:
    assert spec.head_first is not None
    how = lbfgs(spec.head) if spec.head.solver == "lbfgs" else optimizer(spec, spec.head_first)
    return f"the new heads alone, on frozen features: {how}"


def lbfgs(head: HeadSettings) -> str:
    """How the converged linear probe is found."""
    chosen = "α by cross-validation" if head.regularisation == "auto" else f"α = {head.regularisation:g}"
    return f"L-BFGS to convergence, with α/2·‖W‖² on standardised features, {chosen}"


def extract(spec: Spec) -> str:
    how = lbfgs(spec.head) if spec.head.solver == "lbfgs" else counted(spec.epochs, "epoch")
    return f"min over the head of L_T on frozen features; {how}"


def optimizer(spec: Spec, settings: HeadTrainingSettings | None = None) -> str:
    settings = settings or spec
    warmup = settings.schedule.warmup
    schedule = f"{settings.schedule.name}, warm-up {warmup:.0%}" if warmup else settings.schedule.name
    parts = [
        f"{settings.optimizer.name}, {_set(settings.optimizer, 'name')}",
        ", ".join(filter(None, [schedule, _set(settings.schedule, "name", "warmup")])),
        f"{counted(settings.epochs, 'epoch')} of batches ≤ {settings.batch_size}",
    ]
    return "; ".join(parts)


_SAYS_NOTHING = {"layer_decay": 1.0, "decayed": "weights", "rehearsal": True}  # beside None, false, none and {}


def _set(settings: Settings, *left_out: str) -> str:
    """What some settings turn on, and their numbers: lr 0.01, momentum 0.9."""
    said = []
    for key, value in settings:
        if key in left_out or value in (None, False, "none", {}) or _SAYS_NOTHING.get(key) == value:
            continue
        said.append(f"{key} ({_set(value)})" if isinstance(value, Settings) else f"{key} {value}")
    return ", ".join(said)


def source(settings: SourceSettings) -> str:
    """How the source takes part."""
    if not settings.rehearsal:
        return "measures what is forgotten, and serves penalties; L_S is not computed"
    return "L_S on a cycle of its own" + ("; " + given if (given := _set(settings, "train", "val")) else "")


def penalty(name: str, settings: PenaltySettings, needs: Sequence[str]) -> str:
    """The penalty's first docstring line, its settings, and what it needs."""
    doc = str(plugins.load("penalties", name).__doc__).splitlines()[0]
    given = _set(settings, "weight")
    return " ".join([doc, *([f"{given}."] if given else []), *([f"Needs {', '.join(needs)}."] if needs else [])])


def extras(spec: Spec) -> str:
    """What else the training does that is not on by default."""
    augment = pipeline.augmentation(spec)
    said = [
        f"label smoothing {spec.label_smoothing:g}" if spec.label_smoothing else "",
        *(f"{name} {value}" for name in ("mixup", "cutmix") if augment and (value := getattr(augment, name))),
        f"RandAugment {augment.randaugment.magnitude}" if augment and augment.randaugment else "",
        f"balance: {spec.target.balance}" if spec.target.balance != "none" else "",
        "keep: last" if spec.keep == "last" else "",
        f"running mean of the weights (EMA {spec.ema:g})" if spec.ema else "",
        f"early stopping after {counted(spec.early_stopping, 'epoch')}" if spec.early_stopping else "",
    ]
    return ", ".join(filter(None, said))
