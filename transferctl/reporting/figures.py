"""The figures of the page, as SVG by matplotlib. Names in them come printable and cut."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from markupsafe import Markup

from transferctl import plots
from transferctl.calibration import Bin
from transferctl.reporting.theme import BAD, GOOD, INK, MUTED, RULE, SERIES, SETTINGS, themed

T = TypeVar("T")

MOST_POINTS = 400  # of a line; more would not be seen
NAMED_CLASSES = 8  # that have a colour each
MARKERS = "os^DvPX*"
MARKER_PATHS = {
    "o": "M-4 0A4 4 0 1 0 4 0A4 4 0 1 0-4 0Z",
    "s": "M-4-4H4V4H-4Z",
    "^": "M0-4L4 4H-4Z",
    "D": "M0-5L5 0L0 5L-5 0Z",
    "v": "M0 4L4-4H-4Z",
    "P": "M-1.5-4.5H1.5V-1.5H4.5V1.5H1.5V4.5H-1.5V1.5H-4.5V-1.5H-1.5Z",
    "X": "M-2-4.5L0-2.5L2-4.5L4.5-2L2.5 0L4.5 2L2 4.5L0 2.5L-2 4.5L-4.5 2L-2.5 0L-4.5-2Z",
    "*": "M0-5L1.2-1.6H4.8L1.9.6L3 4L0 1.9L-3 4L-1.9.6L-4.8-1.6H-1.2Z",
}  # as matplotlib draws them
RIGHT_RGB, WRONG_RGB = (70, 118, 235), (222, 84, 60)


@dataclass(frozen=True)
class Line:
    """xs: epochs; low, high: its interval, where there is one; colour: which of SERIES."""

    label: str
    xs: Sequence[float]
    ys: Sequence[float]
    colour: int
    low: Sequence[float] = ()
    high: Sequence[float] = ()


def few(values: Sequence[T]) -> list[T]:
    """At most MOST_POINTS of them, evenly spread, and the last."""
    every = -(-len(values) // MOST_POINTS) or 1
    kept = list(values[::every])
    return kept if (len(values) - 1) % every == 0 else [*kept, values[-1]]


def curves(name: str, title: str, lines: Sequence[Line], *, best: float | None = None, unit: str = "") -> Markup:
    """best: the epoch that was kept, marked."""
    with plots.figure(4.3, 2.8, **SETTINGS) as drawn:
        axes = drawn.add_subplot()
        for line in lines:
            xs, ys = few(line.xs), few(line.ys)
            marker = "o" if len(xs) < 25 else ""
            axes.plot(xs, ys, color=SERIES[line.colour], label=line.label, marker=marker, markersize=3.5)
            if line.low and line.high:
                axes.fill_between(xs, few(line.low), few(line.high), color=SERIES[line.colour], alpha=0.14, linewidth=0)
        if best is not None:
            axes.axvline(best, color=MUTED, linewidth=1, linestyle=(0, (4, 3)))
            axes.annotate(
                f"kept: {best:g}", (best, 1), (-4, -2), xycoords=("data", "axes fraction"), color=MUTED, fontsize=10,
                textcoords="offset points", ha="right", va="top", rotation=90,
            )  # fmt: skip
        axes.set(xlabel="epoch", ylabel=unit)
        axes.locator_params(axis="x", integer=True)
        axes.grid(axis="x", visible=False)
        if len(lines) > 1:
            columns = 2 if len(lines) > 3 else len(lines)
            drawn.legend(loc="outside upper left", ncols=columns, handlelength=1.4, columnspacing=1.2)
        return themed(plots.svg(drawn), name, f"{title}: {_ends(lines)}")


def _ends(lines: Sequence[Line]) -> str:
    return "; ".join(f"{line.label} from {line.ys[0]:.4g} to {line.ys[-1]:.4g}" for line in lines if line.ys)


def reliability(name: str, title: str, bins: Sequence[Bin], words: str) -> Markup:
    """Accuracy of each bin of confidence against the diagonal, and how many samples each has. words: for those who do
    not see it."""
    with plots.figure(5.0, 4.6, **SETTINGS) as drawn:
        above, below = drawn.subplots(2, 1, sharex=True, height_ratios=[4, 1])
        above.plot([0, 1], [0, 1], color=MUTED, linewidth=1, linestyle=(0, (4, 3)))
        for one in bins:
            centre, wide = (one.low + one.high) / 2, 0.9 * (one.high - one.low)
            low, high = sorted((one.accuracy, one.confidence))
            above.bar(centre, low, wide, color=SERIES[0], alpha=0.8, linewidth=0)
            too_sure = one.confidence > one.accuracy
            above.bar(centre, high - low, wide, low, color=BAD if too_sure else SERIES[0], alpha=0.35, linewidth=0)
            above.plot([centre - wide / 2, centre + wide / 2], [one.accuracy] * 2, color=INK, linewidth=2)
            below.bar(centre, one.n, wide, color=MUTED, alpha=0.6, linewidth=0)
        above.set(ylabel="accuracy", xlim=(0, 1), ylim=(0, 1))
        above.set_title(title, loc="left", fontsize=11.5, color=INK)
        below.set(xlabel="confidence", ylabel="images")
        below.locator_params(axis="y", integer=True, nbins=3)
        return themed(plots.svg(drawn), name, words)


def confusion(name: str, counts: np.ndarray, words: str) -> Markup:
    """counts: int [C, C], row true, column predicted; each row as shares of itself."""
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    pixels = np.zeros((*shares.shape, 4), dtype=np.uint8)
    pixels[..., :3] = WRONG_RGB
    pixels[np.arange(len(shares)), np.arange(len(shares)), :3] = RIGHT_RGB
    pixels[..., 3] = np.rint(255 * shares**0.6)  # so that small shares are seen
    with plots.figure(5.2, 5.0, **(SETTINGS | {"axes__grid": False})) as drawn:
        axes = drawn.add_subplot()
        axes.imshow(pixels, interpolation="none", aspect="equal")
        axes.set(xlabel="predicted class, by its number", ylabel="true class")
        axes.locator_params(integer=True)
        for spine in axes.spines.values():
            spine.set(visible=True, color=RULE)
        return themed(plots.svg(drawn), name, words)


@dataclass(frozen=True)
class Point:
    """Of the map. label: the true class, by its number; title: what a pointer over it shows."""

    x: float
    y: float
    label: int
    is_right: bool
    title: str


def features_map(name: str, points: Sequence[Point], classes: Mapping[int, str], words: str) -> Markup:
    """classes: the names of those with a legend entry; all others share colours. Mistakes have a ring."""
    titles: dict[str, list[str]] = {}
    with plots.figure(7.6, 4.2, **(SETTINGS | {"axes__grid": False})) as drawn:
        axes = drawn.add_subplot()
        for label, place in _places(points, classes).items():
            own = [point for point in points if point.label == label]
            for group in ([p for p in own if p.is_right], [p for p in own if not p.is_right]):
                if not group:
                    continue
                is_right = group[0].is_right
                gid = f"class{label}-{'right' if is_right else 'wrong'}"
                titles[gid] = [point.title for point in group]
                axes.scatter(
                    [point.x for point in group], [point.y for point in group], s=26 if is_right else 58,
                    color=SERIES[place], marker=MARKERS[place], edgecolors="none" if is_right else BAD,
                    linewidths=0 if is_right else 1.8, alpha=0.85, gid=gid,
                )  # fmt: skip
        axes.set(xticks=[], yticks=[])
        for spine in axes.spines.values():
            spine.set_visible(False)
        return themed(plots.svg(drawn), name, words, titles)


def _places(points: Sequence[Point], classes: Mapping[int, str]) -> dict[int, int]:
    """Of each label which of SERIES and MARKERS it has."""
    labels = sorted({point.label for point in points})
    return {label: (order if classes else label) % len(SERIES) for order, label in enumerate(labels)}


@dataclass(frozen=True)
class Mark:
    """An entry of the map's legend, which stands beside it as text: in the picture it shrinks with that. path: of SVG,
    within ±5; colour: none for the ring of mistakes."""

    label: str
    path: str
    colour: str


def legend(points: Sequence[Point], classes: Mapping[int, str]) -> Iterator[Mark]:
    for label, place in _places(points, classes).items():
        if label in classes:
            yield Mark(classes[label], MARKER_PATHS[MARKERS[place]], f"var(--c{place + 1})")
    if any(not point.is_right for point in points):
        yield Mark("wrong", MARKER_PATHS["o"], "")


def trade_off(name: str, points: Sequence[tuple[float, float]], labels: Sequence[str], words: str) -> Markup:
    """Target accuracy against that of the source, in per cent, each point with its label."""
    with plots.figure(4.8, 3.6, **SETTINGS) as drawn:
        axes = drawn.add_subplot()
        plots.annotated_line(axes, points, labels, color=SERIES[0], marker="o", markersize=5)
        axes.plot(*points[-1], marker="o", markersize=8, color=GOOD)
        axes.set(xlabel="source accuracy, % (what is kept)", ylabel="target accuracy, % (what is gained)")
        return themed(plots.svg(drawn), name, words)
