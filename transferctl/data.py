"""The labelled data of one domain: its splits, and the one class map that they all go through.

The class map is made once, from training data, by name, sorted. Every other split is mapped through it:
an unknown class is an error, a missing one a note. Indices are never derived from a folder again.
"""

from __future__ import annotations

import difflib
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from transferctl import plugins
from transferctl.contracts import Dataset
from transferctl.errors import DataError
from transferctl.images import shown
from transferctl.settings import DataSettings


@dataclass(frozen=True)
class Split:
    """Some samples of a data set. indices: int64 [n] into it; labels: int64 [n], positions in the class map."""

    name: str
    dataset: Dataset
    indices: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.indices)

    def sample_name(self, position: int) -> str:
        return self.dataset.name(int(self.indices[position]))

    def rows(self, positions: np.ndarray) -> Split:
        return replace(self, indices=self.indices[positions], labels=self.labels[positions])

    def fingerprint(self) -> str:
        """SHA-256 over every sample's name and label, in order: the identity of the listing."""
        digest = hashlib.sha256()
        for position, label in enumerate(self.labels):
            digest.update(f"{self.sample_name(position)}\0{label}\n".encode("utf-8", "surrogateescape"))
        return digest.hexdigest()


@dataclass(frozen=True)
class DomainData:
    """classes: the class map, names in output order."""

    classes: tuple[str, ...]
    train: Split
    val: Split
    test: Split | None
    notes: tuple[str, ...]

    def splits(self) -> list[Split]:
        return [self.train, self.val, *([self.test] if self.test else [])]

    def named_splits(self, domain: str) -> dict[str, Split]:
        return {f"{domain}.{split.name}": split for split in self.splits()}


def load_domain(
    train: DataSettings, val: DataSettings | float, test: DataSettings | None, seed: int, *, domain: str
) -> DomainData:
    """List and split a domain's data. Raises DataError: nothing to train on, one class, unknown classes."""
    dataset, kept, notes = _open(train, f"{domain}.train", "train", seed)
    classes = tuple(sorted({dataset.class_names[i] for i in dataset.labels[kept]}))
    if len(classes) < 2:
        raise DataError(f"{domain}.train: has one class ({shown(classes)}); a classifier needs at least two")
    train_split = Split("train", dataset, kept, _map_labels(dataset, kept, classes))
    if isinstance(val, float):
        train_split, val_split = _hold_out(train_split, val, seed, classes, domain)
    else:
        val_split, more = _mapped(val, "val", seed, classes, domain)
        notes += more
    test_split = None
    if test is not None:
        test_split, more = _mapped(test, "test", seed, classes, domain)
        notes += more
    return DomainData(classes, train_split, val_split, test_split, tuple(notes))


def load_labelled(
    settings: DataSettings, classes: Sequence[str], seed: int, *, role: str, label: str
) -> tuple[Split, tuple[str, ...]]:
    """Any labelled data through a stored class map, for `eval`. Raises DataError."""
    split, notes = _mapped(settings, role, seed, classes, label)
    return split, tuple(notes)


def _open(settings: DataSettings, label: str, role: str, seed: int) -> tuple[Dataset, np.ndarray, list[str]]:
    """The data set and the indices that `classes` and `per_class` leave."""
    dataset: Dataset = plugins.load("datasets", settings.dataset).load(settings, role, seed)
    kept = np.arange(len(dataset))
    if settings.classes is not None:
        unknown = sorted(set(settings.classes) - set(dataset.class_names))
        if unknown:
            raise DataError(f"{label}: no class {shown(unknown)}; there are {shown(dataset.class_names, 12)}")
        wanted = [dataset.class_names.index(name) for name in settings.classes]
        kept = kept[np.isin(dataset.labels, wanted)]
    if settings.per_class is not None:
        kept = _draw_per_class(dataset, kept, settings.per_class, seed)
    return dataset, kept, [f"{label}: {note}" for note in dataset.notes]


def _draw_per_class(dataset: Dataset, kept: np.ndarray, per_class: int, seed: int) -> np.ndarray:
    drawn = []
    for label in np.unique(dataset.labels[kept]):
        members = kept[dataset.labels[kept] == label]
        order = _generator(seed, "per_class", dataset.class_names[label]).permutation(len(members))
        drawn.append(members[order[:per_class]])
    return np.sort(np.concatenate(drawn))


def _map_labels(dataset: Dataset, kept: np.ndarray, classes: Sequence[str]) -> np.ndarray:
    positions = {name: i for i, name in enumerate(classes)}
    table = np.array([positions.get(name, -1) for name in dataset.class_names], dtype=np.int64)
    labels: np.ndarray = table[dataset.labels[kept]]
    return labels


def _mapped(
    settings: DataSettings, role: str, seed: int, classes: Sequence[str], domain: str
) -> tuple[Split, list[str]]:
    label = f"{domain}.{role}"
    dataset, kept, notes = _open(settings, label, role, seed)
    present = {dataset.class_names[i] for i in np.unique(dataset.labels[kept])}
    if unknown := sorted(present - set(classes)):
        near = difflib.get_close_matches(unknown[0], classes, 1, 0.6)
        hint = f" (is {unknown[0]!r} meant to be {near[0]!r}?)" if near else ""
        raise DataError(
            f"{label}: classes that training data does not have: {shown(unknown)}{hint}; "
            f"the class map is {shown(classes, 12)}"
        )
    if missing := [name for name in classes if name not in present]:
        notes.append(f"{label}: no samples of {shown(missing)}")
    return Split(role, dataset, kept, _map_labels(dataset, kept, classes)), notes


def _hold_out(split: Split, fraction: float, seed: int, classes: Sequence[str], domain: str) -> tuple[Split, Split]:
    """A stratified hold-out: of each class the fraction, rounded, at least one sample on either side."""
    held: list[np.ndarray] = []
    for label, name in enumerate(classes):
        members = np.flatnonzero(split.labels == label)
        if len(members) < 2:
            raise DataError(
                f"{domain}.train: class {name!r} has one sample, too few to hold out {fraction:g} for "
                f"validation; add samples or name a {domain}.val"
            )
        count = min(max(round(len(members) * fraction), 1), len(members) - 1)
        held.append(_generator(seed, "hold_out", name).permutation(members)[:count])
    in_val = np.zeros(len(split), dtype=bool)
    in_val[np.concatenate(held)] = True
    return split.rows(np.flatnonzero(~in_val)), replace(split.rows(np.flatnonzero(in_val)), name="val")


def _generator(seed: int, *key: str) -> np.random.Generator:
    """Randomness keyed by words, so that one choice never shifts another."""
    words = hashlib.sha256("\0".join(key).encode()).digest()[:8]
    return np.random.default_rng([seed, int.from_bytes(words, "little")])
