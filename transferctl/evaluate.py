"""How good a run's model is on labelled data, through the class map and preprocessing that it carries."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transferctl import checkpoint, evaldata, gates, loaders, pipeline, results, runs, scoring, yamlfile
from transferctl.display import Display
from transferctl.errors import CheckpointError, GateMissed, Problem, SpecError
from transferctl.gates import Gate
from transferctl.model import restore
from transferctl.spec import Spec

SCORING_BATCH = 256

# What may differ from the run's spec; all else comes with the checkpoint, and an override would do nothing.
OVERRIDABLE = ("name", "device", "precision", "workers", "on_bad_sample", "target", "source")


def load_spec(run: Path, overrides: Sequence[str]) -> yamlfile.SpecFile:
    """The resolved spec that a run was made with. Raises CheckpointError where there is none, SpecError for an
    override of what the checkpoint carries."""
    if not (run / "spec.yaml").is_file():
        raise CheckpointError(f"{run}: is no run folder (it has no spec.yaml)")
    message = f"eval takes this from the checkpoint; it can set {', '.join(OVERRIDABLE)}"
    fixed = [text for text in overrides if re.split(r"[.=]", text.strip(), maxsplit=1)[0].strip() not in OVERRIDABLE]
    if fixed:
        raise SpecError([Problem("", message, f"--set {text}") for text in fixed])
    return yamlfile.load(run / "spec.yaml", overrides)


def run(
    spec: Spec, trained: Path, runs_dir: Path, display: Display, *, which: str, split: str | None,
    data_path: str | None, conditions: Sequence[Gate],
) -> dict[str, Any]:  # fmt: skip
    """Score a checkpoint on a split of its own data (None: val), or on `data_path`: a folder, a manifest, or the
    rows of a manifest whose split column says `split`.

    Raises GateMissed (exit 8) after everything is written, where a `--fail-if` condition holds.
    """
    asked = evaldata.asked(data_path, split)
    saved = checkpoint.load(trained, which)
    gates.refuse_odd(conditions, saved.manifest.get("val", {}))
    model = restore(saved)
    domain = "target" if "target" in model.heads else "source"
    compute = pipeline.chosen_device(spec, display)
    task = pipeline.task_of(spec)
    display.note(f"model: {saved.path}; preprocessing: {model.preprocessing}")
    scored = evaldata.load(asked, spec, trained, model, domain, display)
    model.to(compute.device)
    try:
        with (
            runs.start(runs_dir, "eval", spec.name, yamlfile.dump(spec), display) as folder,
            pipeline.naming_all_broken([scored], spec, display),
        ):
            results.describe_run(folder, spec.seed, compute, model, {f"{domain}.{scored.name}": scored})
            predictions = results.Predictions()
            workers = loaders.workers_for(spec.workers, scored)
            batches = loaders.evaluation_batches(
                scored, task, model.preprocessing, batch_size=SCORING_BATCH, workers=workers
            )
            metrics = scoring.measure(model, task, batches, model.features, compute, domain, predictions)
            results.write_predictions(folder, model.classes[domain], [(scored, predictions)])
            folder.log_metrics(split=scored.name, **results.headline(metrics))
            folder.summary |= {"evaluated": str(trained), "checkpoint": saved.path.name}
            folder.summary |= {"data": data_path, "split": scored.name} | metrics
            title = f"{trained.name}, {which}, on {evaldata.in_words(asked, scored)}"
            results.show_metrics(display, title, metrics)
            results.show_classes(display, metrics)
            folder.summary["gates_missed"] = gates.missed(conditions, metrics)
            if missed := folder.summary["gates_missed"]:
                raise GateMissed(f"{trained}: gate missed: {'; '.join(missed)}")
    except GateMissed as error:
        error.summary = folder.summary  # as summary.json has it, with how the run ended
        display.result(str(folder.path))
        raise
    display.result(str(folder.path))
    return folder.summary
