"""Plots as SVG, the same bytes for the same numbers. The only module that imports matplotlib."""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST_LABELS = 21  # more would lie on each other
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
    """Points (x, y, low, high) with an interval each and their labels; x, which is a cost, by its logarithm where all
    are above 0."""
    with figure(7, 4.5) as drawn:
        axes = drawn.add_subplot()
        xs, ys, lows, highs = zip(*points, strict=True)
        below, above = ([abs(y - end) for y, end in zip(ys, ends, strict=True)] for ends in (lows, highs))
        axes.errorbar(xs, ys, [below, above], fmt="o", markersize=5, capsize=3, elinewidth=1)
        for label, x, y in zip(labels[:MOST_LABELS], xs, ys, strict=False):
            axes.annotate(label, (x, y), xytext=(7, 3), textcoords="offset points", fontsize=8)
        if min(xs) > 0 and max(xs) > 2 * min(xs):
            axes.set_xscale("log")
        axes.set(xlabel=x_label, ylabel=y_label)
        axes.margins(x=0.2)  # room for the labels
        axes.grid(alpha=0.3)
        return svg(drawn)


def annotated_line(axes: Any, points: Sequence[tuple[float, float]], labels: Sequence[str], **look: Any) -> None:
    """look: of the line, as matplotlib takes it."""
    every = -(-len(points) // MOST_LABELS)
    axes.plot(*zip(*points, strict=True), **({"marker": "o", "markersize": 4} | look))
    for point, label in list(zip(points, labels, strict=True))[::every]:
        axes.annotate(label, point, xytext=(5, 5), textcoords="offset points", fontsize=8)
    axes.margins(x=0.12)  # room for the last label
