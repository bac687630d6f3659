"""What `eval` scores: a split of the run's own data, or other data, through the model's class map."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from pydantic import ValidationError

from transferctl import data, loaders, pipeline, runs, starting
from transferctl.data import DomainData, Split
from transferctl.display import Display
from transferctl.errors import CheckpointError, DataError, Problem, SpecError, TransferctlError
from transferctl.model import TransferModel
from transferctl.pipeline import Names
from transferctl.settings import DataSettings
from transferctl.spec import SourceSettings, Spec, TargetSettings
from transferctl.wording import printable, shown

LINE = 100_000  # characters of a manifest that are looked at as one; longer ones are refused when it is read in full


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
    if domain == "source":
        scored = _source_data(asked, spec, model.output_names("source"), display)
    elif asked.other is None:
        scored = _own_data(spec, model.classes["target"], asked.split or "val", display)
    else:
        scored = _mapped(asked.other, spec, model.classes["target"], asked.split or "data", _flag(asked), display)
    if spec.on_bad_sample == "skip":
        audit = loaders.audit(scored, loaders.workers_for(spec.workers, scored), display)
        scored = pipeline.readable_rows(audit, f"{domain}.{scored.name}", display)
    compare(asked, spec, spec, trained, scored, domain, display)
    return scored


def compare(
    asked: Asked, spec: Spec, trained_by: Spec, trained: Path, scored: Split, domain: str, display: Display
) -> None:
    """What is scored against what a run saw. spec: of the run whose own data it is; trained_by: of the run that is
    scored. Raises DataError for a hold-out that this one may have trained on; its training images in other data, and
    data that has changed, are said."""
    own = spec.target if domain == "target" else spec.source
    if asked.other is None:
        assert own is not None
        pipeline.compare_with_run(trained, domain, own.val, scored, display)
    if asked.other is not None or spec is not trained_by:
        _warn_of_training_images(scored, trained_by, trained, domain, display)


def in_words(asked: Asked, scored: Split) -> str:
    """What was scored, for a title."""
    return ", ".join(printable(part) for part in (asked.path, asked.split if asked.path else scored.name) if part)


def refuse_source(asked: Asked, spec: Spec, trained: Path, model: TransferModel) -> None:
    """Where `--source` cannot score anything: no data, or no head that knows its classes. Raises SpecError,
    CheckpointError."""
    if asked.other is None and spec.source is None:
        raise SpecError([Problem("", "the run's spec has no source; name data with --data PATH", "--source")])
    if asked.other is None and spec.source and spec.source.val == "none" and asked.split != "train":
        message = "forgetting is not measured: source.val is none; name data with --data PATH"
        raise SpecError([Problem("", message, "--source")])
    if "source" not in model.heads:
        message = "has no source head, as its weights brought none and nothing trained one"
        raise CheckpointError(f"{trained}: {message}; there is only the target to score: leave out --source")
    if not model.output_names("source"):
        message = "does not know the classes of its source head"
        raise CheckpointError(f"{trained}: {message}; name them in the spec (backbone.weights.classes) and train again")


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
        splits = _splits(found) if settings.dataset == "manifest" and found.is_file() else None
    except (OSError, ValueError, csv.Error):
        return settings  # reading it in full says what is wrong
    if settings.dataset == "manifest" and not found.is_file():
        return settings  # so it does of a pipe, for which it does not wait
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
        rows = csv.reader(iter(partial(file.readline, LINE), ""), strict=True)
        columns = [name.strip() for name in next(rows, [])]
        if "split" not in columns:
            return None
        column = columns.index("split")
        return sorted({row[column] for row in rows if len(row) == len(columns)})


def _own_data(spec: Spec, classes: Sequence[str], split: str, display: Display) -> Split:
    held = _held(spec, "target", split)
    if isinstance(held, DataSettings):
        return _mapped(held, spec, classes, split, f"target.{split}", display)
    if tuple(held.classes) != tuple(classes):
        raise CheckpointError("target.train has other classes now than the model; name the data with --data")
    return held.train if split == "train" else held.val


def _held(spec: Spec, domain: str, split: str) -> DataSettings | DomainData:
    """What a split of the run's own data is read from: settings of its own, or the domain that it is a part of."""
    own = spec.target if domain == "target" else spec.source
    assert own is not None
    held = getattr(own, split, None)
    if split != "train" and isinstance(held, DataSettings):
        return held
    if held is None:
        raise SpecError([Problem("", f"the run's spec has no {domain}.{split}", f"--split {split}")])
    return data.load_domain(own.train, own.val, None, spec.seed, domain=domain)


def _source_data(asked: Asked, spec: Spec, names: Names, display: Display) -> Split:
    """Labelled by the source head's outputs, which fine-tuning finds in the same way: by id or name."""
    split = asked.split or "val"
    held = asked.other or _held(spec, "source", split)
    label = _flag(asked) if asked.other else f"source.{split}"
    if isinstance(held, DataSettings):
        role = asked.split or "data" if asked.other else split
        found, classes, notes = data.load_unmapped(held, spec.seed, role=role, label=label)
    else:
        found, classes, notes = held.train if split == "train" else held.val, held.classes, held.notes
    for note in notes:
        display.warn(note)
    outputs = starting.outputs_called(classes, names, label)
    if outputs is None:
        known = shown([output[0] for output in names])
        raise DataError(f"{label}: the source head has none of its classes ({shown(classes)}); it has {known}")
    display.note(f"{label}: {len(classes)} of the source head's {len(names)} classes")
    return found.relabelled(outputs)


def _flag(asked: Asked) -> str:
    return f"--data {printable(str(asked.path))}"


def _mapped(
    settings: DataSettings, spec: Spec, classes: Sequence[str], role: str, label: str, display: Display
) -> Split:
    found, notes = data.load_labelled(settings, classes, spec.seed, role=role, label=label)
    for note in notes:
        display.warn(note)
    return found


def _warn_of_training_images(scored: Split, spec: Spec, trained: Path, domain: str, display: Display) -> None:
    """By name; where the run's training data cannot be listed any more, nothing is known."""
    own = spec.target if domain == "target" else _source_it_learnt_from(spec, trained)
    if own is None:
        return
    try:
        train = data.load_domain(own.train, own.val, None, spec.seed, domain=domain).train
    except TransferctlError:
        return
    if count := data.count_shared(scored, train):
        display.warn(f"{count} of these {len(scored)} samples are training data of the run: the score is flattered")


def _source_it_learnt_from(spec: Spec, trained: Path) -> SourceSettings | None:
    """The run's source data, if the run or its stage 0 minimised L_S."""
    verb = runs.verb_of(trained)
    rehearsed = spec.source is not None and spec.source.rehearsal and verb != "extract"
    return spec.source if rehearsed or verb == "pretrain" or spec.backbone.weights == "source" else None
