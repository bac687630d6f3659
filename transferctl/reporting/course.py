"""How a training went: its curves, what it forgot while it learnt, and what lies between start and end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from markupsafe import Markup

from transferctl.reporting import checked, figures
from transferctl.reporting.figures import Line
from transferctl.reporting.gather import Interval, RunRecord, interval
from transferctl.reporting.theme import SERIES

LOSSES = {"loss": "objective", "loss_source": "L_S", "loss_target": "L_T"}
LARGEST = 1e30  # that a picture can hold


@dataclass(frozen=True)
class Tried:
    """A regularisation α that cross-validation tried: mean loss on what was left out, with its standard error, and
    accuracy."""

    alpha: float
    loss: float
    error: float | None
    accuracy: float | None


@dataclass(frozen=True)
class Solution:
    """How L-BFGS found a head. alpha: the regularisation; gradient: its largest component at the end."""

    iterations: int
    converged: bool
    alpha: float | None
    gradient: float | None
    folds: int | None
    tried: tuple[Tried, ...]


def solution(run: RunRecord) -> Solution | None:
    """None for a head that was trained by epochs, or not to the end."""
    told = checked.mapping(run.summary.get("probe"))
    iterations = checked.count(told.get("iterations"))
    if not run.is_solved or iterations is None:
        return None
    tried = []
    for row in map(checked.mapping, checked.sequence(told.get("cross_validation"))[: figures.MOST_POINTS]):
        alpha, loss = checked.number(row.get("regularisation")), checked.number(row.get("loss"))
        if alpha is not None and loss is not None:
            accuracy = checked.share(row.get("accuracy"))
            tried.append(Tried(alpha, loss, checked.number(row.get("standard_error")), accuracy))
    alpha, gradient = checked.number(told.get("regularisation")), checked.number(told.get("gradient"))
    folds = checked.count(told.get("folds"))
    return Solution(iterations, told.get("converged") is True, alpha, gradient, folds, tuple(tried))


def curves(run: RunRecord) -> list[Markup]:
    """None of a head that was solved, whose iterations are no epochs."""
    if run.is_solved:
        return []
    train, val, source = (run.lines(split) for split in ("train", "val", "source_val"))
    best = None if run.best_epoch is None else float(run.best_epoch)
    found: list[Markup] = []

    def draw(name: str, title: str, lines: Sequence[Line], unit: str = "") -> None:
        if lines := [one for one in lines if one.xs]:
            found.append(figures.curves(f"curve-{name}", title, lines, best=best, unit=unit))

    shown = _told_apart(train)
    losses = [line(label, train, key, i) for i, (key, label) in enumerate(LOSSES.items()) if key in shown]
    draw("loss", "Loss", [*losses, line("validation", val, "loss", 3)], "loss")
    accuracies = [line("validation" if run.verb != "pretrain" else "source validation", val, "accuracy", 3)]
    draw("accuracy", "Accuracy", [*accuracies, line("source", source, "accuracy", 1)], "accuracy")
    terms = dict.fromkeys(key for row in train for key in row if key.startswith("penalty_"))
    names = list(islice(terms, len(SERIES)))
    penalties = [line(f"Ω {checked.text(key[8:], 20)}", train, key, i) for i, key in enumerate(names)]
    draw("penalties", "Penalties, not weighted", penalties, "penalty")
    draw("cosine", "Gradients", [line("cos(∇L_S, ∇L_T)", train, "cosine", 4)], "cos(∇L_S, ∇L_T)")
    draw("rate", "Learning rate", [line("learning rate", train, "lr", 2)], "learning rate")
    return found


def _told_apart(train: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    """The keys of LOSSES that say something of their own: one term alone is the objective."""
    terms = [key for key in ("loss_source", "loss_target") if any(key in row for row in train)]
    penalties = any(key.startswith("penalty_") for row in train[:1] for key in row)
    return ("loss", *terms) if len(terms) > 1 or penalties else tuple(terms) or ("loss",)


def line(label: str, rows: Sequence[Mapping[str, Any]], key: str, colour: int) -> Line:
    """A metric over epochs. rows: of metrics.jsonl."""
    points = [
        (epoch, value, _drawable(row.get(f"{key}_low")), _drawable(row.get(f"{key}_high")))
        for row in rows
        if (epoch := checked.count(row.get("epoch"))) is not None and (value := _drawable(row.get(key))) is not None
    ]
    with_interval = bool(points) and all(low is not None and high is not None for _, _, low, high in points)
    lows, highs = ([point[i] or 0.0 for point in points] if with_interval else () for i in (2, 3))
    return Line(label, [point[0] for point in points], [point[1] for point in points], colour, lows, highs)


def _drawable(value: Any) -> float | None:
    found = checked.number(value)
    return found if found is not None and abs(found) < LARGEST else None


@dataclass(frozen=True)
class Forgetting:
    """before: None where the source head was new. change: after less before, in accuracy."""

    before: Interval | None
    after: Interval
    change: Interval | None
    n: int | None
    picture: Markup | None


def forgetting(run: RunRecord) -> Forgetting | None:
    told = run.summary if "after" in run.summary else checked.mapping(run.summary.get("source"))
    after = checked.mapping(told.get("after"))
    accuracy = interval(after, "accuracy")
    picture = _trade_off(run)
    if accuracy is None:
        return None
    before = interval(checked.mapping(told.get("before")), "accuracy")
    change = checked.number(told.get("accuracy_change"))
    low, high = (checked.number(told.get(f"accuracy_change_{end}")) for end in ("low", "high"))
    return Forgetting(
        before,
        accuracy,
        None if change is None else Interval(change, low, high),
        checked.count(after.get("n")),
        picture,
    )


def _trade_off(run: RunRecord) -> Markup | None:
    """Per epoch, where source accuracy was measured beside that of the target."""
    targets = {checked.count(row.get("epoch")): checked.share(row.get("accuracy")) for row in run.lines("val")}
    points, labels = [], []
    for row in figures.few(run.lines("source_val")):
        epoch, source = checked.count(row.get("epoch")), checked.share(row.get("accuracy"))
        target = targets.get(epoch)
        if epoch is not None and source is not None and target is not None:
            points.append((100 * source, 100 * target))
            labels.append(f"epoch {epoch}")
    return figures.trade_off("tradeoff", points, labels, "Target against source, by epoch") if len(points) > 1 else None


@dataclass(frozen=True)
class Interpolated:
    """rows: α, target accuracy, source accuracy."""

    rows: tuple[tuple[float, Interval, Interval | None], ...]
    picture: Markup | None


def interpolated(run: RunRecord) -> Interpolated | None:
    """The weights between start and best, which `eval --interpolate` scored."""
    rows = []
    for row in map(checked.mapping, checked.sequence(run.summary.get("interpolation"))[: figures.MOST_POINTS]):
        alpha, target = checked.number(row.get("alpha")), interval(checked.mapping(row.get("target")), "accuracy")
        if alpha is not None and target is not None:
            rows.append((alpha, target, interval(checked.mapping(row.get("source")), "accuracy")))
    if not rows:
        return None
    points = [(100 * source.value, 100 * target.value) for _, target, source in rows if source]
    labels = [f"α = {alpha:g}" for alpha, _, source in rows if source]
    words = "Target against source, by α"
    picture = figures.trade_off("interpolation", points, labels, words) if len(points) > 1 else None
    return Interpolated(tuple(rows), picture)
