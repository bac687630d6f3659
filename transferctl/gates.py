"""Gates of `eval --fail-if`: a metric, a comparison, a number; a gate whose condition holds is missed."""

from __future__ import annotations

import difflib
import math
import operator
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transferctl import comparison
from transferctl.errors import GateMissed, Problem, SpecError
from transferctl.forgetting import CHANGES
from transferctl.runs import Run

_COMPARISONS = {"<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge}


@dataclass(frozen=True)
class Gate:
    """`text` as written: metric, comparison and limit."""

    text: str
    metric: str
    comparison: str
    limit: float

    def holds(self, metrics: Mapping[str, Any]) -> bool:
        """What is not defined, or no finite number, passes no gate."""
        value = float(metrics.get(self.metric, math.nan))
        return not math.isfinite(value) or bool(_COMPARISONS[self.comparison](value, self.limit))

    def range(self) -> tuple[float, float] | None:
        """What the metric can be at all; None where that has no end."""
        if re.match("(calibrated_)?loss|n$|temperature$", self.metric):
            return None
        if self.metric.startswith(("accuracy_change", "accuracy_difference")):
            return -1, 1
        return (0, 2) if "brier" in self.metric else (0, 1)


def parse(text: str) -> Gate:
    """'accuracy<0.9'. Raises SpecError."""
    match = re.fullmatch(r"\s*([a-z0-9_]+)\s*(<=|>=|<|>)\s*([-+0-9.eE]+)\s*", text)
    try:
        if match:
            return Gate(text, match[1], match[2], float(match[3]))
    except ValueError:
        pass
    message = "write a metric, <, <=, > or >=, and a number, such as accuracy<0.9"
    raise SpecError([Problem("", message, f"--fail-if {text}")])


def refuse_odd(gates: Sequence[Gate], known: Collection[str]) -> None:
    """A gate that could never be what was meant. known: the metrics that the evaluation will find. Raises SpecError."""
    problems = []
    for gate in gates:
        message, possible = "", gate.range()
        if gate.metric not in known:
            message = f"there is no metric {gate.metric!r} here; {_hint(gate.metric, known)}"
        elif possible and not possible[0] <= gate.limit <= possible[1]:
            what = f"{gate.metric} is {'a fraction, ' if possible[1] == 1 else ''}from {possible[0]} to {possible[1]}"
            percent = f"; write {gate.limit / 100:g} for {gate.limit:g} %" if abs(gate.limit) <= 100 else ""
            message = what + (percent if possible[1] == 1 else "")
        if message:
            problems.append(Problem("", message, f"--fail-if {gate.text}"))
    if problems:
        raise SpecError(problems)


def _hint(metric: str, known: Collection[str]) -> str:
    if metric in CHANGES:
        return "a change is that of the source: add --source; its head must have been trained before fine-tuning"
    if metric in comparison.SCALARS:
        return "a difference is from another run: add --against RUN"
    if metric.startswith("calibrated_") or metric == "temperature":
        return (
            "a temperature is of the target head of a training's best checkpoint, unless its validation data could not "
            "say one"
        )
    if metric.removesuffix("_low").removesuffix("_high") in ("auroc", "average_precision"):
        return "it is not computed of so many samples and classes; see docs/evaluation.md"
    near = difflib.get_close_matches(metric, known, 1, 0.6)
    return f"did you mean {near[0]}?" if near else f"there are {', '.join(known)}"


def enforce(gates: Sequence[Gate], metrics: Mapping[str, Any], trained: Path, folder: Run) -> None:
    """Raises GateMissed where a gate's condition holds; the summary lists such gates, each with what it met."""
    missed = [f"{gate.text} (it is {_value(metrics.get(gate.metric))})" for gate in gates if gate.holds(metrics)]
    folder.summary["gates_missed"] = missed
    if missed:
        raise GateMissed(f"{trained}: gate missed: {'; '.join(missed)}")


def _value(value: float | None) -> str:
    if value is None:
        return "not defined on this data"
    return f"{value:,}" if isinstance(value, int) else f"{value:.4f}"
