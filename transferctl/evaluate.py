"""How good a run's model is on labelled data, through the class map and preprocessing that it carries."""

from __future__ import annotations

import csv
import difflib
import math
import operator
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from transferctl import checkpoint, data, loaders, pipeline, results, runs, scoring, yamlfile
from transferctl.data import Split
from transferctl.display import Display
from transferctl.errors import CheckpointError, DataError, GateMissed, Problem, SpecError, TransferctlError
from transferctl.model import restore
from transferctl.settings import DataSettings
from transferctl.spec import Spec, TargetSettings
from transferctl.wording import printable, shown

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
    spec: Spec, trained: Path, runs_dir: Path, display: Display, *, which: str, split: str | None,
    data_path: str | None, gates: Sequence[str],
) -> dict[str, Any]:  # fmt: skip
    """Score a checkpoint on a split of its own data (None: val), or on `data_path`: a folder, a manifest, or the
    rows of a manifest whose split column says `split`.

    Raises GateMissed (exit 8) after everything is written, where a `--fail-if` condition holds.
    """
    conditions = [parse_gate(text) for text in gates]
    other = None if data_path is None else _other_data(data_path, split)
    saved = checkpoint.load(trained, which)
    _refuse_odd_gates(conditions, gates, saved.manifest.get("val", {}))
    model = restore(saved)
    domain = "target" if "target" in model.heads else "source"
    compute = pipeline.chosen_device(spec, display)
    task = pipeline.task_of(spec)
    display.note(f"model: {saved.path}; preprocessing: {model.preprocessing}")
    if other is None:
        scored = _own_data(spec, model.classes[domain], domain, split or "val", display)
    else:
        role = "data" if split is None else split
        scored = _mapped(other, spec, model.classes[domain], role, f"--data {printable(str(data_path))}", display)
    if spec.on_bad_sample == "skip":
        audit = loaders.audit(scored, loaders.workers_for(spec.workers, scored), display)
        scored = pipeline.readable_rows(audit, f"{domain}.{scored.name}", display)
    if other is None:
        own = spec.target if domain == "target" else spec.source
        assert own is not None
        pipeline.compare_with_run(trained, domain, own.val, scored, display)
    else:
        _warn_of_training_images(scored, spec, domain, display)
    where = ", ".join(printable(part) for part in (data_path, split if data_path else scored.name) if part)
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
            results.show_metrics(display, f"{trained.name}, {which}, on {where}", metrics)
            results.show_classes(display, metrics)
            missed = [
                f"{text} (it is {metrics[gate[0]]:.4f})"
                for text, gate in zip(gates, conditions, strict=True)
                if _holds(gate, metrics)
            ]
            folder.summary["gates_missed"] = missed
            if missed:
                raise GateMissed(f"{trained}: gate missed: {'; '.join(missed)}")
    except GateMissed as error:
        error.summary = folder.summary  # as summary.json has it, with how the run ended
        display.result(str(folder.path))
        raise
    display.result(str(folder.path))
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


def _refuse_odd_gates(conditions: Sequence[Gate], gates: Sequence[str], known: Mapping[str, Any]) -> None:
    """A gate that could never be what was meant. known: the scalars that training saved beside the checkpoint,
    which an evaluation finds too. Raises SpecError."""
    problems = []
    for (name, _, limit), text in zip(conditions, gates, strict=True):
        if name in known and name not in ("loss", "n") and not 0 <= limit <= 1:
            message = f"{name} is a fraction, from 0 to 1; write {limit / 100:g} for {limit:g} %"
            problems.append(Problem("", message, f"--fail-if {text}"))
        if name not in known:
            near = difflib.get_close_matches(name, known, 1, 0.6)
            hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(known)}"
            problems.append(Problem("", f"there is no metric {name!r} here; {hint}", f"--fail-if {text}"))
    if problems:
        raise SpecError(problems)


def _holds(gate: Gate, metrics: Mapping[str, Any]) -> bool:
    """A number that is not finite passes no gate."""
    name, comparison, limit = gate
    value = float(metrics[name])
    return not math.isfinite(value) or bool(_COMPARISONS[comparison](value, limit))


def _other_data(path: str, split: str | None) -> DataSettings:
    """What `--data` names. Raises SpecError where it is no path, or where it and `--split` do not go together;
    DataError where nothing is there."""
    label = f"--data {printable(path)}"
    try:
        settings = TargetSettings.model_validate({"train": path}).train
    except ValidationError as error:
        messages = {str(detail.get("ctx", {}).get("error", detail["msg"])) for detail in error.errors()}
        raise SpecError([Problem("", message, label) for message in sorted(messages)]) from None
    found: Path = settings.path  # type: ignore[attr-defined]  # a plain path is a folder's or a manifest's
    if not found.exists():
        raise DataError(f"{label}: there is no such {'folder' if settings.dataset == 'folder' else 'file'}")
    try:
        splits = _splits(found) if settings.dataset == "manifest" else None
    except (OSError, ValueError, csv.Error):
        return settings  # reading it in full says what is wrong
    if splits is None and split is not None:
        what = "a manifest without a split column" if settings.dataset == "manifest" else "a folder"
        message = f"--data is {what}, all of which is scored; leave out --split"
        raise SpecError([Problem("", message, f"--split {split}")])
    if splits and split not in splits:
        known = shown([name or "(none)" for name in splits], 10)
        add = f"has a split column; add --split and one of {known}"
        message = add if split is None else f"has no rows of split {split!r}; it has {known}"
        raise SpecError([Problem("", message, label)])
    return settings


def _splits(manifest: Path) -> list[str] | None:
    """The names in a manifest's split column; None where it has no such column."""
    with manifest.open(encoding="utf-8-sig", newline="") as file:
        rows = csv.reader(file, strict=True)
        columns = [name.strip() for name in next(rows, [])]
        if "split" not in columns:
            return None
        column = columns.index("split")
        return sorted({row[column] for row in rows if len(row) == len(columns)})


def _own_data(spec: Spec, classes: Sequence[str], domain: str, split: str, display: Display) -> Split:
    own = spec.target if domain == "target" else spec.source
    assert own is not None
    held = getattr(own, split, None)
    if split != "train" and isinstance(held, DataSettings):
        return _mapped(held, spec, classes, split, f"{domain}.{split}", display)
    if held is None:
        raise SpecError([Problem("", f"the run's spec has no {domain}.{split}", f"--split {split}")])
    whole = data.load_domain(own.train, own.val, None, spec.seed, domain=domain)
    if tuple(whole.classes) != tuple(classes):
        raise CheckpointError(f"{domain}.train has other classes now than the model; name the data with --data")
    return whole.train if split == "train" else whole.val


def _warn_of_training_images(scored: Split, spec: Spec, domain: str, display: Display) -> None:
    """By name; where the run's training data cannot be listed any more, nothing is known."""
    own = spec.target if domain == "target" else spec.source
    assert own is not None
    try:
        train = data.load_domain(own.train, own.val, None, spec.seed, domain=domain).train
    except TransferctlError:
        return
    seen = {train.sample_name(position) for position in range(len(train))}
    count = sum(scored.sample_name(position) in seen for position in range(len(scored)))
    if count:
        display.warn(f"{count} of these {len(scored)} samples are training data of the run: the score is flattered")


def _mapped(
    settings: DataSettings, spec: Spec, classes: Sequence[str], role: str, label: str, display: Display
) -> Split:
    found, notes = data.load_labelled(settings, classes, spec.seed, role=role, label=label)
    for note in notes:
        display.warn(note)
    return found
