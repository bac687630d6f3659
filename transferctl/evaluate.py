"""How good a run's model is on labelled data, through the class map and preprocessing that it carries."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from transferctl import (
    calibration,
    checkpoint,
    comparison,
    evaldata,
    evaluation,
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
from transferctl.comparison import Other
from transferctl.conditions import Condition
from transferctl.contracts import Task
from transferctl.data import Split
from transferctl.device import Compute
from transferctl.display import Display
from transferctl.errors import CheckpointError, GateMissed, Problem, SpecError
from transferctl.evaldata import Asked
from transferctl.frozen import FrozenStages
from transferctl.inputs import Inputs
from transferctl.model import TransferModel, chosen_domain, restore
from transferctl.paired import Scored
from transferctl.results import Predictions
from transferctl.runs import Run
from transferctl.spec import Spec

# What may differ from the run's spec; all else comes with the checkpoint, and an override would do nothing.
OVERRIDABLE = ("name", "device", "precision", "workers", "on_bad_sample", "cache", "target", "source", "report")


def load_spec(
    run: Path, overrides: Sequence[str], verb: str = "eval", overridable: Sequence[str] = OVERRIDABLE
) -> yamlfile.SpecFile:
    """The resolved spec that a run was made with. Raises CheckpointError where there is none, SpecError for an
    override of what the checkpoint carries."""
    try:
        is_run = (run / "spec.yaml").is_file()
    except OSError as error:  # a name that is too long, a folder that may not be entered
        raise CheckpointError(f"{run}: cannot be looked for: {error.strerror}; name a run folder") from None
    if not is_run:
        raise CheckpointError(f"{run}: is no run folder (it has no spec.yaml); name one of those in runs/")
    runs.refuse_without_model(run)
    message = f"{verb} takes this from the checkpoint; it can set {', '.join(overridable)}"
    fixed = [text for text in overrides if _key(text) not in overridable]
    if fixed:
        raise SpecError([Problem("", message, f"--set {text}") for text in fixed])
    return yamlfile.load(run / "spec.yaml", overrides)


def of_any_run(overrides: Sequence[str]) -> list[str]:
    """Those that say where and how to compute, not what: they hold for the run that is compared against too."""
    return [text for text in overrides if _key(text) in ("device", "precision", "workers")]


def _key(override: str) -> str:
    return re.split(r"[.=]", override.strip(), maxsplit=1)[0].strip()


def run(
    spec: Spec, trained: Path, runs_dir: Path, display: Display, *, which: str, split: str | None,
    data_path: str | None, conditions: Sequence[Condition], source: bool = False, top: Sequence[int] = (),
    against: tuple[Path, Spec] | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Score a checkpoint on a split of its own data (None: val), or on `data_path`: a folder, a manifest, or the
    rows of a manifest whose split column says `split`. `source`: the source head, also as it was before fine-tuning.
    `top`: further k of top-k accuracy. `against`: another run, whose best model scores the same samples, and its spec.

    Raises GateMissed (exit 8) after everything is written, where a `--fail-if` condition holds.
    """
    asked = evaldata.asked(data_path, split)
    saved = checkpoint.load(trained, which)
    model = restore(saved)
    if source:
        evaldata.refuse_source(asked, spec, trained, model)
    domain = chosen_domain(model, "source" if source else None, trained)
    start = _start(trained, display) if source else None
    _refuse_all_classes(top, len(model.classes[domain]))
    other = comparison.load(*against) if against else None
    temperature = None if domain == "source" else calibration.temperature_of(trained, saved.path.name)
    display.note(f"model: {saved.path}; preprocessing: {model.preprocessing}")
    compute, task = pipeline.chosen_device(spec, display), pipeline.task_of(spec)
    scored = evaldata.load(asked, spec, trained, model, domain, display)
    known = metrics_of(saved, len(scored), len(model.classes[domain]), top, calibrated=temperature is not None)
    known += (forgetting.CHANGES if start else ()) + (comparison.SCALARS if other else ())
    gates.refuse_odd(conditions, known)
    also = None if other is None else _same_samples(other, asked, spec, scored, model, domain, display)
    predictions = Predictions()
    with in_run_folder(spec, trained, runs_dir, [scored], display) as folder:
        results.describe_run(folder, spec.seed, compute, model, {f"{domain}.{scored.name}": scored}, display)
        folder.summary |= {"checkpoint": saved.path.name, "data": data_path, "split": scored.name}
        inputs = inputs_as_trained(model, task, spec, trained, domain, compute, display)
        if inputs.stages and (asked.other is None or inputs.stages.is_whole):  # other data is scored once
            cache = open_cache(spec.cache, display.warn)
            inputs.compute_ahead(scored, f"{domain}.{scored.name}", cache, display, views=None)
        score = partial(scoring.score, task=task, scored=scored, domain=domain, inputs=inputs, say=display.warn)
        before = None if start is None else score(start.place(compute))
        after = score(model, predictions=predictions, top=top, temperature=temperature)
        results.write_predictions(folder, model.classes[domain], [(scored, predictions)])
        forgotten = forgetting.report(before, after) if source else {}
        folder.summary |= after[0] | forgotten
        if other and also:
            theirs = _score_other(other, also, domain, compute, display)
            compared = comparison.report(other, theirs, after)
            folder.summary |= compared
        for row in _rows(after[0], forgotten, scored, which):
            folder.log_metrics(**row)
        where = evaldata.in_words(asked, scored)
        head = ", source head" if source else ""
        results.show_metrics(display, f"{trained.name}, {which}{head}, on {where}", after[0])
        if before:
            forgetting.show(display, f"Source, {where}", forgotten)
        results.show_classes(display, after[0])
        if other and also:
            comparison.show(display, other, theirs, after, compared)
        gates.enforce(conditions, folder.summary, trained, folder)
    return folder.summary


