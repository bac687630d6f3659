"""The page of several runs: what differs between their specs first, then what came of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from transferctl.reporting import beside, course, figures, headline, html
from transferctl.reporting.figures import Line
from transferctl.reporting.gather import Told
from transferctl.reporting.headline import Bar
from transferctl.reporting.theme import SERIES
from transferctl.specdifferences import ABSENT, differing

MOST_CLASSES = 25  # whose F1 stands beside each other: those that the runs differ in most
FEW = 3  # settings of a group that are not folded
OF_THE_MACHINE = ("python", "platform", "processor", "cores", "threads", "device", "packages", "commit", "seed")


@dataclass(frozen=True)
class ClassBeside:
    """F1 of a class in each run; None where a run has no such class."""

    name: str
    f1: tuple[float | None, ...]


def of(runs: Sequence[Told]) -> str:
    specs = [beside.settings_of(run) for run in runs]
    differences = differing(specs)
    folded = _folded(differences)
    context: dict[str, Any] = {
        "runs": runs,
        "labels": [beside.label(i) for i in range(len(runs))],
        "colours": [f"var(--c{i % len(SERIES) + 1})" for i in range(len(runs))],
        "differences": differences,
        "shown": {key: values for key, values in differences.items() if _group(key) not in folded},
        "folded": list(folded.items()),
        "unread": [run for run, spec in zip(runs, specs, strict=True) if not spec],
        "scores": _scores(runs),
        "pairs": beside.against_first(runs),
        "not_the_same": beside.not_the_same(runs),
        "figures": _curves(runs),
        "forgetting": [course.forgetting(run) for run in runs],
        "classes": _classes(runs),
        "machines": differing([_machine(run) for run in runs]),
    }
    return html.rendered("compare.html.j2", context)


def _folded(differences: Mapping[str, list[str]]) -> dict[str, dict[str, list[str]]]:
    """By the first word of their keys, the groups of settings of which some specs have none: many rows that say one
    thing."""
    found: dict[str, dict[str, list[str]]] = {}
    for key, values in differences.items():
        found.setdefault(_group(key), {})[key] = values
    return {
        group: rows
        for group, rows in found.items()
        if len(rows) > FEW and all(ABSENT in values for values in rows.values())
    }


def _group(key: str) -> str:
    return key.partition(".")[0]


def _scores(runs: Sequence[Told]) -> list[tuple[str, list[Bar]]]:
    """By split, the runs that were scored on it."""
    found = []
    for split in dict.fromkeys(score.split for run in runs for score in run.scores):
        bars = [
            Bar(f"{beside.label(i)}: {run.name}", headline.images_of(run, score), score.accuracy)
            for i, run in enumerate(runs)
            for score in run.scores
            if score.split == split and score.accuracy is not None
        ]
        found.append((headline.SPLITS.get(split, split), bars))
    return found


def _curves(runs: Sequence[Told]) -> list[Markup]:
    found = []
    for key, title in (("accuracy", "validation accuracy"), ("loss", "validation loss")):
        lines = [
            Line(beside.label(i), line.xs, line.ys, i % len(SERIES))
            for i, run in enumerate(runs)
            if (line := course.line(run.name, run.lines("val"), key, i)).xs
        ]
        if lines:
            found.append(figures.curves(f"beside-{key}", title.capitalize(), lines, unit=title))
    return found


def _classes(runs: Sequence[Told]) -> list[ClassBeside]:
    """Of the headline scores; the widest spread first. None where all runs have the same."""
    of_run = [{row.name: row.f1 for row in run.score.classes} if run.score else {} for run in runs]
    names = dict.fromkeys(name for one in of_run for name in one)
    rows = [ClassBeside(name, tuple(one.get(name) for one in of_run)) for name in names]
    rows = [row for row in rows if _spread(row)]
    return sorted(rows, key=lambda row: -_spread(row))[:MOST_CLASSES]


def _spread(row: ClassBeside) -> float:
    known = [value for value in row.f1 if value is not None]
    return max(known) - min(known) if known else 0.0


def _machine(run: Told) -> dict[str, Any]:
    return {key: run.environment[key] for key in OF_THE_MACHINE if key in run.environment}
