"""The table of speed.py: medians over turns, with the least and the greatest; ratios within a turn."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import sqrt
from statistics import mean, median, stdev, variance
from typing import Any

Row = Mapping[str, Any]

AGREE = 0.5  # points of accuracy
COLUMNS = (
    "job", "run", "seconds", "over transferctl, cold", "images/s", "TFLOP/s", "of the peak", "memory, MiB", "accuracy, %",
)  # fmt: skip
COLD = "transferctl, cold"


def table(seen: Sequence[Row], bars: Mapping[str, str], names: Mapping[str, str]) -> str:
    """Markdown, its columns aligned. bars: of each job; names: of the contenders, as the table has them."""
    machines = {row["turn"]: row for row in seen if row["kind"] == "machine"}
    rows = []
    for job in dict.fromkeys(row["job"] for row in seen if row["kind"] == "time"):
        own = [row for row in seen if row["kind"] == "time" and row["job"] == job]
        accuracies = _accuracies(seen, job)
        for run in sorted({row["run"]: None for row in own}, key=lambda run: not run.startswith("transferctl")):
            of_run = {row["turn"]: row for row in own if row["run"] == run}
            against = {row["turn"]: row for row in own if row["run"] == COLD} if run in names else {}
            cells = _cells(job, names.get(run, run), of_run, against, machines)
            rows.append([*cells, _accuracy(accuracies, run)])
    return "\n".join([*_head(machines, bars), "", *_aligned([list(COLUMNS), *rows]), ""])


def _head(machines: Mapping[int, Row], bars: Mapping[str, str]) -> list[str]:
    about = machines[0]
    peak = _spread([row["peak"] / 1e12 for row in machines.values()], 2)
    return [
        f"{about['processor']}, {about['cores']} threads, torch {about['torch']}, torchvision {about['torchvision']}; "
        f"{len(machines)} turn(s), medians (least–greatest); bf16 matrix product: {peak} TFLOP/s.",
        "~: carried on from a part; ✗: accuracies further apart than half a point, so the ratio does not count.",
        "Bars: " + "; ".join(f"{job}: {bar}" for job, bar in bars.items()) + ".",
    ]


def _cells(
    job: str, name: str, own: Mapping[int, Row], cold: Mapping[int, Row], machines: Mapping[int, Row]
) -> list[str]:
    """own, cold: by turn, of this run and of transferctl with a cold cache."""
    rows = list(own.values())
    ratios = [row["seconds"] / cold[turn]["seconds"] for turn, row in own.items() if turn in cold]
    rates = {turn: _flop_rate(row, machines[turn]["flops"]) for turn, row in own.items() if _is_steady(row)}
    memory = [row["pss"] / 2**20 for row in rows if row["pss"]]
    return [
        job,
        name,
        _spread([row["seconds"] for row in rows], 1) + (" ~" if any(row["estimated"] for row in rows) else ""),
        _spread(ratios, 2, "×") if ratios else "",
        f"{median(row['visits'] / row['seconds'] for row in rows):.1f}",
        f"{median(rates.values()) / 1e12:.3f}" if rates else "",
        _spread([rate / machines[turn]["peak"] for turn, rate in rates.items()], 2) if rates else "",
        f"{median(memory):.0f}" if memory else "",
    ]


def _is_steady(row: Row) -> bool:
    """Known, and no difference of two runs that noise turned round."""
    return bool(row.get("steady")) and sum(seconds for _, seconds in row["steady"].values()) > 0


def _flop_rate(row: Row, flops: Mapping[str, float]) -> float:
    """FLOP/s in the steady state: what its images needed, over its seconds."""
    steady = row["steady"]
    done: float = sum(
        flops[row["frozen"] if phase == "train" else "val"] * images for phase, (images, _) in steady.items()
    )
    seconds: float = sum(seconds for _, seconds in steady.values())
    return done / seconds


def _accuracies(seen: Sequence[Row], job: str) -> dict[str, list[float]]:
    """In per cent, of each run, over seeds."""
    found: dict[str, list[float]] = {}
    for row in seen:
        if row["kind"] == "accuracy" and row["job"] == job:
            found.setdefault(row["run"], []).append(100 * row["accuracy"])
    return found


def _accuracy(accuracies: Mapping[str, Sequence[float]], run: str) -> str:
    """Mean and standard deviation; for others than transferctl, how far from it in points, with the standard error."""
    ours = accuracies.get("transferctl", [])
    values = ours if run == COLD else accuracies.get(run, [])
    if not values:
        return ""
    shown = f"{mean(values):.1f}" + (f" ± {stdev(values):.1f}" if len(values) > 1 else "")
    if run == COLD:
        return shown
    apart = mean(values) - mean(ours)
    error = f" ± {_error(values, ours):.1f}" if len(values) > 1 else ""
    return f"{shown} ({apart:+.1f}{error}{'' if abs(apart) <= AGREE else ' ✗'})"


def _error(*samples: Sequence[float]) -> float:
    """The standard error of a difference of means."""
    return sqrt(sum(variance(values) / len(values) for values in samples))


def _spread(values: Sequence[float], digits: int, unit: str = "") -> str:
    shown: Callable[[float], str] = lambda value: f"{value:.{digits}f}"  # noqa: E731
    middle = shown(median(values)) + unit
    return middle if len(values) == 1 else f"{middle} ({shown(min(values))}–{shown(max(values))})"


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in rows
    ]
    return [lines[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *lines[1:]]