def _refuse_all_classes(top: Sequence[int], classes: int) -> None:
    message = f"the model has {classes} classes, among which each sample's is; take fewer"
    if all_of_them := [k for k in top if k >= classes]:
        raise SpecError([Problem("", message, f"--top-k {k}") for k in all_of_them])


def _same_samples(
    other: Other, asked: Asked, spec: Spec, scored: Split, model: TransferModel, domain: str, display: Display
) -> Split:
    """Labelled for the other run's head. What that run trained on is refused or said, as for this one."""
    split = comparison.relabelled(scored, model.classes[domain], other, domain)
    evaldata.compare(asked, spec, other.spec, other.run, split, domain, display)
    return split


def _score_other(other: Other, scored: Split, domain: str, compute: Compute, display: Display) -> Scored:
    task = pipeline.task_of(other.spec)
    inputs = inputs_as_trained(other.model, task, other.spec, other.run, domain, compute, display)
    temperature = None if domain == "source" else calibration.temperature_of(other.run, other.saved.path.name)
    return scoring.score(other.model, task, scored, domain, inputs, temperature=temperature, say=display.warn)


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


def metrics_of(saved: Checkpoint, n: int, classes: int, top: Sequence[int], *, calibrated: bool) -> tuple[str, ...]:
    """The scalars that the evaluation will find: those that training saved beside the checkpoint (but for top-k, as it
    may be the other head's), and an evaluation's own."""
    kept = [name for name in saved.manifest.get("val", {}) if not name.startswith("top")]
    return tuple(dict.fromkeys([*kept, *evaluation.names(n, classes, top, calibrated=calibrated)]))


def _rows(metrics: Mapping[str, Any], report: Mapping[str, Any], scored: Split, which: str) -> list[dict[str, Any]]:
    """Lines of metrics.jsonl: of the source, one before fine-tuning, if that is known, and one after."""
    if not report:
        return [{"split": scored.name, **results.headline(metrics)}]
    split = f"source_{scored.name}"
    before = [{"checkpoint": "start", "split": split, **report["before"]}] if "before" in report else []
    return [*before, {"checkpoint": which, "split": split, **report["after"], **results.headline(report)}]
