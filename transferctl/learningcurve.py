"""Accuracy against the number of labels: a linear probe on cached features, and the same network from scratch on the
same images. It answers whether transfer helps at all, from how many labels, and what more of them may bring."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from transferctl import baseline, bootstrap, crossvalidation, features, grouping, heads, paired, plots, probe, signals
from transferctl.budget import Clock, Forecast, Work
from transferctl.budget import in_words as duration
from transferctl.data import DomainData
from transferctl.device import Compute
from transferctl.display import Display
from transferctl.errors import DivergedError, OutOfTime, SpecError
from transferctl.features import FeatureTable
from transferctl.loaders import steps_per_epoch
from transferctl.paired import Round
from transferctl.probe import Probe, Samples
from transferctl.spec import BaselineSettings, Spec
from transferctl.wording import one_line, percent, points_with_interval

PARTS = (1 / 8, 1 / 4, 1 / 2)  # and all
DRAWS = 5
LATE = 2.0  # times what training from scratch is allowed, at which it is stopped
FIXED_REGULARISATION = 0.1  # where a class has one sample, too few for cross-validation
PLOT = "learning_curve.svg"


@dataclass(frozen=True)
class Point:
    """So many labels. right: bool [V], of validation data, by each of the draws of these labels."""

    labels: int
    right: tuple[np.ndarray, ...]

    @property
    def accuracies(self) -> list[float]:
        return [float(right.mean()) for right in self.right]

    @property
    def mean(self) -> float:
        return float(np.mean(self.accuracies))

    @property
    def sd(self) -> float | None:
        return float(np.std(self.accuracies, ddof=1)) if len(self.right) > 1 else None


@dataclass(frozen=True)
class OutOfFold:
    """The probe on all labels, by cross-validation: of each training sample by folds that it is not in."""

    hits: int
    n: int
    folds: int

    @property
    def accuracy(self) -> float:
        return self.hits / self.n

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's, 95 %."""
        return bootstrap.wilson(self.hits, self.n)


@dataclass(frozen=True)
class Curves:
    """Points by number of labels, ascending; left_out: in words, what there was no time for, and why."""

    probe: tuple[Point, ...]
    scratch: tuple[Point, ...] = ()
    out_of_fold: OutOfFold | None = None
    left_out: tuple[str, ...] = ()


def nested_draws(labels: np.ndarray, classes: int, parts: Sequence[float], seed: int) -> list[np.ndarray]:
    """Positions [n_p] for each part of the samples, ascending, each draw within the next: of each class its share, two
    at least where it has them."""
    random = np.random.default_rng([seed, *b"learning curve"])
    drawn: list[list[np.ndarray]] = [[] for _ in parts]
    for _, members in grouping.members(labels, classes):
        order = random.permutation(members)
        for chosen, part in zip(drawn, parts, strict=True):
            chosen.append(order[: max(round(part * len(order)), min(len(order), 2))])
    return [np.sort(np.concatenate(chosen)) for chosen in drawn]


# -- the probe --------------------------------------------------------------------------------------------


def probe_curve(
    train: FeatureTable, val: FeatureTable, classes: int, seed: int, compute: Compute, clock: Clock, allowed_s: float
) -> Curves:
    """Smallest first, as each tells how long the next takes. allowed_s: for all of it; all labels, which say most, may
    take what is left of the budget."""
    labels, end = train.split.labels, clock.left_s - allowed_s
    draws = [nested_draws(labels, classes, PARTS, seed + draw) for draw in range(DRAWS)]
    points, left_out, a_label_s = list[Point](), list[str](), 0.0
    for level in range(len(PARTS)):
        n = len(draws[0][level])
        if n == len(labels) or (points and n == points[-1].labels):
            continue
        if a_label_s * n * DRAWS > clock.left_s - end:
            left_out.append(f"the probe on {n:,} labels")
            continue
        right = []
        for chosen in draws:
            before = clock.left_s
            right.append(_right(_fitted(heads.some_of(train, chosen[level], classes, compute), seed)[0], val))
            a_label_s = (before - clock.left_s) / n
        points.append(Point(n, tuple(right)))
    if a_label_s * len(labels) > clock.left_s:
        return Curves(tuple(points), left_out=(*left_out, f"the probe on all {len(labels):,} labels"))
    fitted, out_of_fold = _fitted(heads.samples_of(train, classes, compute), seed)
    points.append(Point(len(labels), (_right(fitted, val),)))
    return Curves(tuple(points), out_of_fold=out_of_fold, left_out=tuple(left_out))


