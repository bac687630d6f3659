"""Plots as SVG, the same bytes for the same numbers. The only module that imports matplotlib."""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST_LABELS = 21  # more would lie on each other
MARKERS = "os^Dv"  # of ten colours each
LOGARITHMIC = 5  # times the least x, beyond which the others would lie on each other
SETTINGS: dict[str, Any] = {
    "svg.hashsalt": "transferctl",  # ids of clip paths are random without a salt
    "svg.fonttype": "none",  # text stays text, so the file is light and can be searched
    "text.parse_math": False,  # names of others may hold $ and _
}


@contextmanager
def figure(width: float, height: float, **settings: Any) -> Iterator[Figure]:
    """A figure of so many inches to draw on, and to be made an SVG of, inside; settings: matplotlib's, dots as __."""
    logging.getLogger("matplotlib").setLevel(logging.ERROR)  # it speaks of its font cache
    import matplotlib as mpl
    from matplotlib.figure import Figure

    given: Any = SETTINGS | {key.replace("__", "."): value for key, value in settings.items()}
    with mpl.rc_context(given), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of letters that its font has not; the reader's has them
        yield Figure(figsize=(width, height), layout="constrained")


def svg(drawn: Figure) -> str:
    file = io.StringIO()
    drawn.savefig(file, format="svg", metadata={"Date": None, "Creator": None})
    return file.getvalue()


def labelled_curve(points: Sequence[tuple[float, float]], labels: Sequence[str], x_label: str, y_label: str) -> str:
    """A line through points in their order, each with its label."""
    with figure(6, 4.5) as drawn:
        axes = drawn.add_subplot()
        annotated_line(axes, points, labels)
        axes.set(xlabel=x_label, ylabel=y_label)
        axes.grid(alpha=0.3)
        return svg(drawn)


def intervals(
    points: Sequence[tuple[float, float, float, float]], labels: Sequence[str], x_label: str, y_label: str
) -> str:
    """Points (x, y, low, high), each with its interval and a colour that the legend names; x, above 0, by its logarithm
    where it spans as much. Those of one x stand side by side."""
    xs = [point[0] for point in points]
    ratio = max(xs) / min(xs)
    with figure(8, max(4.5, 0.2 * len(labels))) as drawn:
        axes = drawn.add_subplot()
        for i, ((x, y, low, high), label) in enumerate(zip(points, labels, strict=True)):
            aside = xs[:i].count(x) - (xs.count(x) - 1) / 2
            look: dict[str, Any] = {"color": f"C{i % 10}", "marker": MARKERS[i // 10 % len(MARKERS)], "label": label}
            at = x * max(ratio, 2) ** (0.015 * aside)
            axes.errorbar(at, y, [[y - low], [high - y]], capsize=3, linestyle="", **look)
        if ratio > LOGARITHMIC:
            axes.set_xscale("log")
            axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
            axes.xaxis.set_minor_formatter(lambda value, _: "")
            axes.margins(x=0.15)
        else:
            axes.set_xlim(0, 1.2 * max(xs))
        axes.set(xlabel=x_label, ylabel=y_label)
        axes.grid(alpha=0.3)
        drawn.legend(loc="outside right center", fontsize=8, frameon=False)
        return svg(drawn)


def annotated_line(axes: Any, points: Sequence[tuple[float, float]], labels: Sequence[str], **look: Any) -> None:
    """look: of the line, as matplotlib takes it."""
    every = -(-len(points) // MOST_LABELS)
    axes.plot(*zip(*points, strict=True), **({"marker": "o", "markersize": 4} | look))
    for point, label in list(zip(points, labels, strict=True))[::every]:
        axes.annotate(label, point, xytext=(5, 5), textcoords="offset points", fontsize=8)
    axes.margins(x=0.12)  # room for the last label


@dataclass(frozen=True)
class Point:
    """name: what stands beside it; words: what the legend has of it; on_front: nothing is better in both
    coordinates; ends: of the y interval."""

    x: float
    y: float
    name: str
    words: str
    on_front: bool = False
    is_picked: bool = False
    ends: tuple[float, float] | None = None


@dataclass(frozen=True)
class Panel:
    points: Sequence[Point]
    x_label: str
    y_label: str


def trade_offs(panels: Sequence[Panel], bars: str) -> str:
    """Side by side: each point with its interval, those on the front joined and named, the picked one ringed; below,
    what all that means. bars: what the intervals are."""
    named = {point.name: point.words for panel in panels for point in _named(panel)}
    with figure(max(8, 6 * len(panels)), 5.5 + 0.17 * len(named)) as drawn:
        for axes, panel in zip(drawn.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
            _trade_off(axes, panel)
        legend = _meanings(panels, bars, list(named.values()))
        drawn.legend(handles=legend, loc="outside lower left", fontsize=8, frameon=False)
        return svg(drawn)


def _named(panel: Panel) -> list[Point]:
    """Those with a name beside them: the front, as far as there is room, and the picked one."""
    front = sorted((point for point in panel.points if point.on_front), key=lambda point: (point.x, -point.y))
    some = front[:: -(-len(front) // MOST_LABELS) or 1]
    return some + [point for point in panel.points if point.is_picked and point not in some]


def _trade_off(axes: Any, panel: Panel) -> None:
    front = sorted((point.x, -point.y) for point in panel.points if point.on_front)
    axes.plot([x for x, _ in front], [-y for _, y in front], color="C0", alpha=0.5)
    for point in panel.points:
        colour = "C0" if point.on_front else "0.6"
        if point.ends:
            axes.vlines(point.x, *point.ends, color=colour, alpha=0.35, linewidth=1)
        axes.plot(point.x, point.y, marker="o", color=colour, linestyle="none", markersize=5)
        if point.is_picked:
            axes.plot(point.x, point.y, "o", markersize=12, markerfacecolor="none", color="C1")
    paper: dict[str, Any] = {"boxstyle": "round,pad=0.15", "facecolor": "white", "edgecolor": "none"}
    rises = bool(front) and front[-1][1] < front[0][1]
    side: dict[str, Any] = {"xytext": (-9, 9), "ha": "right"} if rises else {"xytext": (9, 9), "ha": "left"}
    for point in _named(panel):  # beside the line, on paper, so that none runs through it
        look = side | {"textcoords": "offset points", "fontsize": 8, "bbox": paper, "zorder": 4}
        axes.annotate(point.name, (point.x, point.y), **look)
    axes.set(xlabel=panel.x_label, ylabel=panel.y_label)
    axes.margins(x=0.15, y=0.1)
    axes.grid(alpha=0.3)


def _meanings(panels: Sequence[Panel], bars: str, names: Sequence[str]) -> list[Any]:
    """Of each mark that there is, an entry for the legend; then the names' words."""
    from matplotlib.lines import Line2D

    points = [point for panel in panels for point in panel.points]
    marks: list[tuple[bool, str, dict[str, Any]]] = [
        (True, "front: no other setting is better in both", {"color": "C0", "marker": "o", "markersize": 5}),
        (not all(point.on_front for point in points), "other settings",
         {"color": "0.6", "marker": "o", "markersize": 5, "linestyle": "none"}),
        (any(point.is_picked for point in points), "picked",
         {"color": "C1", "marker": "o", "markersize": 10, "markerfacecolor": "none", "linestyle": "none"}),
        (any(point.ends for point in points), f"bars: {bars}",
         {"color": "0.5", "marker": "|", "markersize": 10, "linestyle": "none"}),
    ]  # fmt: skip
    marks += [(True, name, {"linestyle": "none"}) for name in names]
    return [Line2D([], [], label=label, **look) for is_there, label, look in marks if is_there]
