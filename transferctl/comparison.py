"""`eval --against`: another run's model on the same samples, and whether the difference is more than chance."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from transferctl import checkpoint, paired
from transferctl.checkpoint import Checkpoint
from transferctl.data import Split
from transferctl.display import Display
from transferctl.errors import Problem, SpecError
from transferctl.model import TransferModel, restore
from transferctl.paired import Scored
from transferctl.results import headline
from transferctl.spec import Spec
from transferctl.wording import shown

DIFFERENCES = tuple(paired.scalars("difference"))
SCALARS = (*DIFFERENCES, "mcnemar_p")  # what `report` adds that a gate may name


@dataclass(frozen=True)
class Other:
    """The run that is compared against, its spec and its best model."""

    run: Path
    spec: Spec
    saved: Checkpoint
    model: TransferModel


def load(run: Path, spec: Spec) -> Other:
    """Raises CheckpointError."""
    saved = checkpoint.load(run)
    return Other(run, spec, saved, restore(saved))


def relabelled(scored: Split, classes: Sequence[str], other: Other, domain: str) -> Split:
    """The same samples, labelled as the other's head has its outputs. Raises SpecError where its classes are not the
    same."""
    theirs = other.model.classes.get(domain, ())
    if set(theirs) != set(classes):
        alone = {"it alone": set(theirs) - set(classes), "the other alone": set(classes) - set(theirs)}
        differ = "; ".join(f"{whose} has {shown(sorted(names))}" for whose, names in alone.items() if names)
        raise SpecError([Problem("", f"does not predict the same classes: {differ}", f"--against {other.run}")])
    return scored.relabelled(np.array([theirs.index(name) for name in classes]))


def report(other: Other, theirs: Scored, mine: Scored) -> dict[str, Any]:
    """What the summary says: the other's scalars, this one's less these with 95 % intervals, McNemar's test."""
    told = paired.difference(theirs[1], mine[1], "difference") | paired.mcnemar(theirs[1].right, mine[1].right)
    return {"against": {"run": str(other.run), "checkpoint": other.saved.path.name, **headline(theirs[0])}, **told}


def show(display: Display, other: Other, theirs: Scored, mine: Scored, told: dict[str, Any]) -> None:
    title = f"This run against {other.run.name}, on the same {mine[0]['n']:,} samples"
    columns = ("that run", "this run")
    paired.show(display, title, columns, theirs[0], mine[0], told, "difference")
    gained, lost, p = told["gained"], told["lost"], told["mcnemar_p"]
    display.result(f"  this run alone is right: {gained}; that run alone: {lost}; McNemar p = {p:.2g}")
