"""The labelled data of one domain: its splits, and the one class map that they all go through.

The class map is made once, from training data, by name, sorted. Every other split is mapped through it:
an unknown class is an error, a missing one a note. Indices are never derived from a folder again.
"""

from __future__ import annotations

import difflib
import hashlib
import os
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain, islice
from typing import Any, NamedTuple

import numpy as np

from transferctl import classnames, grouping, plugins, repeats, scratch
from transferctl.contracts import Dataset
from transferctl.errors import DataError, SpecError
from transferctl.images import ImageFiles
from transferctl.settings import DataSettings
from transferctl.wording import shown


@dataclass(frozen=True)
class Split:
    """Some samples of a data set. indices: int32 [n] into it; labels: int32 [n], positions in the class map.
    balanced: training draws each class as often as any other."""

    name: str
    dataset: Dataset
    indices: np.ndarray
    labels: np.ndarray
    balanced: bool = False

    def __len__(self) -> int:
        return len(self.indices)

    def sample_name(self, position: int) -> str:
        return self.dataset.name(int(self.indices[position]))

    def rows(self, positions: np.ndarray) -> Split:
        indices, labels = (scratch.taken(column, positions) for column in (self.indices, self.labels))
        return replace(self, indices=indices, labels=labels)

    def without(self, positions: Collection[int]) -> Split:
        kept = scratch.filled(len(self), True, bool)
        kept[list(positions)] = False
        return self.rows(scratch.positions(kept))

    def relabelled(self, table: np.ndarray) -> Split:
        """table: the new label of each label."""
        return replace(self, labels=scratch.taken(table.astype(np.int32), self.labels))

    def names(self) -> Iterator[str]:
        return (self.dataset.name(index) for part in scratch.pieces(len(self)) for index in self.indices[part].tolist())

    def facts(self, classes: Sequence[str]) -> dict[str, Any]:
        """What tells this split from a changed one, for people: how many samples of each class there are, how many
        bytes their files have, and a digest of when they were written (None, 0: it is of no files)."""
        counts = zip(classes, grouping.counts(self.labels, len(classes)).tolist(), strict=True)
        size, written = 0, hashlib.sha256()
        for name in self.names() if isinstance(self.dataset, ImageFiles) else ():
            try:
                status = os.stat(name)  # noqa: PTH116 (a million paths: os.* makes no objects of them)
            except (OSError, ValueError):
                continue  # reading it will say what is wrong
            size += status.st_size
            written.update(f"{status.st_mtime_ns}\n".encode())
        samples = {name: count for name, count in counts if count}
        return {"samples": samples, "bytes": size, "written": written.hexdigest() if size else None}

    def fingerprint(self) -> str:
        """SHA-256 over every sample's name and label, in order: the identity of the listing. Names count from
        the folder that all share, so that data which was moved as a whole is the same."""
        first, last = min(self.names(), default=""), max(self.names(), default="")
        shared, digest = os.path.commonpath((first, last)), hashlib.sha256()
        names = self.names()
        for part in scratch.pieces(len(self)):
            for name, label in zip(islice(names, part.stop - part.start), self.labels[part].tolist(), strict=True):
                digest.update(f"{name.removeprefix(shared)}\0{label}\n".encode("utf-8", "surrogateescape"))
        return digest.hexdigest()


def count_shared(split: Split, other: Split) -> int:
    """How many samples of a split another one has too, by name."""

    def name(number: int) -> str:
        return other.sample_name(number) if number < len(other) else split.sample_name(number - len(other))

    hashes = repeats.hashes(chain(other.names(), split.names()), len(other) + len(split))
    return sum(first < len(other) <= number for number, first in repeats.earlier(hashes, name))


@dataclass(frozen=True)
class DomainData:
    """classes: the class map, names in output order; skipped: unreadable samples that were left out."""

    classes: tuple[str, ...]
    train: Split
    val: Split
    test: Split | None
    notes: tuple[str, ...]
    skipped: int = 0

    def splits(self) -> list[Split]:
        """Those that have samples: a source may do without validation data."""
        return [self.train, *([self.val] if len(self.val) else []), *([] if self.test is None else [self.test])]

    def named_splits(self, domain: str) -> dict[str, Split]:
        return {f"{domain}.{split.name}": split for split in self.splits()}