def _fitted(samples: Samples, seed: int) -> tuple[Probe, OutOfFold | None]:
    """The probe with α by cross-validation, and how well that predicted what it left out."""
    counts = np.bincount(samples.labels)
    count = min(crossvalidation.FOLDS, int(counts[counts > 0].min()))
    if count < 2:
        return probe.fit(samples, FIXED_REGULARISATION), None
    fold_of = crossvalidation.folds(samples.labels, count, seed)
    curve = crossvalidation.cross_validate(samples, fold_of)
    hits = int(np.count_nonzero(crossvalidation.out_of_fold(curve, fold_of) == samples.labels))
    found = probe.fit(samples, crossvalidation.choose(curve).regularisation)
    return found, OutOfFold(hits, len(samples.labels), count)


def _right(found: Probe, val: FeatureTable) -> np.ndarray:
    """bool [V]."""
    hits = [
        (batch.inputs.cpu().double() @ found.weight.T + found.bias).argmax(1) == batch.labels
        for batch in features.evaluation_batches(val)
    ]
    return torch.cat(hits).numpy()


# -- from scratch -----------------------------------------------------------------------------------------


def with_scratch(
    curves: Curves, spec: Spec, target: DomainData, compute: Compute, clock: Clock, forecast: Forecast,
    allowed_s: float, display: Display,
) -> Curves:  # fmt: skip
    """The same network from random weights, as `pretrain` says, on the very images of the probe's first draws: the most
    labels first, as far as the time allows. Each takes as many steps as all labels do, so that few of them are not
    trained less; its last epoch is scored, as the best of so many by validation data would flatter."""
    epochs = (spec.baseline or BaselineSettings()).epochs
    drawn = nested_draws(target.train.labels, len(target.classes), PARTS, spec.seed)
    chosen = {len(rows): rows for rows in [*drawn, np.arange(len(target.train))]}
    points, left_out = list[Point](), list[str]()
    settings = spec.pretrain.model_copy(update={"keep": "last", "early_stopping": None})
    trained, slower = spec.model_copy(update={"pretrain": settings}), 1.0  # than was expected
    for n in sorted(chosen, reverse=True):
        some = target.val.rows(np.arange(1))  # validated after each epoch, for nothing: the last one is kept
        part = replace(target, train=target.train.rows(chosen[n]), val=some, test=target.val)
        rounds = _as_long(epochs, len(target.train), n, spec.batch_size)
        work = Work(rounds, steps_per_epoch(n, spec.batch_size), n, 1, 0)
        expected = slower * forecast.factor * forecast.rates.seconds(work)
        if expected > min(allowed_s, clock.left_s):
            why = f"{rounds} epochs take about {duration(expected)}, more than there is for it"
            left_out.append(f"from scratch on {n:,} labels: {why}")
            continue
        before, outcomes, why = clock.left_s, None, ""
        try:
            with display.quietly(warnings=False), signals.ending_after(min(LATE * allowed_s, clock.left_s)):
                _, outcomes = baseline.from_scratch(trained, rounds, part, compute, display)
        except OutOfTime:
            why = f"stopped after {duration(before - clock.left_s)}; {duration(expected)} were expected"
        except (DivergedError, SpecError) as error:
            why = one_line(error, 2000)
        took = before - clock.left_s
        allowed_s, slower = allowed_s - took, max(slower * took / expected, 0.0 if outcomes else slower)
        if outcomes is None:
            left_out.append(f"from scratch on {n:,} labels: {why}")
            continue
        points.append(Point(n, (outcomes.right,)))
        display.note(f"from scratch on {n:,} labels: {percent(points[-1].mean)}; took {duration(took)}")
    return replace(curves, scratch=tuple(reversed(points)), left_out=(*curves.left_out, *left_out))


def _as_long(epochs: int, all_labels: int, labels: int, batch_size: int) -> int:
    """Epochs over `labels` of as many steps as `epochs` over all labels have."""
    steps = epochs * steps_per_epoch(all_labels, batch_size)
    return max(round(steps / steps_per_epoch(labels, batch_size)), 1)


# -- what it says -----------------------------------------------------------------------------------------


def compared(curves: Curves) -> list[dict[str, Any]]:
    """Transfer less from scratch on the same validation images, where both were trained on as many labels."""
    probes = {point.labels: point for point in curves.probe}
    return [
        {"labels": point.labels, "transfer": float(probes[point.labels].right[0].mean()), "scratch": point.mean,
         **paired.accuracy_difference(point.right[0], probes[point.labels].right[0], "difference")}
        for point in curves.scratch if point.labels in probes
    ]  # fmt: skip


