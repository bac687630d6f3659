"""Stage 2: thaw layers and minimise L_S + λ·L_T (L_T alone without source data)."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from transferctl import (
    loaders,
    objective,
    pipeline,
    plugins,
    pretrain,
    results,
    runs,
    scoring,
    starting,
    training,
    yamlfile,
)
from transferctl.contracts import Penalty
from transferctl.display import Display
from transferctl.model import TransferModel, in_words
from transferctl.spec import Spec

SCORING_BATCH = 256


def run(spec: Spec, runs_dir: Path, display: Display) -> dict[str, Any]:
    """Fine-tune from the backbone's weights, or from the best checkpoint of the run `from`, head included."""
    target = pipeline.load_target(spec, display)
    source = pipeline.load_source(spec, display) if spec.source else None
    compute = pipeline.chosen_device(spec, display)
    task = pipeline.task_of(spec)
    model, source, origin = starting.model(
        spec if spec.from_run else pretrain.ensure_source(spec, runs_dir, display), target, source, display
    )
    if spec.from_run:
        spec = spec.model_copy(update={"head": starting.head_settings(model)})
    model.freeze(spec.frozen, batchnorm_trains=pipeline.batchnorm_trains(spec))
    model.to(compute.device)
    target_weight = 1.0 if spec.target_weight is None else spec.target_weight
    penalties = _penalties(spec, model)
    weights = {name: penalty.weight for name, penalty in penalties.items()}
    display.note(f"objective: {objective.in_symbols(source is not None, target_weight, weights)}")
    display.note(_what_is_trained(model, spec))
    stage0 = spec.backbone.weights == "source" and not spec.from_run
    pipeline.say_unused(spec, ["baseline", *([] if stage0 else ["pretrain"])], "finetune", display)
    splits = target.named_splits("target") | (source.named_splits("source") if source else {})
    with pipeline.naming_all_broken(list(splits.values()), spec, display):
        late = [*target.splits()[1:], *([source.val] if source else [])]
        pipeline.read_ahead(late, spec, display)
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
        folder.summary |= {"start": origin, "skipped": target.skipped + (source.skipped if source else 0)}
        fitted = training.fit(
            model, task, spec, stream, partial(batches_of, target.val), model.features, compute, display,
            seed=spec.seed, target_weight=target_weight, penalties=penalties, run=folder,
        )  # fmt: skip
        model.load_state_dict(fitted.best_state, strict=False)
        scoring.score_best(folder, model, task, target, batches_of, model.features, compute, display)
        if source:
            kept = scoring.measure(model, task, batches_of(source.val), model.features, compute, "source")
            folder.summary["source"] = kept
            folder.log_metrics(split="source_val", **results.headline(kept))
            results.show_metrics(display, "Source validation, with the same model", kept)
    display.result(str(folder.path))
    return folder.summary


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
        f"frozen: {in_words(spec.frozen)}; {trained:,} of {total:,} parameters train; "
        f"BatchNorm statistics of thawed stages: {statistics}"
    )
