"""How good a run's model is on labelled data, through the class map and preprocessing that it carries."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor

from transferctl import (
    checkpoint,
    evaldata,
    forgetting,
    frozen,
    gates,
    pipeline,
    report,
    results,
    runs,
    scoring,
    yamlfile,
)
from transferctl.cache.cache import open_cache
from transferctl.checkpoint import Checkpoint
from transferctl.contracts import Task
from transferctl.data import Split
from transferctl.device import Compute
from transferctl.display import Display
from transferctl.errors import CheckpointError, GateMissed, Problem, SpecError
from transferctl.forgetting import Scored
from transferctl.frozen import FrozenStages
from transferctl.gates import Gate
from transferctl.inputs import Inputs
from transferctl.model import TransferModel, restore
from transferctl.results import Predictions
from transferctl.runs import Run
from transferctl.spec import Spec

# What may differ from the run's spec; all else comes with the checkpoint, and an override would do nothing.
OVERRIDABLE = ("name", "device", "precision", "workers", "on_bad_sample", "cache", "target", "source", "report")


def load_spec(run: Path, overrides: Sequence[str]) -> yamlfile.SpecFile:
    """The resolved spec that a run was made with. Raises CheckpointError where there is none, SpecError for an
    override of what the checkpoint carries."""
    try:
        is_run = (run / "spec.yaml").is_file()
    except OSError as error:  # a name that is too long, a folder that may not be entered
        raise CheckpointError(f"{run}: cannot be looked for: {error.strerror}; name a run folder") from None
    if not is_run:
        raise CheckpointError(f"{run}: is no run folder (it has no spec.yaml); name one of those in runs/")
    message = f"eval takes this from the checkpoint; it can set {', '.join(OVERRIDABLE)}"
    fixed = [text for text in overrides if re.split(r"[.=]", text.strip(), maxsplit=1)[0].strip() not in OVERRIDABLE]
    if fixed:
        raise SpecError([Problem("", message, f"--set {text}") for text in fixed])
    return yamlfile.load(run / "spec.yaml", overrides)


def run(
    spec: Spec, trained: Path, runs_dir: Path, display: Display, *, which: str, split: str | None,
    data_path: str | None, conditions: Sequence[Gate], source: bool = False,
) -> dict[str, Any]:  # fmt: skip
    """Score a checkpoint on a split of its own data (None: val), or on `data_path`: a folder, a manifest, or the
    rows of a manifest whose split column says `split`. `source`: the source head, also as it was before fine-tuning.

    Raises GateMissed (exit 8) after everything is written, where a `--fail-if` condition holds.
    """
    asked = evaldata.asked(data_path, split)
    saved = checkpoint.load(trained, which)
    model = restore(saved)
    if source:
        evaldata.refuse_source(asked, spec, trained, model)
    domain = "target" if "target" in model.heads and not source else "source"
    start = _start(trained, display) if source else None
    gates.refuse_odd(conditions, _metrics_of(saved, model, source=source, start=start))
    compute = pipeline.chosen_device(spec, display)
    task = pipeline.task_of(spec)
    display.note(f"model: {saved.path}; preprocessing: {model.preprocessing}")
    scored = evaldata.load(asked, spec, trained, model, domain, display)
    predictions = Predictions()
    with in_run_folder(spec, trained, runs_dir, [scored], display) as folder:
        results.describe_run(folder, spec.seed, compute, model, {f"{domain}.{scored.name}": scored}, display)
        folder.summary |= {"checkpoint": saved.path.name, "data": data_path, "split": scored.name}
        inputs = inputs_as_trained(model, task, spec, trained, domain, compute, display)
        if inputs.stages and (asked.other is None or inputs.stages.is_whole):  # other data is scored once
            cache = open_cache(spec.cache, display.warn)
            inputs.compute_ahead(scored, f"{domain}.{scored.name}", cache, display, views=None)
        before = None if start is None else score(start.place(compute), task, scored, domain, inputs)
        after = score(model, task, scored, domain, inputs, predictions)
        results.write_predictions(folder, model.classes[domain], [(scored, predictions)])
        report = forgetting.report(before, after) if source else {}
        folder.summary |= after[0] | report
        for row in _rows(after[0], report, scored, which):
            folder.log_metrics(**row)
        where = evaldata.in_words(asked, scored)
        head = ", source head" if source else ""
        results.show_metrics(display, f"{trained.name}, {which}{head}, on {where}", after[0])
        if before:
            forgetting.show(display, f"Source, {where}", report)
        results.show_classes(display, after[0])
        gates.enforce(conditions, after[0] | report, trained, folder)
    return folder.summary


@contextmanager
def in_run_folder(
    spec: Spec, trained: Path, runs_dir: Path, scored: Sequence[Split], display: Display
) -> Iterator[Run]:
    """The run folder of an evaluation, whose path is the last line of the result, also where a gate is missed."""
    missed: GateMissed | None = None
    try:
        with (
            runs.start(runs_dir, "eval", spec.name, yamlfile.dump(spec), display) as folder,
            pipeline.naming_all_broken(scored, spec, display),
        ):
            folder.summary["evaluated"] = str(trained)
            yield folder
    except GateMissed as error:
        missed = error
    report.at_end(folder.path, spec, display)
    display.result(str(folder.path))
    if missed:
        raise missed


def score(
    model: TransferModel, task: Task, scored: Split, domain: str, inputs: Inputs,
    predictions: Predictions | None = None,
) -> Scored:  # fmt: skip
    """Metrics and outcomes of a domain's head; `predictions` takes what it predicts."""
    outcomes = forgetting.Recorder()

    def record(logits: Tensor, labels: Tensor) -> None:
        outcomes(logits, labels)
        if predictions is not None:
            predictions(logits, labels)

    batches = inputs.scoring_batches(scored)
    metrics = scoring.measure(model, task, batches, model.features_of, inputs.compute, domain, record)
    return metrics, outcomes.outcomes()


