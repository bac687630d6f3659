"""Stage 2: thaw layers and minimise L_S + λ·L_T + Σ w·Ω (L_T alone without source data)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from transferctl import (
    checkpoint,
    forgetting,
    frozenwork,
    heads,
    penalising,
    pipeline,
    plan,
    pretrain,
    report,
    results,
    runs,
    scoring,
    starting,
    tracking,
    training,
    yamlfile,
)
from transferctl.cache.cache import Cache, open_cache
from transferctl.checkpoint import Checkpoint, Damaged
from transferctl.contracts import Task
from transferctl.data import DomainData, Split
from transferctl.device import Compute
from transferctl.display import Display
from transferctl.inputs import Inputs
from transferctl.model import Original, TransferModel, load_state
from transferctl.objective import DomainLoss, Objective
from transferctl.paired import Scored
from transferctl.resuming import Resumed
from transferctl.runs import Run
from transferctl.saving import Saver
from transferctl.spec import HeadFirstSettings, Spec
from transferctl.training import GoesOn
from transferctl.trainingstate import Fitted


@dataclass(frozen=True)
class _Setup:
    """What fine-tuning works with. spec: as it is, the head of the run that it starts from included. fresh_heads:
    domains whose heads have random weights; losses: how each domain's mean loss is taken."""

    spec: Spec
    model: TransferModel
    origin: str
    fresh_heads: tuple[str, ...]
    domains: Mapping[str, DomainData]
    losses: Mapping[str, DomainLoss]
    task: Task
    compute: Compute
    display: Display
    inputs: Inputs
    cache: Cache

    @property
    def splits(self) -> dict[str, Split]:
        return {
            name: split for domain, data in self.domains.items() for name, split in data.named_splits(domain).items()
        }


def run(
    spec: Spec, runs_dir: Path, display: Display, resumed: Resumed | None = None, goes_on: GoesOn = training.to_the_end
) -> dict[str, Any]:
    """Fine-tune from the backbone's weights, or from the best checkpoint of the run `from`, head included; or go on
    with a run that was stopped. goes_on: as `training.fit` takes it."""
    penalising.refuse_unmet_needs(spec)
    setup = _set_up(spec, runs_dir, display)
    spec, model, target = setup.spec, setup.model, setup.domains["target"]
    splits = list(setup.splits.values())
    read = [table.split for table in setup.inputs.tables]
    late = [split for split in splits if split.name != "train" and not any(split is other for other in read)]
    with pipeline.naming_all_broken(splits, spec, display):
        pipeline.read_ahead(late, spec, display)
    with (
        runs.start(
            runs_dir, "finetune", spec.name, yamlfile.dump(spec), display, resumed, tracking.chosen_by(spec)
        ) as folder,
        pipeline.naming_all_broken(splits, spec, display),
    ):
        results.describe_run(folder, spec.seed, setup.compute, model, setup.splits, display, resumed=resumed)
        folder.summary |= {"start": setup.origin, "skipped": sum(data.skipped for data in setup.domains.values())}
        saver = Saver(folder, spec.checkpoint.of_epochs(), display)
        objective, fresh = _start(setup, folder)
        before = None if "source" in fresh else _score_source(setup)
        if before and saver.begins:
            folder.log_metrics(step=0, epoch=0, split="source_val", **results.headline(before[0]))
        fitted = _fit(setup, objective, saver, folder, goes_on)
        results.save_fitted(folder, model, fitted)
        scoring.score_best(
            folder, model, setup.task, target, setup.inputs.scoring_batches, model.features_of, setup.compute, display
        )
        if after := _score_source(setup):
            _report_source(before, after, fitted, folder, display)
        checkpoint.keep_linked_alone(folder.path)
    report.at_end(folder.path, spec, display)
    display.result(str(folder.path))
    return folder.summary


def _set_up(spec: Spec, runs_dir: Path, display: Display) -> _Setup:
    """The data, the model as it starts, and the plan said."""
    target = pipeline.load_target(spec, display)
    source = pipeline.load_source(spec, display) if spec.source else None
    compute = pipeline.chosen_device(spec, display)
    with_weights = spec if spec.from_run else pretrain.ensure_source(spec, runs_dir, display, source)
    start = starting.model(with_weights, target, source, display)
    pipeline.say_unused(spec, plan.unused(spec), "finetune", display)
    if spec.from_run:
        spec = spec.model_copy(update={"head": starting.head_settings(start.model)})
    plan.say(spec, start.model, display)
    if start.source and not len(start.source.val):
        display.note("source.val is none: what is forgotten is not measured")
    domains = {"target": target} | ({"source": start.source} if start.source else {})
    settings = {"target": (spec.label_smoothing, spec.target.balance)}
    if spec.source:
        settings["source"] = (spec.source.label_smoothing, spec.source.balance)
    losses = {
        domain: pipeline.domain_loss(*settings[domain], data.train, data.classes, compute)
        for domain, data in domains.items()
    }
    model, task = start.model.place(compute), pipeline.task_of(spec)
    cache = open_cache(spec.cache, display.warn)
    inputs = frozenwork.inputs(spec, model, domains, task, compute, cache, display)
    return _Setup(spec, model, start.origin, start.fresh_heads, domains, losses, task, compute, display, inputs, cache)