def last_doubling(curves: Curves) -> dict[str, float] | None:
    """What the last doubling of labels brought the probe, with its interval: over draws and validation samples."""
    if len(curves.probe) < 2:
        return None
    half, whole = curves.probe[-2:]
    names = tuple(map(str, range(len(whole.right[0]))))
    before = [Round(names, right) for right in half.right]
    after = [Round(names, whole.right[draw % len(whole.right)]) for draw in range(len(before))]
    return {"from": half.labels, "to": whole.labels, **paired.pooled_difference(before, after)}


def sentences(curves: Curves) -> list[str]:
    """A sentence on whether transfer helps, and one on what more labels would bring."""
    return [_helps(compared(curves)), _more(last_doubling(curves))]


def _helps(found: Sequence[Mapping[str, Any]]) -> str:
    if not found:
        return "Whether transfer helps was not measured: there was no time to train from scratch."
    helps = [row for row in found if row["accuracy_difference_low"] > 0]
    hurts = [row for row in found if row["accuracy_difference_high"] < 0]
    at = ", ".join(f"{row['labels']:,}" for row in helps or hurts)
    most = found[-1]
    told = (
        f"with {most['labels']:,} labels a linear probe on the pretrained features has {percent(most['transfer'])}, "
        f"the same network from scratch {percent(most['scratch'])}: {points_with_interval(most)}"
    )
    if helps and hurts:
        lost = ", ".join(f"{row['labels']:,}" for row in hurts)
        return f"Transfer helps with {at} labels, and does not with {lost}: {told}."
    if helps and most not in helps:
        return f"Transfer helps with {at} labels; with more that cannot be told: {told}."
    if helps:
        return f"Transfer helps, with {at} labels: {told}."
    if hurts:
        return (
            f"Frozen features are worse than training from scratch, with {at} labels: {told}. A backbone nearer to the "
            "task, or thawing more of it, is worth a try."
        )
    return f"Transfer cannot be told from training from scratch: {told}."


def _more(gain: Mapping[str, float] | None) -> str:
    if gain is None:
        return "What more labels would bring was not measured: that takes the probe on two numbers of them."
    brought = f"From {gain['from']:,} to {gain['to']:,} labels the probe gained {points_with_interval(gain)}"
    if gain["accuracy_difference_low"] <= 0 <= gain["accuracy_difference_high"]:
        return f"{brought}: whether more labels would bring more cannot be told from this."
    return (
        f"{brought}. As learning curves flatten, the next {gain['to'] - gain['from']:,} may bring about that or, more "
        "likely, less; further than that nothing here reaches."
    )


def rows(curves: Curves) -> list[list[str]]:
    """A row a number of labels: the probe's mean and spread over draws, and from scratch."""
    scratch = {point.labels: point for point in curves.scratch}
    probes = {point.labels: point for point in curves.probe}
    table = []
    for n in sorted({*scratch, *probes}):
        spread = "" if n not in probes or probes[n].sd is None else f"± {100 * (probes[n].sd or 0):.1f}"
        cells = [f"{100 * by[n].mean:.1f}" if n in by else "" for by in (probes, scratch)]
        table.append([f"{n:,}", cells[0], spread, cells[1]])
    return table


def as_json(curves: Curves) -> dict[str, Any]:
    def points(of: Sequence[Point]) -> list[dict[str, Any]]:
        return [{"labels": point.labels, "accuracies": point.accuracies} for point in of]

    found: dict[str, Any] = {"probe": points(curves.probe), "scratch": points(curves.scratch)}
    found |= {"compared": compared(curves), "last_doubling": last_doubling(curves)}
    return found | {"left_out": list(curves.left_out), "words": sentences(curves)}


def drawn(curves: Curves, chance: float) -> str:
    """The plot, as SVG. chance: the share of the largest class in validation data."""
    with plots.figure(6, 4) as figure:
        axes = figure.add_subplot()
        for points, label in ((curves.probe, "transfer: linear probe"), (curves.scratch, "from scratch")):
            if not points:
                continue
            x, y = [point.labels for point in points], [100 * point.mean for point in points]
            (line,) = axes.plot(x, y, marker="o", markersize=4, label=label)
            each = [(point.labels, 100 * one) for point in points for one in point.accuracies]
            axes.plot(*zip(*each, strict=True), ".", alpha=0.4, color=line.get_color())
        axes.axhline(100 * chance, color="grey", linestyle=":", label="always the largest class")
        ticks = sorted({point.labels for point in (*curves.probe, *curves.scratch)})
        axes.set_xscale("log")
        axes.set_xticks(ticks, [f"{n:,}" for n in ticks])
        axes.minorticks_off()
        axes.set(xlabel="labels to train on", ylabel="validation accuracy, %")
        axes.grid(alpha=0.3)
        axes.legend()
        return plots.svg(figure)
