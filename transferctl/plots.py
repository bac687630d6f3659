"""Plots for a run folder, as SVG. The only module that imports matplotlib."""

from __future__ import annotations

import io
import logging
from collections.abc import Sequence

MOST_LABELS = 21  # more would lie on each other


def labelled_curve(points: Sequence[tuple[float, float]], labels: Sequence[str], x_label: str, y_label: str) -> str:
    """A line through points in their order, each with its label. The same points give the same bytes."""
    logging.getLogger("matplotlib").setLevel(logging.ERROR)  # it speaks of its font cache
    import matplotlib as mpl
    from matplotlib.figure import Figure

    every = -(-len(points) // MOST_LABELS)
    # text stays text, so the file is light and can be searched; ids of clip paths are random without a salt
    with mpl.rc_context({"svg.hashsalt": "transferctl", "svg.fonttype": "none"}):
        figure = Figure(figsize=(6, 4.5), layout="constrained")
        axes = figure.add_subplot()
        axes.plot(*zip(*points, strict=True), marker="o", markersize=4)
        for point, label in list(zip(points, labels, strict=True))[::every]:
            axes.annotate(label, point, xytext=(5, 5), textcoords="offset points", fontsize=8)
        axes.set(xlabel=x_label, ylabel=y_label)
        axes.margins(x=0.12)  # room for the last label
        axes.grid(alpha=0.3)
        drawn = io.StringIO()
        figure.savefig(drawn, format="svg", metadata={"Date": None, "Creator": None})
    return drawn.getvalue()
