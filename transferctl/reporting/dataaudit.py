"""What the data of a run is: counts always, and, where it is small enough to be read in a moment, the whole audit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from transferctl import audit, data, findings, loaders, starting
from transferctl.data import DomainData, Split
from transferctl.reporting import checked, material
from transferctl.reporting.gather import RunRecord
from transferctl.reporting.material import Loaded
from transferctl.reporting.recording import RecordingDisplay, Table
from transferctl.spec import Spec

MOST_IMAGES, MOST_BYTES = 1000, 10**8  # that are read again at the end of a run: two seconds of two cores
MOST_CLASSES = 1000


@dataclass(frozen=True)
class Counts:
    """Of one domain: its splits, and a row a class with the samples of each; more: classes that are left out."""

    domain: str
    splits: tuple[str, ...]
    rows: tuple[tuple[str, tuple[int, ...]], ...]
    totals: tuple[int, ...]
    more: int


def counts(run: RunRecord) -> list[Counts]:
    """As environment.json has them."""
    files = checked.mapping(run.environment.get("files"))
    found = []
    for domain in ("target", "source"):
        splits = [split for split in ("train", "val", "test", "data") if f"{domain}.{split}" in files]
        samples = [checked.mapping(checked.mapping(files[f"{domain}.{split}"]).get("samples")) for split in splits]
        names = list(dict.fromkeys(name for one in samples for name in one))
        rows = [(checked.text(name, 80), tuple(checked.count(one.get(name)) or 0 for one in samples)) for name in names]
        totals = tuple(sum(row[1][i] for row in rows) for i in range(len(splits)))
        if rows:
            more = max(len(rows) - MOST_CLASSES, 0)
            found.append(Counts(domain, tuple(splits), tuple(rows[:MOST_CLASSES]), totals, more))
    return found


@dataclass(frozen=True)
class Audited:
    tables: tuple[Table, ...]
    warnings: tuple[str, ...]


def audited(run: RunRecord, loaded: Loaded | None) -> Audited | None:
    """As `check` says it, of the domains that the run saw. None for what is not small, and for an evaluation. Raises
    DataError where they are not what they were."""
    spec = run.spec
    if spec is None or run.verb == "eval" or not _was_small(run):
        return None
    domains = _domains(run, spec)
    left_out = bool(run.summary.get("skipped"))  # unreadable samples, which are known once all are read
    for name, domain in domains.items():
        for split in [] if left_out else domain.splits():
            _refuse_changed(run, name, domain.classes, split, loaded)
    if not domains or not _is_small(domains):
        return None
    recording = RecordingDisplay()
    looked = {
        name: [audit.look(split, loaders.workers_for(spec.workers, split), recording) for split in domain.splits()]
        for name, domain in domains.items()
    }
    for name, found in looked.items():
        for one in found if left_out else ():
            _refuse_changed(run, name, domains[name].classes, one.split.without(one.broken), loaded)
    balances = {"target": spec.target.balance, "source": spec.source.balance if spec.source else "none"}
    findings.say(domains, looked, balances, loaded.model.preprocessing.crop if loaded else None, recording)
    notes = [note for domain in domains.values() for note in domain.notes]
    return Audited(tuple(recording.tables), tuple([*notes, *recording.warnings][:200]))


def _was_small(run: RunRecord) -> bool:
    """As the run says, which spares listing what was large."""
    files = [checked.mapping(value) for value in checked.mapping(run.environment.get("files")).values()]
    images = sum(checked.count(n) or 0 for one in files for n in checked.mapping(one.get("samples")).values())
    return images <= MOST_IMAGES and sum(checked.count(one.get("bytes")) or 0 for one in files) <= MOST_BYTES


def _is_small(domains: Mapping[str, DomainData]) -> bool:
    """What there is now, whatever the run says that there was."""
    splits = [(domain.classes, split) for domain in domains.values() for split in domain.splits()]
    if sum(len(split) for _, split in splits) > MOST_IMAGES:
        return False
    return sum(int(split.facts(classes)["bytes"]) for classes, split in splits) <= MOST_BYTES


def _refuse_changed(run: RunRecord, domain: str, classes: Sequence[str], split: Split, loaded: Loaded | None) -> None:
    """By what the run kept of its names and labels, those of the source as outputs of the pretrained head, and of its
    files."""
    name = f"{domain}.{split.name}"
    names = loaded.model.output_names(domain) if loaded and domain == "source" else []
    outputs = starting.outputs_called(classes, names, domain) if names else None
    material.refuse_others(run, name, split if outputs is None else split.relabelled(outputs))
    material.refuse_rewritten(run, name, split, classes)


def _domains(run: RunRecord, spec: Spec) -> Mapping[str, DomainData]:
    seen = {name.partition(".")[0] for name in checked.mapping(run.environment.get("data"))}
    settings: dict[str, Any] = {"target": spec.target, "source": spec.source}
    return {
        name: data.load_domain(own.train, own.val, getattr(own, "test", None), spec.seed, domain=name)
        for name, own in settings.items()
        if own is not None and name in seen
    }
