"""Stage 0: train the backbone and its source head, minimising L_S; once for the same data and settings."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from transferctl import (
    checkpoint,
    loaders,
    pipeline,
    plan,
    report,
    results,
    runs,
    stage0,
    starting,
    tracking,
    training,
    yamlfile,
)
from transferctl.data import DomainData
from transferctl.device import Compute
from transferctl.display import Display
from transferctl.errors import CheckpointError, LockedError, SpecError
from transferctl.inputs import Inputs
from transferctl.model import BatchNorm, TransferModel
from transferctl.objective import Objective
from transferctl.resuming import Resumed
from transferctl.saving import Saver
from transferctl.spec import Spec, WeightsFile
from transferctl.wording import counted


def run(spec: Spec, runs_dir: Path, display: Display, resumed: Resumed | None = None) -> dict[str, Any]:
    """Train on `source` from random weights (or from `backbone.weights`), as `pretrain:` says; or go on with a run that
    was stopped."""
    summary = _train(spec, _prepare(spec, pipeline.load_source(spec, display), display), runs_dir, display, resumed)
    report.at_end(Path(summary["run"]), spec, display)
    display.result(summary["run"])
    return summary


def ensure_source(spec: Spec, runs_dir: Path, display: Display, source: DomainData | None = None) -> Spec:
    """With `weights: source`, run stage 0 and start from its run, or from an earlier one in `runs_dir` that was
    identical; otherwise the spec as it is. source: its data, where the caller has loaded it."""
    if spec.backbone.weights != "source":
        return spec
    start = _prepare(spec, source or pipeline.load_source(spec, display), display)
    found = stage0.find(runs_dir, start.fingerprint, display)
    if found is not None:
        display.note(f"stage 0: {found} is identical (data, architecture, settings, seed); not trained again")
    path = found or _go_on_with_stopped(spec, start, runs_dir, display)
    path = path or Path(_train(spec, start, runs_dir, display)["run"])
    if found is None:
        display.result(str(path))
    weights = WeightsFile.model_construct(path=path.absolute(), classes=None)
    return spec.model_copy(update={"backbone": spec.backbone.model_copy(update={"weights": weights})})


def _go_on_with_stopped(spec: Spec, start: _Start, runs_dir: Path, display: Display) -> Path | None:
    """An earlier run that was identical, and was stopped; None where there is none that can be gone on with. Its
    fingerprint is over the content of the data, so when files were written does not count."""
    stopped = stage0.find_stopped(runs_dir, start.fingerprint)
    if stopped is None:
        return None
    display.note(f"stage 0: {stopped} is identical and was stopped; going on with it")
    try:
        own = yamlfile.load(stopped / "spec.yaml").spec
        resumed = Resumed(stopped, allowed=("data",))
        return Path(_train(spec.model_copy(update={"name": own.name}), start, runs_dir, display, resumed, own)["run"])
    except (CheckpointError, LockedError, SpecError) as error:
        display.warn(f"stage 0: begun anew, as that one cannot be gone on with: {error}")
        return None


@dataclass(frozen=True)
class _Start:
    """What stage 0 starts from. origin: of the weights, for people."""

    source: DomainData
    model: TransferModel
    origin: str
    compute: Compute
    fingerprint: str


def _prepare(spec: Spec, source: DomainData, display: Display) -> _Start:
    """Reads every source sample: for the fingerprint, and so that a broken one does not cost the training before it."""
    if not len(source.val):
        raise SpecError.at("source.val", "is none, and pretraining selects its best epoch by it")
    start = pipeline.load_backbone(pipeline.from_random_weights(spec) if spec.backbone.weights == "source" else spec)
    compute = pipeline.chosen_device(spec, display)
    model = TransferModel(spec.backbone.library, start.backbone, start.preprocessing, spec.task)
    pipeline.keep_source_head(model, start)
    source, _ = starting.align_source(source, model, start.head_names, spec.seed, display)
    audits = [
        loaders.audit(split, loaders.workers_for(spec.workers, split), display, hashed=True)
        for split in source.splits()
    ]
    if broken := [sample for audit in audits for sample in audit.broken.values()]:
        raise loaders.broken_error(broken)
    return _Start(source, model, start.origin, compute, stage0.fingerprint(spec, model, audits, compute))


def _train(
    spec: Spec, start: _Start, runs_dir: Path, display: Display, resumed: Resumed | None = None,
    own_spec: Spec | None = None,
) -> dict[str, Any]:  # fmt: skip
    """own_spec: of the run that is resumed, where another one asks for it."""
    source, model, compute = start.source, start.model.place(start.compute), start.compute
    task = pipeline.task_of(spec)
    settings = spec.pretrain
    unused = ["from_run", "frozen", "batchnorm", "head", "head_first", "target_weight", "penalties", "baseline"]
    unused += ["augment", "ema", "keep", "early_stopping", "label_smoothing", "on_oom"]  # those under `pretrain` count
    unused += [f"source.{key}" for key in (*plan.OF_THE_JOINT_STEP, "rehearsal")]
    unused += ["candidates", *plan.OF_FROZEN_STAGES]
    pipeline.say_unused(spec, unused, "pretrain (everything is trained)", display)
    display.note(
        f"pretrain: {spec.backbone.name} from {start.origin}, min over θ of L_S, {counted(settings.epochs, 'epoch')}"
    )
    inputs = Inputs(task, model.preprocessing, spec.workers, compute)
    validation = partial(inputs.scoring_batches, source.val)
    assert spec.source is not None, "load_source has refused that"
    loss = pipeline.domain_loss(settings.label_smoothing, spec.source.balance, source.train, source.classes, compute)
    objective = Objective(task, domains={"source": loss})
    own = own_spec or spec
    trackers = tracking.chosen_by(own)
    with (
        runs.start(runs_dir, "pretrain", spec.name, yamlfile.dump(own), display, resumed, trackers) as folder,
        pipeline.naming_all_broken(source.splits(), spec, display),
    ):
        folder.summary |= {"start": start.origin, "skipped": source.skipped, "stage0": start.fingerprint}
        results.describe_run(
            folder, spec.seed, compute, model, source.named_splits("source"), display,
            resumed=resumed, facts={"stage0": start.fingerprint},
        )  # fmt: skip
        saver = Saver(folder, spec.checkpoint.of_epochs(), display)
        stream = inputs.training_stream(
            None, source.train, {"source": pipeline.augmentation(settings)}, batch_size=settings.batch_size,
            epochs=settings.epochs, seed=spec.seed, first_step=saver.first_step,
        )  # fmt: skip
        fitted = training.fit(
            model, objective, settings, stream, validation, model.features_of, compute, display,
            seed=spec.seed, frozen={1: "none"}, batchnorm=BatchNorm(thawed="train"), domain="source",
            settings_key="pretrain.", run=folder, saver=saver,
        )  # fmt: skip
        results.save_fitted(folder, model, fitted)
        checkpoint.keep_linked_alone(folder.path)
        results.show_metrics(display, f"Source, epoch {fitted.best['epoch']} (best), validation", fitted.best["val"])
    return folder.summary
