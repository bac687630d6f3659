"""How good a run's model is on labelled data, through the class map and preprocessing that it carries."""

from __future__ import annotations

import json
import math
import operator
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from transferctl import checkpoint, data, loaders, pipeline, results, runs, scoring, yamlfile
from transferctl.data import Split
from transferctl.display import Display
from transferctl.errors import CheckpointError, DataError, GateMissed, Problem, SpecError
from transferctl.model import restore
from transferctl.settings import DataSettings
from transferctl.spec import Spec, TargetSettings

SCORING_BATCH = 256
_COMPARISONS = {"<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge}


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
    spec: Spec, trained: Path, runs_dir: Path, display: Display, *, which: str, split: str, data_path: str | None,
    gates: Sequence[str],
) -> dict[str, Any]:  # fmt: skip
    """Score a checkpoint on a split of its own data, or on `data_path` (a folder or manifest).

    Raises GateMissed (exit 8) after everything is written, where a `--fail-if` condition holds.
    """
    conditions = [parse_gate(text) for text in gates]
    saved = checkpoint.load(trained, which)
    model = restore(saved)
    domain = "target" if "target" in model.heads else "source"
    compute = pipeline.chosen_device(spec, display)
    task = pipeline.task_of(spec)
    display.note(f"model: {saved.path}; preprocessing: {model.preprocessing}")
    scored = _data(spec, model.classes[domain], domain, split, data_path, display)
    if spec.on_bad_sample == "skip":
        audit = loaders.audit(scored, loaders.workers_for(spec.workers, scored), display)
        scored = pipeline.readable_rows(audit, display)
    if data_path is None:
        _compare_with_training(trained, spec, domain, scored, display)
    model.to(compute.device)
    with runs.start(runs_dir, "eval", spec.name, yamlfile.dump(spec), display) as folder:
        results.describe_run(folder, spec.seed, compute, model, {f"{domain}.{scored.name}": scored})
        logits: list[torch.Tensor] = []
        workers = loaders.workers_for(spec.workers, scored)
        batches = loaders.evaluation_batches(
            scored, task, model.preprocessing, batch_size=SCORING_BATCH, workers=workers
        )
        metrics = scoring.measure(model, task, batches, model.features, compute, domain, logits.append)
        results.write_predictions(folder, model.classes[domain], [(scored, torch.cat(logits))])
        folder.log_metrics(split=scored.name, **results.headline(metrics))
        folder.summary |= {"evaluated": str(trained), "checkpoint": saved.path.name, "split": scored.name, **metrics}
        results.show_metrics(display, f"{trained.name}, {which}, on {data_path or scored.name}", metrics)
        results.show_classes(display, metrics)
        missed = [
            f"{text} (it is {metrics[gate[0]]:.4f})"
            for text, gate in zip(gates, conditions, strict=True)
            if _holds(gate, metrics)
        ]
        folder.summary["gates_missed"] = missed
    display.result(str(folder.path))
    if missed:
        raise GateMissed(f"{trained}: gate missed: {'; '.join(missed)}", folder.summary)
    return folder.summary


Gate = tuple[str, str, float]


def parse_gate(text: str) -> Gate:
    """'accuracy<0.9' -> (metric, comparison, number). Raises SpecError."""
    match = re.fullmatch(r"\s*([a-z0-9_]+)\s*(<=|>=|<|>)\s*([-+0-9.eE]+)\s*", text)
    try:
        if match:
            return match[1], match[2], float(match[3])
    except ValueError:
        pass
    message = "write a metric, <, <=, > or >=, and a number, such as accuracy<0.9"
    raise SpecError([Problem("", message, f"--fail-if {text}")])


def _holds(gate: Gate, metrics: Mapping[str, Any]) -> bool:
    """A number that is not finite passes no gate."""
    name, comparison, limit = gate
    known = results.headline(metrics)
    if name not in known:
        message = f"there is no metric {name!r} here; there are {', '.join(known)}"
        raise SpecError([Problem("", message, f"--fail-if {name}{comparison}{limit:g}")])
    value = float(known[name])
    return math.isnan(value) or bool(_COMPARISONS[comparison](value, limit))


def _data(
    spec: Spec, classes: Sequence[str], domain: str, split: str, data_path: str | None, display: Display
) -> Split:
    if data_path is not None:
        settings = TargetSettings.model_validate({"train": data_path}).train
        return _mapped(settings, spec, classes, "val", f"--data {data_path}", display)
    own = spec.target if domain == "target" else spec.source
    assert own is not None
    held = getattr(own, split, None)
    if split != "train" and isinstance(held, DataSettings):
        return _mapped(held, spec, classes, split, domain, display)
    if held is None:
        raise SpecError([Problem("", f"the run's spec has no {domain}.{split}", f"--split {split}")])
    whole = data.load_domain(own.train, own.val, None, spec.seed, domain=domain)
    if tuple(whole.classes) != tuple(classes):
        raise CheckpointError(f"{domain}.train has other classes now than the model; name the data with --data")
    return whole.train if split == "train" else whole.val


def _compare_with_training(run: Path, spec: Spec, domain: str, scored: Split, display: Display) -> None:
    """The listing must be the one that the run saw: a hold-out drawn from another one may hold training images.

    Raises DataError for such a hold-out; other data that has changed is said."""
    try:
        seen = json.loads((run / "environment.json").read_text(encoding="utf-8"))["data"][f"{domain}.{scored.name}"]
    except (OSError, ValueError, KeyError, TypeError):
        display.warn(f"{run}/environment.json does not say what {domain}.{scored.name} held; it may have changed")
        return
    if scored.fingerprint() == seen:
        return
    own = spec.target if domain == "target" else spec.source
    held_out = scored.name == "val" and own is not None and isinstance(own.val, float)
    message = f"{domain}.{scored.name}: its images or labels are not those that the run had"
    if held_out:
        raise DataError(
            f"{message}: {domain}.train has changed since, and what would be held out of it now may have been "
            "trained on; score unseen data with --data PATH"
        )
    display.warn(message)


def _mapped(
    settings: DataSettings, spec: Spec, classes: Sequence[str], role: str, label: str, display: Display
) -> Split:
    found, notes = data.load_labelled(settings, classes, spec.seed, role=role, label=label)
    for note in notes:
        display.warn(note)
    return found
