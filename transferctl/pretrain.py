"""Stage 0: train the backbone and its source head, minimising L_S."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from transferctl import checkpoint, loaders, pipeline, results, runs, training, yamlfile
from transferctl.display import Display
from transferctl.model import TransferModel, state_for_checkpoint
from transferctl.spec import Spec, WeightsFile


def run(spec: Spec, runs_dir: Path, display: Display) -> dict[str, Any]:
    """Train on `source` from random weights (or from `backbone.weights`), as `pretrain:` says."""
    source = pipeline.load_source(spec, display)
    start = pipeline.load_backbone(_from_scratch(spec))
    compute = pipeline.chosen_device(spec, display)
    task = pipeline.task_of(spec)
    model = TransferModel(spec.backbone.library, start.backbone, start.preprocessing, spec.task)
    model.add_new_head("source", source.classes, hidden=(), dropout=0.0, seed=spec.seed)
    model.freeze("none", batchnorm_trains=True)
    model.to(compute.device)
    settings = spec.pretrain
    display.note(f"pretrain: {spec.backbone.name} from {start.origin}, min over θ of L_S, {settings.epochs} epochs")
    workers = loaders.workers_for(spec.workers, source.train)
    batches = loaders.training_batches(
        None, source.train, task, model.preprocessing, pipeline.augmentation(settings),
        batch_size=settings.batch_size, source_batch_size=0, epochs=settings.epochs, seed=spec.seed, workers=workers,
    )  # fmt: skip
    validation = partial(
        loaders.evaluation_batches, source.val, task, model.preprocessing, batch_size=256, workers=workers
    )
    with runs.start(runs_dir, "pretrain", spec.name, yamlfile.dump(spec), display) as folder:
        fingerprints = {f"source.{split.name}": split.fingerprint() for split in source.splits()}
        folder.write_json("environment.json", runs.environment(spec.seed, str(compute), fingerprints))
        folder.write_json("classes.json", {"source": list(source.classes)})

        def save(epoch: dict[str, Any], is_best: bool) -> None:
            links = ("best", "last") if is_best else ("last",)
            manifest = model.describe() | {"epoch": epoch["epoch"], "val": training.headline(epoch["val"])}
            checkpoint.save(folder.path, epoch["step"], state_for_checkpoint(model), manifest, links)

        fitted = training.fit(
            model, task, settings, batches, validation, model.features, compute, display,
            steps_per_epoch=loaders.steps_per_epoch(len(source.train), settings.batch_size),
            domain="source", run=folder, save=save,
        )  # fmt: skip
        folder.summary |= {"best": fitted.best, "last": fitted.last}
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


def _from_scratch(spec: Spec) -> Spec:
    if spec.backbone.weights != "source":
        return spec
    return spec.model_copy(update={"backbone": spec.backbone.model_copy(update={"weights": "none"})})