def _start(setup: _Setup, folder: Run) -> tuple[Objective, tuple[str, ...]]:
    """The objective, and the domains whose heads have random weights, with the model as fine-tuning starts it; saved,
    or as an earlier process saved it."""
    model = setup.model
    saved, references = _saved_start(folder, setup.display)
    facts: dict[str, Any] = {}
    if saved:
        load_state(model, saved)
        facts = {key: saved.manifest[key] for key in ("untrained_heads", "head_first") if key in saved.manifest}
        if not penalising.source_head_trains(setup.spec):
            model.freeze_head("source")
    else:
        facts["untrained_heads"] = list(setup.fresh_heads)
        if setup.spec.head_first:
            facts["untrained_heads"], facts["head_first"] = _heads_first(setup, setup.spec.head_first)
    if "head_first" in facts:
        folder.summary["head_first"] = facts["head_first"]
    objective = _objective(setup, references)
    if saved is None:
        results.save_start(folder, model, facts, references)
    return objective, tuple(facts["untrained_heads"])


def _saved_start(folder: Run, display: Display) -> tuple[Checkpoint | None, dict[str, Tensor]]:
    """What an earlier process of the run saved of its start, and what penalties had computed of it."""
    name = checkpoint.name_of(0)
    if not folder.is_resumed or not checkpoint.exists(folder.path, name):
        return None, {}
    try:
        saved = checkpoint.load(folder.path, name)
        references = saved.tensors(checkpoint.REFERENCES_FILE)
    except Damaged as error:
        display.warn(f"what fine-tuning starts from is made anew: {error}")
        return None, {}
    checkpoint.link(folder.path, {"start": name})  # a kill can come between a checkpoint and its link
    return saved, references


def _heads_first(setup: _Setup, settings: HeadFirstSettings) -> tuple[list[str], dict[str, Any]]:
    """Train the fresh heads on frozen features; those that stay as they are, for want of validation data, and what
    there is to say of the others. Label smoothing is the heads' own setting."""
    summary: dict[str, Any] = {}
    for domain in setup.fresh_heads:
        data = setup.domains[domain]
        if len(data.val):
            loss = replace(setup.losses[domain], label_smoothing=settings.label_smoothing)
            summary[domain] = heads.head_first(
                setup.spec, setup.model, setup.task, domain, loss, [data.train, data.val], setup.compute, setup.cache,
                setup.display,
            )  # fmt: skip
        else:
            setup.display.note(f"head first: the {domain} head is not trained first, as it has no validation data")
    if not setup.fresh_heads:
        setup.display.note("head first: nothing to train, as the heads are those of the run that it starts from")
    if not penalising.source_head_trains(setup.spec):
        setup.model.freeze_head("source")
    return [domain for domain in setup.fresh_heads if domain not in summary], summary


def _fit(setup: _Setup, objective: Objective, saver: Saver, folder: Run, goes_on: GoesOn) -> Fitted:
    """Joint training on both domains, or on the target alone where the source is not rehearsed."""
    spec, model, target = setup.spec, setup.model, setup.domains["target"]
    augment = {"target": pipeline.augmentation(spec)}
    rehearsed = None
    if spec.source and spec.source.rehearsal:
        rehearsed = setup.domains["source"].train
        augment["source"] = pipeline.augmentation(spec.source)
    stream = setup.inputs.training_stream(
        target.train, rehearsed, augment, batch_size=spec.batch_size,
        source_batch_size=(spec.source and spec.source.batch_size) or spec.batch_size,
        epochs=spec.epochs, seed=spec.seed, first_step=saver.first_step,
    )  # fmt: skip
    return training.fit(
        model, objective, spec, stream, partial(setup.inputs.scoring_batches, target.val), model.features_of,
        setup.compute, setup.display, seed=spec.seed, frozen=spec.frozen_by_epoch(), batchnorm=pipeline.batchnorm(spec),
        log_cosine=spec.source is not None and spec.source.gradient_cosine, run=folder, saver=saver,
        goes_on=goes_on,
    )  # fmt: skip


def _objective(setup: _Setup, references: dict[str, Tensor]) -> Objective:
    """With the model as it is now kept as the original, if there are penalties to look back at it. references: as
    `penalising.build` takes and completes them."""
    spec, model = setup.spec, setup.model
    frozen = spec.frozen_by_epoch()
    model.freeze([*frozen.values()][-1], pipeline.batchnorm(spec))  # penalties look at what will train
    target_weight = 1.0 if spec.target_weight is None else spec.target_weight
    if not spec.penalties.chosen():
        return Objective(setup.task, target_weight, domains=setup.losses)
    original = Original(model, setup.compute)
    looked_at = {domain: data.train for domain, data in setup.domains.items()}
    looked_at |= {"source_val": setup.domains["source"].val} if "source" in setup.domains else {}
    penalties = penalising.build(spec, model, original, setup.inputs, looked_at, references, setup.display)
    return Objective(setup.task, target_weight, penalties, original, setup.losses)


def _score_source(setup: _Setup) -> Scored | None:
    """The source's validation data through the source head; None where there is none."""
    source = setup.domains.get("source")
    if source is None or not len(source.val):
        return None
    return scoring.score(setup.model, setup.task, source.val, "source", setup.inputs, say=setup.display.warn)


def _report_source(before: Scored | None, after: Scored, fitted: Fitted, folder: Run, display: Display) -> None:
    """What was forgotten: summary, metrics.jsonl, terminal. Without `before` the source head was new."""
    report = forgetting.report(before, after)
    if before is not None:
        forgetting.show(display, "Source validation", report)
    else:
        display.note("the source head is new, so there is nothing that it could have forgotten")
        results.show_metrics(display, "Source validation, with the same model", after[0])
    folder.log_metrics(step=fitted.best["step"], epoch=fitted.best["epoch"], split="source_val", **report["after"])
    folder.summary["source"] = report
