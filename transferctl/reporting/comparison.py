"""The page of several runs: what differs between their specs first, then what came of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from transferctl.reporting import beside, course, figures, headline, html
from transferctl.reporting.figures import Line
from transferctl.reporting.gather import RunRecord
from transferctl.reporting.headline import Bar
from transferctl.reporting.page import Page
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


def of(runs: Sequence[RunRecord]) -> Page:
    specs = [beside.settings_of(run) for run in runs]
    differences, compared = differing(specs), beside.against_first(runs)
    missing = {f"{name} curves": run.unshown for name, run in _labelled(runs) if run.unshown}
    missing |= {f"{one.label} less A {one.split}".rstrip(): one.reason for one in compared.left_out}
    folded = _folded(differences)
    context: dict[str, Any] = {
        "runs": runs,
        "labels": [name for name, _ in _labelled(runs)],
        "scored_on": [headline.on(run, run.score.split) if run.score else "" for run in runs],
        "colours": [f"var(--c{i % len(SERIES) + 1})" for i in range(len(runs))],
        "differences": differences,
        "shown": {key: values for key, values in differences.items() if _group(key) not in folded},
        "folded": list(folded.items()),
        "unread": [run for run, spec in zip(runs, specs, strict=True) if not spec],
        "scores": _scores(runs),
        "pairs": compared.pairs,
        "left_out": [str(one) for one in compared.left_out],
        "not_the_same": beside.not_the_same(runs),
        "figures": _curves(runs),
        "solved": [name for name, run in _labelled(runs) if run.is_solved],
        "forgetting": [course.forgetting(run) for run in runs],
        "classes": _classes(runs),
        "classes_on": _headline_on(runs),
        "machines": differing([_machine(run) for run in runs]),
    }
    return Page(html.rendered("compare.html.j2", context), missing)


def _labelled(runs: Sequence[RunRecord]) -> list[tuple[str, RunRecord]]:
    return [(beside.label(i), run) for i, run in enumerate(runs)]


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


def _scores(runs: Sequence[RunRecord]) -> list[tuple[str, list[Bar]]]:
    """By domain and split, the runs that were scored on it: what the source head has right is another matter."""
    found: dict[str, list[Bar]] = {}
    for name, run in _labelled(runs):
        for score in run.scores:
            if score.accuracy is not None:
                bar = Bar(f"{name}: {run.name}", headline.noted(run, score), score.accuracy)
                found.setdefault(headline.on(run, score.split), []).append(bar)
    return list(found.items())


def _curves(runs: Sequence[RunRecord]) -> list[Markup]:
    found = []
    trained = [(i, name, run) for i, (name, run) in enumerate(_labelled(runs)) if not run.is_solved]
    for domain in dict.fromkeys(run.domain for _, _, run in trained):
        for key in ("accuracy", "loss"):
            lines = [
                Line(name, line.xs, line.ys, i % len(SERIES))
                for i, name, run in trained
                if run.domain == domain and (line := course.line(run.name, run.lines("val"), key, i)).xs
            ]
            title = f"{'source ' if domain == 'source' else ''}validation {key}"
            if lines:
                found.append(figures.curves(f"beside-{domain}-{key}", title.capitalize(), lines, unit=title))
    return found


def _headline_on(runs: Sequence[RunRecord]) -> str:
    """What the first run that tells of its classes was scored on."""
    return next((headline.on(run, run.score.split) for run in runs if run.score and run.score.classes), "")


def _classes(runs: Sequence[RunRecord]) -> list[ClassBeside]:
    """Of the headline scores on the same domain and split; the widest spread first. None where all runs have the
    same."""
    where = _headline_on(runs)
    scores = [run.score if run.score and headline.on(run, run.score.split) == where else None for run in runs]
    of_run = [{row.name: row.f1 for row in score.classes} if score else {} for score in scores]
    names = dict.fromkeys(name for one in of_run for name in one)
    rows = [ClassBeside(name, tuple(one.get(name) for one in of_run)) for name in names]
    rows = [row for row in rows if _spread(row)]
    return sorted(rows, key=lambda row: -_spread(row))[:MOST_CLASSES]


def _spread(row: ClassBeside) -> float:
    known = [value for value in row.f1 if value is not None]
    return max(known) - min(known) if known else 0.0


def _machine(run: RunRecord) -> dict[str, Any]:
    return {key: run.environment[key] for key in OF_THE_MACHINE if key in run.environment}
