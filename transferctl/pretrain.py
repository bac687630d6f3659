"""Stage 0: train the backbone and its source head, minimising L_S."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from transferctl import loaders, pipeline, results, runs, training, yamlfile
from transferctl.display import Display
from transferctl.errors import SpecError
from transferctl.model import BatchNorm, TransferModel
from transferctl.objective import Objective
from transferctl.spec import Spec, WeightsFile


def run(spec: Spec, runs_dir: Path, display: Display) -> dict[str, Any]:
    """Train on `source` from random weights (or from `backbone.weights`), as `pretrain:` says."""
    source = pipeline.load_source(spec, display)
    if not len(source.val):
        raise SpecError.at("source.val", "is none, and pretraining selects its best epoch by it")
    start = pipeline.load_backbone(_start_of_stage0(spec))
    compute = pipeline.chosen_device(spec, display)
    task = pipeline.task_of(spec)
    model = TransferModel(spec.backbone.library, start.backbone, start.preprocessing, spec.task)
    model.add_new_head("source", source.classes, hidden=(), dropout=0.0, seed=spec.seed)
    model.to(compute.device)
    settings = spec.pretrain
    unused = ["from_run", "frozen", "batchnorm", "head", "head_first", "target_weight", "penalties", "baseline"]
    unused += ["augment", "ema", "keep", "early_stopping", "label_smoothing"]  # those under `pretrain` count
    pipeline.say_unused(spec, unused, "pretrain (everything is trained)", display)
    display.note(f"pretrain: {spec.backbone.name} from {start.origin}, min over θ of L_S, {settings.epochs} epochs")
    pipeline.read_ahead([source.val], spec, display)
    workers = loaders.workers_for(spec.workers, source.train)
    augment = {"source": pipeline.augmentation(settings)}
    stream = loaders.training_stream(
        None, source.train, task, model.preprocessing, augment,
        batch_size=settings.batch_size, source_batch_size=0, epochs=settings.epochs, seed=spec.seed, workers=workers,
    )  # fmt: skip
    validation = partial(
        loaders.evaluation_batches, source.val, task, model.preprocessing, batch_size=256, workers=workers
    )
    assert spec.source is not None, "load_source has refused that"
    loss = pipeline.domain_loss(settings.label_smoothing, spec.source.balance, source.train, source.classes, compute)
    objective = Objective(task, domains={"source": loss})
    with (
        runs.start(runs_dir, "pretrain", spec.name, yamlfile.dump(spec), display) as folder,
        pipeline.naming_all_broken(source.splits(), spec, display),
    ):
        folder.summary |= {"start": start.origin, "skipped": source.skipped}
        results.describe_run(folder, spec.seed, compute, model, source.named_splits("source"))
        fitted = training.fit(
            model, objective, settings, stream, validation, model.features, compute, display,
            seed=spec.seed, frozen={1: "none"}, batchnorm=BatchNorm(thawed="train"), domain="source",
            mixing=pipeline.mixing(augment), run=folder,
        )  # fmt: skip
        results.show_metrics(display, f"Source, epoch {fitted.best['epoch']} (best), validation", fitted.best["val"])
    display.result(str(folder.path))
    return folder.summary


def ensure_source(spec: Spec, runs_dir: Path, display: Display) -> Spec:
    """With `weights: source`, run stage 0 and start from its run; otherwise the spec as it is."""
    if spec.backbone.weights != "source":
        return spec
    summary = run(spec, runs_dir, display)
    weights = WeightsFile.model_construct(path=Path(summary["run"]).absolute(), classes=None)
    return spec.model_copy(update={"backbone": spec.backbone.model_copy(update={"weights": weights})})


def _start_of_stage0(spec: Spec) -> Spec:
    return pipeline.from_random_weights(spec) if spec.backbone.weights == "source" else spec
