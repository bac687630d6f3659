"""Stage 1: a new head on frozen features. The backbone runs once an image; its features feed every epoch."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from transferctl import (
    baseline,
    checkpoint,
    features,
    heads,
    pipeline,
    plan,
    pretrain,
    report,
    results,
    runs,
    scoring,
    tracking,
    yamlfile,
)
from transferctl.cache.cache import open_cache
from transferctl.display import Display
from transferctl.model import BatchNorm
from transferctl.resuming import Resumed
from transferctl.saving import Saver
from transferctl.spec import Spec
from transferctl.training import GoesOn, to_the_end


def run(
    spec: Spec, runs_dir: Path, display: Display, resumed: Resumed | None = None, goes_on: GoesOn = to_the_end
) -> dict[str, Any]:
    """Compute features once, train the head, keep the best by validation, score test data once; or go on with a run
    that was stopped. goes_on: as `training.fit` takes it."""
    target = pipeline.load_target(spec, display)
    heads.refuse_too_few(spec.head, target.train, target.classes, "target.train")
    compute = pipeline.chosen_device(spec, display)
    pipeline.refuse_reused_hold_out(spec, target, display)
    start = pipeline.load_backbone(pretrain.ensure_source(spec, runs_dir, display))
    task = pipeline.task_of(spec)
    model = pipeline.transfer_model(spec, start, target.classes, display)
    model.freeze("all", BatchNorm())
    model.freeze_head("source")
    model.place(compute)
    pipeline.say_unused(
        spec, plan.unused_by_extract(spec), "extract (the backbone is frozen, features are computed once)", display
    )
    display.note(f"objective: {plan.extract(spec)}")
    with (
        runs.start(
            runs_dir, "extract", spec.name, yamlfile.dump(spec), display, resumed, tracking.chosen_by(spec)
        ) as folder,
        pipeline.naming_all_broken(target.splits(), spec, display),
    ):
        folder.summary |= {"start": start.origin, "skipped": target.skipped}
        results.describe_run(folder, spec.seed, compute, model, target.named_splits("target"), display, resumed=resumed)
        saver = Saver(folder, spec.checkpoint.of_heads(), display)
        tables = heads.tables(
            spec, model, task, target.splits(), compute, open_cache(spec.cache, display.warn), display
        )
        loss = pipeline.domain_loss(spec.label_smoothing, spec.target.balance, target.train, target.classes, compute)
        if spec.head.solver == "lbfgs":
            fitted, folder.summary["probe"] = heads.solve(
                model, task, spec.head, "target", loss, tables["train"], tables["val"], compute, display,
                seed=spec.seed, run=folder,
            )  # fmt: skip
        else:
            fitted = heads.fit(
                model, task, spec, "target", loss, tables["train"], tables["val"], compute, display,
                seed=spec.seed, run=folder, saver=saver, goes_on=goes_on,
            )  # fmt: skip
        results.save_fitted(folder, model, fitted)
        scoring.score_best(folder, model, task, target, lambda split: features.evaluation_batches(tables[split.name]),
                           model.features_of, compute, display)  # fmt: skip
        if spec.baseline:
            again = partial(run, runs_dir=runs_dir, display=display)
            folder.summary["baseline"] = baseline.compare(spec, folder.summary, again, compute, display)
        checkpoint.keep_linked_alone(folder.path)
    report.at_end(folder.path, spec, display)
    display.result(str(folder.path))
    return folder.summary