def load_domain(
    train: DataSettings, val: DataSettings | float | str, test: DataSettings | None, seed: int, *, domain: str
) -> DomainData:
    """List and split a domain's data. val: data, a fraction of train, or "none". Raises DataError with every
    problem: nothing to train on, one class, classes that only val or test has."""
    data, problems = survey(train, val, test, seed, domain=domain)
    if problems or data is None:
        raise DataError("\n".join(problems))
    return data


def survey(
    train: DataSettings, val: DataSettings | float | str, test: DataSettings | None, seed: int, *, domain: str
) -> tuple[DomainData | None, list[str]]:
    """As `load_domain`, but with its problems beside it; None where training data cannot even be listed.
    With problems it is for looking at alone: an unknown class has label −1."""
    problems: list[str] = []
    others = {"val": val, "test": test}
    opened = {
        role: _open_or_say(settings, f"{domain}.{role}", role, seed, problems)
        for role, settings in {"train": train, **others}.items()
        if isinstance(settings, DataSettings)
    }
    if opened["train"] is None:
        return None, problems
    dataset, kept, notes = opened["train"]
    classes = tuple(_present(dataset, kept))
    if len(classes) < 2:
        problems.append(f"{domain}.train: has one class ({shown(classes)}); a classifier needs at least two")
    notes += [f"{domain}.train: {note}" for note in classnames.notes(classes)]
    splits: dict[str, Split | None] = {"train": Split("train", dataset, kept, _map_labels(dataset, kept, classes))}
    for role in others:
        found = opened.get(role)
        splits[role] = _mapped(found, role, classes, f"{domain}.{role}", notes, problems) if found else None
    train_split, val_split = splits["train"], splits["val"]
    assert train_split is not None
    if isinstance(val, float):
        train_split, val_split = _hold_out(train_split, val, seed, classes, domain, problems)
    val_split = val_split or replace(train_split.rows(scratch.arange(0)), name="val")  # none, or its problem is told
    for held in (val_split, splits["test"]):
        if held and len(held) and _ends(held) == _ends(train_split):
            notes.append(f"{domain}.{held.name}: has the very samples of {domain}.train; its score flatters")
    return DomainData(classes, train_split, val_split, splits["test"], tuple(notes)), problems


def _ends(split: Split) -> tuple[int, str, str]:
    """Enough to see that two splits are the same files."""
    return len(split), split.sample_name(0), split.sample_name(len(split) - 1)


def load_labelled(
    settings: DataSettings, classes: Sequence[str], seed: int, *, role: str, label: str
) -> tuple[Split, tuple[str, ...]]:
    """Any labelled data through a stored class map, for `eval`. Raises DataError."""
    opened = _open(settings, label, role, seed)
    notes, problems = [*opened.notes, *(f"{label}: {note}" for note in classnames.notes(classes))], list[str]()
    split = _mapped(opened, role, classes, label, notes, problems)
    if problems:
        raise DataError("\n".join(problems))
    return split, tuple(notes)


def load_unmapped(
    settings: DataSettings, seed: int, *, role: str, label: str
) -> tuple[Split, tuple[str, ...], tuple[str, ...]]:
    """Any labelled data by itself: the split, its own classes (sorted; its labels are positions in them), and what
    there is to say of it. Raises DataError."""
    dataset, kept, notes = _open(settings, label, role, seed)
    classes = tuple(_present(dataset, kept))
    return Split(role, dataset, kept, _map_labels(dataset, kept, classes)), classes, tuple(notes)


class _Opened(NamedTuple):
    """A data set, the indices that `classes` and `per_class` leave, and what there is to say of it."""

    dataset: Dataset
    kept: np.ndarray
    notes: list[str]


