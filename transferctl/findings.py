"""What the audit of the data says: a table, a few short warnings that name the fix, and the report of --json."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np

from transferctl import audit, copies, grouping, names
from transferctl.audit import Looked
from transferctl.copies import Copies, Pair
from transferctl.data import DomainData
from transferctl.display import Display
from transferctl.wording import counted, printable

SHOWN = 10
LISTED = 1000
IMBALANCE = 10.0  # the largest class over the smallest; more is warned of


def say(
    domains: Mapping[str, DomainData],
    audits: Mapping[str, Sequence[Looked]],
    balances: Mapping[str, str],
    crop: int | None,
    display: Display,
) -> dict[str, Any]:
    """audits: of each domain's splits; balances: what the spec says of its classes; crop: `preprocess.crop`, where it
    is known."""
    images = {
        f"{name}.{looked.split.name}": audit.measured(looked, crop)
        for name, found in audits.items()
        for looked in found
    }
    display.table("Images, pixels", audit.COLUMNS, [audit.row(name, found) for name, found in images.items()])
    _say_enlarged(images, crop, display)
    balance = {name: _balance(domain) for name, domain in domains.items()}
    for name, sizes in balance.items():
        _say_imbalance(name, sizes, balances[name], display)
    found = [copies.find(audits[name], domain.classes) for name, domain in domains.items()]
    said = [*_copies(found, display), *_names(domains, display)]
    flat, cut = sum(one.flat for one in found), sum(one.cut for one in found)
    rows = [["unreadable", _unreadable(audits)], *([one.what, one.total] for one in said)]
    rows += [["too flat or too small to be compared", flat]]
    rows += [["alike with more than were compared", cut]] if cut else []
    rows += [[f"{name}.train: largest class over smallest", f"{sizes['ratio']:.1f}"] for name, sizes in balance.items()]
    display.table("Audit of the data", ["", "number"], rows)
    report: dict[str, Any] = {"images": images, "balance": balance, "not_compared": flat, "compared_in_part": cut}
    for one in said:
        report |= {one.key: one.first, one.total_key: one.total}
    return report


@dataclass(frozen=True)
class _Said:
    """One kind of finding. first: at most LISTED of them, as --json has them."""

    what: str
    key: str
    total_key: str
    first: list[Any]
    total: int


def _said(what: str, keys: tuple[str, str], lines: Iterable[tuple[Any, str]], fix: str, display: Display) -> _Said:
    """The first are warned of, a line each, then how many there are and what to do. lines: as --json has it, and as
    people read it."""
    lines = iter(lines)
    listed = list(islice(lines, LISTED))
    total = len(listed) + sum(1 for _ in lines)
    for _, text in listed[:SHOWN]:
        display.warn(text)
    if (more := total - SHOWN) > 0:
        lists = "all" if total == len(listed) else f"{len(listed):,}"
        display.warn(f"and {more} more; --json lists {lists}")
    if total:
        display.warn(f"{what}: {total:,}; {fix}")
    return _Said(what, *keys, [value for value, _ in listed], total)


def _copies(found: Sequence[Copies], display: Display) -> Iterator[_Said]:
    identical = (
        (pair.names, f"byte-identical in two splits: {_both(pair)}") for one in found for pair in one.identical
    )
    keys, fix = ("duplicates_across_splits", "duplicate_pairs"), "they flatter the score; remove one of each"
    yield _said("identical across splits", keys, identical, fix, display)
    near = (
        ([*pair.names, pair.bits], f"nearly the same image in two splits: {_both(pair)}")
        for one in found
        for pair in one.near
    )
    keys, fix = ("near_duplicates_across_splits", "near_duplicate_pairs"), "look at them; copies flatter the score"
    yield _said("nearly the same across splits", keys, near, fix, display)
    conflicts = (
        ({"samples": pair.names, "classes": pair.classes, "bits": pair.bits}, _contradiction(pair))
        for one in found
        for pair in one.conflicts
    )
    keys, fix = ("label_conflicts", "label_conflict_pairs"), "look at them; correct a wrong label, or remove both"
    yield _said("one image, or nearly, under two labels", keys, conflicts, fix, display)


def _contradiction(pair: Pair) -> str:
    kind = "the same" if pair.bits is None else "nearly the same"
    named = (f"{printable(name)} ({printable(own)})" for name, own in zip(pair.names, pair.classes, strict=True))
    return f"{kind} image under two labels: {' and '.join(named)}"


def _both(pair: Pair) -> str:
    return " and ".join(map(printable, pair.names))


def _names(domains: Mapping[str, DomainData], display: Display) -> Iterator[_Said]:
    foreign = (
        ([name, own, other], f"called after {printable(other)}, but labelled {printable(own)}: {printable(name)}")
        for domain in domains.values()
        for split in domain.splits()
        for name, own, other in names.Foreign(split, domain.classes)
    )
    keys = "names_of_other_classes", "names_of_other_classes_total"
    yield _said("files called after another class", keys, foreign, "look whether their labels are right", display)
    twins = (
        ([name, one, other], f"{name}.train: {printable(one)} and {printable(other)} look like one class")
        for name, domain in domains.items()
        for one, other in names.alike(domain.classes)
    )
    keys = "classes_alike", "classes_alike_total"
    yield _said("classes that look like one", keys, twins, "merge their folders or labels if they are", display)


def _balance(domain: DomainData) -> dict[str, Any]:
    """The largest and the smallest class of training data, and how many times larger that one is."""
    counts = grouping.counts(domain.train.labels, len(domain.classes))
    most, least = int(np.argmax(counts)), int(np.argmin(counts))
    sizes = {key: [domain.classes[i], int(counts[i])] for key, i in (("largest", most), ("smallest", least))}
    return sizes | {"ratio": float(counts[most] / counts[least])}


def _say_imbalance(name: str, found: Mapping[str, Any], balance: str, display: Display) -> None:
    (most, n), (least, few), ratio = found["largest"], found["smallest"], found["ratio"]
    if ratio > IMBALANCE and balance == "none":
        display.warn(
            f"{name}.train: {printable(most)} has {n:,} samples, {printable(least)} {few:,} ({ratio:.0f} to 1); "
            f"{name}.balance: weights lets the classes weigh the same"
        )


def _say_enlarged(images: Mapping[str, Mapping[str, Any]], crop: int | None, display: Display) -> None:
    for name, found in images.items():
        if below := found.get("below_crop", 0):
            display.note(
                f"{name}: {below:,} of {counted(found['images'], 'image')} smaller than preprocess.crop "
                f"({crop} pixels), and enlarged to it"
            )


def _unreadable(audits: Mapping[str, Sequence[Looked]]) -> int:
    return sum(len(looked.broken) for found in audits.values() for looked in found)