def inputs_as_trained(
    model: TransferModel, task: Task, spec: Spec, trained: Path, domain: str, compute: Compute, display: Display
) -> Inputs:
    """What the run froze is computed as it did, so that scores agree to the last bit; and found in the cache."""
    model.place(compute)
    verb = runs.verb_of(trained)
    if verb == "extract" and domain == "target":
        count = len(model.backbone.stages())
    elif verb in ("finetune", "eval"):
        count = frozen.leading_of(model, spec.frozen_by_epoch().values(), pipeline.batchnorm(spec))
    else:
        count = 0
    stages = FrozenStages(model, count, compute, display, compile_=spec.compile) if count else None
    return Inputs(task, model.preprocessing, spec.workers, compute, stages)


def _start(trained: Path, display: Display) -> TransferModel | None:
    """The model as fine-tuning started it; None where the run keeps none, or its source head knew nothing yet."""
    if not checkpoint.exists(trained, "start"):
        display.note("the run keeps no `start` checkpoint (finetune does), so what was forgotten is not known")
        return None
    saved = checkpoint.load(trained, "start")
    model = restore(saved)
    if "source" in saved.manifest.get("untrained_heads", ()):
        display.note("the source head was new, so there is nothing that it could have forgotten")
        return None
    return model


def _metrics_of(saved: Checkpoint, model: TransferModel, *, source: bool, start: TransferModel | None) -> list[str]:
    """The scalars that the evaluation will find: those that training saved beside the checkpoint, of the target where
    it has one."""
    names = list(saved.manifest.get("val", {}))
    if not source:
        return names
    top5 = ["top5_accuracy"] if len(model.classes["source"]) > 5 else []
    changes = [] if start is None else forgetting.CHANGES
    return [*(name for name in names if name != "top5_accuracy"), *top5, *changes]


def _rows(metrics: Mapping[str, Any], report: Mapping[str, Any], scored: Split, which: str) -> list[dict[str, Any]]:
    """Lines of metrics.jsonl: of the source, one before fine-tuning, if that is known, and one after."""
    if not report:
        return [{"split": scored.name, **results.headline(metrics)}]
    split = f"source_{scored.name}"
    before = [{"checkpoint": "start", "split": split, **report["before"]}] if "before" in report else []
    return [*before, {"checkpoint": which, "split": split, **report["after"], **results.headline(report)}]