def _open(settings: DataSettings, label: str, role: str, seed: int) -> _Opened:
    try:
        dataset: Dataset = plugins.load("datasets", settings.dataset).load(settings, role, seed)
    except SpecError as error:  # a data set names its own keys; where in the spec it stands is known here
        raise SpecError([replace(fault, key=f"{label}.{fault.key}") for fault in error.problems]) from None
    kept = scratch.arange(len(dataset))
    if settings.classes is not None:
        unknown = sorted(set(settings.classes) - set(dataset.class_names))
        if unknown:
            raise DataError(f"{label}: no class {shown(unknown)}; there are {shown(dataset.class_names, 12)}")
        wanted = np.array([name in settings.classes for name in dataset.class_names])
        kept = scratch.positions(scratch.taken(wanted, dataset.labels))
    if not len(kept):
        raise DataError(f"{label}: no samples are left of the classes that it names; add some, or leave it out")
    if settings.per_class is not None:
        kept = _draw_per_class(dataset, kept, settings.per_class, seed)
    return _Opened(dataset, kept, [f"{label}: {note}" for note in dataset.notes])


def _open_or_say(settings: DataSettings, label: str, role: str, seed: int, problems: list[str]) -> _Opened | None:
    try:
        return _open(settings, label, role, seed)
    except DataError as error:
        problems.append(str(error))
        return None


def _draw_per_class(dataset: Dataset, kept: np.ndarray, per_class: int, seed: int) -> np.ndarray:
    drawn = scratch.filled(len(kept), False, bool)
    for label, members in grouping.members(scratch.taken(dataset.labels, kept), len(dataset.class_names)):
        random = _generator(seed, "per_class", dataset.class_names[label])
        drawn[members[grouping.permutation(len(members), random)[:per_class]]] = True
    return scratch.taken(kept, scratch.positions(drawn))


def _present(dataset: Dataset, kept: np.ndarray) -> list[str]:
    """The names of the classes that are left, sorted."""
    counts = grouping.counts(scratch.taken(dataset.labels, kept), len(dataset.class_names))
    return sorted({dataset.class_names[i] for i in np.flatnonzero(counts)})


def _map_labels(dataset: Dataset, kept: np.ndarray, classes: Sequence[str]) -> np.ndarray:
    positions = {name: i for i, name in enumerate(classes)}
    table = np.array([positions.get(name, -1) for name in dataset.class_names], dtype=np.int32)
    return scratch.taken(table, scratch.taken(dataset.labels, kept))


def _mapped(
    opened: _Opened, role: str, classes: Sequence[str], label: str, notes: list[str], problems: list[str]
) -> Split:
    """The split through the class map; what is odd goes to `notes`, unknown classes to `problems`."""
    dataset, kept = opened.dataset, opened.kept
    notes += [note for note in opened.notes if note not in notes]
    present = set(_present(dataset, kept))
    if unknown := sorted(present - set(classes)):
        near = difflib.get_close_matches(unknown[0], classes, 1, 0.6)
        hint = f" (is {unknown[0]!r} meant to be {near[0]!r}?)" if near else ""
        problems.append(
            f"{label}: classes that training data does not have: {shown(unknown)}{hint}; "
            f"the class map is {shown(classes, 12)}"
        )
    if missing := [name for name in classes if name not in present]:
        notes.append(f"{label}: no samples of {shown(missing)}")
    return Split(role, dataset, kept, _map_labels(dataset, kept, classes))


def _hold_out(
    split: Split, fraction: float, seed: int, classes: Sequence[str], domain: str, problems: list[str]
) -> tuple[Split, Split]:
    """A stratified hold-out: of each class the fraction, rounded, at least one sample on either side."""
    counts = grouping.counts(split.labels, len(classes))
    if alone := [name for name, count in zip(classes, counts, strict=True) if count < 2]:
        problems.append(
            f"{domain}.train: one sample of {shown(alone)}, too few to hold out {fraction:g} for validation; "
            f"add samples or name a {domain}.val"
        )
    in_val = scratch.filled(len(split), False, bool)
    for label, members in grouping.members(split.labels, len(classes)):
        count = min(max(round(len(members) * fraction), 1), len(members) - 1)
        in_val[grouping.shuffled(members, _generator(seed, "hold_out", classes[label]))[:count]] = True
    held = replace(split.rows(scratch.positions(in_val)), name="val")
    np.logical_not(in_val, out=in_val)
    return split.rows(scratch.positions(in_val)), held


def _generator(seed: int, *key: str) -> np.random.Generator:
    """Randomness keyed by words, so that one choice never shifts another."""
    words = hashlib.sha256("\0".join(key).encode()).digest()[:8]
    return np.random.default_rng([seed, int.from_bytes(words, "little")])
