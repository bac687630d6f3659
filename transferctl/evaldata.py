"""What `eval` scores: a split of the run's own data, or other data, through the model's class map."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from transferctl import data, loaders, pipeline
from transferctl.data import Split
from transferctl.display import Display
from transferctl.errors import CheckpointError, DataError, Problem, SpecError, TransferctlError
from transferctl.model import TransferModel
from transferctl.settings import DataSettings
from transferctl.spec import SourceSettings, Spec, TargetSettings
from transferctl.wording import printable, shown


@dataclass(frozen=True)
class Asked:
    """What the command line asks for. split: of the run's own data (None: val); beside `path`, which rows of a
    manifest. other: the data at `path`; None for the run's own."""

    split: str | None
    path: str | None
    other: DataSettings | None


def asked(path: str | None, split: str | None) -> Asked:
    """Of `--data` and `--split`. Raises SpecError where `path` is no path, or where the two do not go together;
    DataError where nothing is there."""
    return Asked(split, path, None if path is None else _other_data(path, split))


def load(asked: Asked, spec: Spec, trained: Path, model: TransferModel, domain: str, display: Display) -> Split:
    """The samples that are asked for, labelled as the domain's head has its outputs. What the run would not score
    the same today is refused or said, and so are its own training images in other data. Raises DataError, SpecError,
    CheckpointError."""
    if asked.other is None:
        scored = _own_data(spec, model.classes[domain], domain, asked.split or "val", display)
    else:
        label = f"--data {printable(str(asked.path))}"
        scored = _mapped(asked.other, spec, model.classes[domain], asked.split or "data", label, display)
    if spec.on_bad_sample == "skip":
        audit = loaders.audit(scored, loaders.workers_for(spec.workers, scored), display)
        scored = pipeline.readable_rows(audit, f"{domain}.{scored.name}", display)
    if asked.other is None:
        pipeline.compare_with_run(trained, domain, _settings(spec, domain).val, scored, display)
    else:
        _warn_of_training_images(scored, spec, domain, display)
    return scored


def in_words(asked: Asked, scored: Split) -> str:
    """What was scored, for a title."""
    return ", ".join(printable(part) for part in (asked.path, asked.split if asked.path else scored.name) if part)


def _settings(spec: Spec, domain: str) -> TargetSettings | SourceSettings:
    own = spec.target if domain == "target" else spec.source
    assert own is not None
    return own


def _other_data(path: str, split: str | None) -> DataSettings:
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
    own = _settings(spec, domain)
    held = getattr(own, split, None)
    if split != "train" and isinstance(held, DataSettings):
        return _mapped(held, spec, classes, split, f"{domain}.{split}", display)
    if held is None:
        raise SpecError([Problem("", f"the run's spec has no {domain}.{split}", f"--split {split}")])
    whole = data.load_domain(own.train, own.val, None, spec.seed, domain=domain)
    if tuple(whole.classes) != tuple(classes):
        raise CheckpointError(f"{domain}.train has other classes now than the model; name the data with --data")
    return whole.train if split == "train" else whole.val


def _mapped(
    settings: DataSettings, spec: Spec, classes: Sequence[str], role: str, label: str, display: Display
) -> Split:
    found, notes = data.load_labelled(settings, classes, spec.seed, role=role, label=label)
    for note in notes:
        display.warn(note)
    return found


def _warn_of_training_images(scored: Split, spec: Spec, domain: str, display: Display) -> None:
    """By name; where the run's training data cannot be listed any more, nothing is known."""
    own = _settings(spec, domain)
    try:
        train = data.load_domain(own.train, own.val, None, spec.seed, domain=domain).train
    except TransferctlError:
        return
    seen = {train.sample_name(position) for position in range(len(train))}
    count = sum(scored.sample_name(position) in seen for position in range(len(scored)))
    if count:
        display.warn(f"{count} of these {len(scored)} samples are training data of the run: the score is flattered")
