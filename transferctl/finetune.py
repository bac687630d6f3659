"""Stage 2: thaw layers and minimise L_S + λ·L_T + Σ w·Ω (L_T alone without source data)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from transferctl import (
    forgetting,
    heads,
    loaders,
    penalising,
    pipeline,
    plan,
    pretrain,
    results,
    runs,
    scoring,
    starting,
    training,
    yamlfile,
)
from transferctl.contracts import Batch, Task
from transferctl.data import DomainData, Split
from transferctl.device import Compute
from transferctl.display import Display
from transferctl.forgetting import Scored
from transferctl.model import Original, TransferModel
from transferctl.objective import DomainLoss, Objective
from transferctl.runs import Run
from transferctl.scoring import SCORING_BATCH
from transferctl.spec import Spec
from transferctl.training import Fitted


def run(spec: Spec, runs_dir: Path, display: Display) -> dict[str, Any]:
    """Fine-tune from the backbone's weights, or from the best checkpoint of the run `from`, head included."""
    penalising.refuse_unmet_needs(spec)
    target = pipeline.load_target(spec, display)
    source = pipeline.load_source(spec, display) if spec.source else None
    compute = pipeline.chosen_device(spec, display)
    task = pipeline.task_of(spec)
    start = starting.model(
        spec if spec.from_run else pretrain.ensure_source(spec, runs_dir, display), target, source, display
    )
    model, source = start.model.to(compute.device), start.source
    if spec.from_run:
        spec = spec.model_copy(update={"head": starting.head_settings(model)})
    frozen, batchnorm = spec.frozen_by_epoch(), pipeline.batchnorm(spec)
    plan.say(spec, model, display)
    if source and not len(source.val):
        display.note("source.val is none: what is forgotten is not measured")
    stage0 = spec.backbone.weights == "source" and not spec.from_run
    pipeline.say_unused(spec, ["baseline", *([] if stage0 else ["pretrain"])], "finetune", display)
    splits = target.named_splits("target") | (source.named_splits("source") if source else {})
    with pipeline.naming_all_broken(list(splits.values()), spec, display):
        pipeline.read_ahead([split for split in splits.values() if split.name != "train"], spec, display)
    rehearsed = source.train if spec.source and spec.source.rehearsal and source else None
    augment = {"target": pipeline.augmentation(spec)}
    augment |= {"source": pipeline.augmentation(spec.source)} if spec.source and rehearsed else {}
    workers = max(loaders.workers_for(spec.workers, split) for split in splits.values())
    batches_of = partial(
        loaders.evaluation_batches,
        task=task, preprocessing=model.preprocessing, batch_size=SCORING_BATCH, workers=workers,
    )  # fmt: skip
    score_source = partial(_score_source, model, source, task, batches_of, compute)
    with (
        runs.start(runs_dir, "finetune", spec.name, yamlfile.dump(spec), display) as folder,
        pipeline.naming_all_broken(list(splits.values()), spec, display),
    ):
        results.describe_run(folder, spec.seed, compute, model, splits)
        folder.summary |= {"start": start.origin, "skipped": target.skipped + (source.skipped if source else 0)}
        losses = _losses(spec, target, source, compute)
        domains = {"target": target} | ({"source": source} if source else {})
        fresh = start.fresh_heads
        if spec.head_first:
            fresh = _heads_first(spec, model, task, domains, fresh, losses, compute, display, folder)
        results.save_start(folder, model, fresh)
        before = None if "source" in fresh else score_source()
        if before:
            folder.log_metrics(step=0, epoch=0, split="source_val", **results.headline(before[0]))
        objective = _objective(spec, model, task, domains, losses, compute, display)
        stream = loaders.training_stream(
            target.train, rehearsed, task, model.preprocessing, augment,
            batch_size=spec.batch_size, source_batch_size=_source_batch_size(spec), epochs=spec.epochs,
            seed=spec.seed, workers=workers,
        )  # fmt: skip
        fitted = training.fit(
            model, objective, spec, stream, partial(batches_of, target.val), model.features, compute, display,
            seed=spec.seed, frozen=frozen, batchnorm=batchnorm, mixing=pipeline.mixing(augment),
            log_cosine=spec.source is not None and spec.source.gradient_cosine, run=folder,
        )  # fmt: skip
        model.load_state_dict(fitted.best_state, strict=False)
        scoring.score_best(folder, model, task, target, batches_of, model.features, compute, display)
        if after := score_source():
            _report_source(before, after, fitted, folder, display)
    display.result(str(folder.path))
    return folder.summary


def _losses(spec: Spec, target: DomainData, source: DomainData | None, compute: Compute) -> dict[str, DomainLoss]:
    losses = {
        "target": pipeline.domain_loss(spec.label_smoothing, spec.target.balance, target.train, target.classes, compute)
    }
    if spec.source and source:
        losses["source"] = pipeline.domain_loss(
            spec.source.label_smoothing, spec.source.balance, source.train, source.classes, compute
        )
    return losses


def _heads_first(
    spec: Spec,
    model: TransferModel,
    task: Task,
    domains: Mapping[str, DomainData],
    fresh: Sequence[str],
    losses: Mapping[str, DomainLoss],
    compute: Compute,
    display: Display,
    folder: Run,
) -> tuple[str, ...]:
    """Train the fresh heads on frozen features; those that stay as they are, for want of validation data.

    losses: as fine-tuning takes them; label smoothing is the heads' own setting.
    """
    assert spec.head_first is not None
    summary: dict[str, Any] = {}
    for domain in fresh:
        data = domains[domain]
        if len(data.val):
            loss = replace(losses[domain], label_smoothing=spec.head_first.label_smoothing)
            summary[domain] = heads.head_first(
                spec, model, task, domain, loss, [data.train, data.val], compute, display
            )
        else:
            display.note(f"head first: the {domain} head is not trained first, as it has no validation data")
    if not fresh:
        display.note("head first: nothing to train, as the heads are those of the run that it starts from")
    if not penalising.source_head_trains(spec):
        model.freeze_head("source")
    folder.summary["head_first"] = summary
    return tuple(domain for domain in fresh if domain not in summary)


def _objective(
    spec: Spec,
    model: TransferModel,
    task: Task,
    domains: Mapping[str, DomainData],
    losses: Mapping[str, DomainLoss],
    compute: Compute,
    display: Display,
) -> Objective:
    """With the model as it is now kept as the original, if there are penalties to look back at it."""
    target_weight = 1.0 if spec.target_weight is None else spec.target_weight
    if not spec.penalties.chosen():
        return Objective(task, target_weight, domains=losses)
    original = Original(model, compute)
    looked_at = {domain: data.train for domain, data in domains.items()}
    looked_at |= {"source_val": domains["source"].val} if "source" in domains else {}
    penalties = penalising.build(spec, model, original, task, looked_at, compute, display)
    return Objective(task, target_weight, penalties, original, losses)


def _score_source(
    model: TransferModel,
    source: DomainData | None,
    task: Task,
    batches_of: Callable[[Split], Iterable[Batch]],
    compute: Compute,
) -> Scored | None:
    """The source's validation data through the source head; None where there is none."""
    if source is None or not len(source.val):
        return None
    recorder = forgetting.Recorder()
    metrics = scoring.measure(model, task, batches_of(source.val), model.features, compute, "source", recorder)
    return metrics, recorder.outcomes()


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


def _source_batch_size(spec: Spec) -> int:
    return (spec.source.batch_size if spec.source else None) or spec.batch_size
