"""What the data of a run is: counts always, and, where it is small enough to be read in a moment, the whole audit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from transferctl import audit, data, findings, loaders, runs, starting
from transferctl.audit import Looked
from transferctl.data import DomainData
from transferctl.errors import DataError
from transferctl.reporting import checked
from transferctl.reporting.gather import Told
from transferctl.reporting.heard import Heard, Table
from transferctl.reporting.material import Loaded
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


def counts(run: Told) -> list[Counts]:
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


def is_small(run: Told) -> bool:
    files = [checked.mapping(value) for value in checked.mapping(run.environment.get("files")).values()]
    images = sum(checked.count(n) or 0 for one in files for n in checked.mapping(one.get("samples")).values())
    return images <= MOST_IMAGES and sum(checked.count(one.get("bytes")) or 0 for one in files) <= MOST_BYTES


def audited(run: Told, loaded: Loaded | None) -> Audited | None:
    """As `check` says it, of the domains that the run saw. None for what is not small, and for an evaluation. Raises
    DataError where they are not what they were."""
    spec = run.spec
    if spec is None or run.verb == "eval" or not is_small(run):
        return None
    domains = _domains(run, spec)
    if not domains:
        return None
    heard = Heard()
    looked = {
        name: [audit.look(split, loaders.workers_for(spec.workers, split), heard) for split in domain.splits()]
        for name, domain in domains.items()
    }
    for name, found in looked.items():
        for one in found:
            _refuse_changed(run, name, domains[name].classes, one, loaded)
    balances = {"target": spec.target.balance, "source": spec.source.balance if spec.source else "none"}
    findings.say(domains, looked, balances, loaded.model.preprocessing.crop if loaded else None, heard)
    notes = [note for domain in domains.values() for note in domain.notes]
    return Audited(tuple(heard.tables), tuple([*notes, *heard.warnings][:200]))


def _refuse_changed(run: Told, domain: str, classes: Sequence[str], looked: Looked, loaded: Loaded | None) -> None:
    """By what the run kept of its names and labels, those of the source as outputs of the pretrained head."""
    split = looked.split.without(looked.broken) if run.summary.get("skipped") else looked.split
    names = loaded.model.output_names(domain) if loaded and domain == "source" else []
    outputs = starting.outputs_called(classes, names, domain) if names else None
    if outputs is not None:
        split = split.relabelled(outputs)
    if split.fingerprint() != runs.data_fingerprints(run.path).get(f"{domain}.{split.name}"):
        raise DataError(f"the images of {domain}.{split.name} are not those that the run had")


def _domains(run: Told, spec: Spec) -> Mapping[str, DomainData]:
    seen = {name.partition(".")[0] for name in checked.mapping(run.environment.get("data"))}
    settings: dict[str, Any] = {"target": spec.target, "source": spec.source}
    return {
        name: data.load_domain(own.train, own.val, getattr(own, "test", None), spec.seed, domain=name)
        for name, own in settings.items()
        if own is not None and name in seen
    }
