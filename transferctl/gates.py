"""Gates of `eval --fail-if`: a gate whose condition holds is missed."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from transferctl import comparison
from transferctl.conditions import Condition
from transferctl.errors import GateMissed, SpecError
from transferctl.forgetting import CHANGES
from transferctl.runs import Run


def refuse_odd(gates: Sequence[Condition], known: Collection[str]) -> None:
    """A gate that could never be what was meant. known: the metrics that the evaluation will find. Raises SpecError."""
    problems = []
    for gate in gates:
        message = gate.out_of_range()
        if gate.metric not in known:
            message = f"there is no metric {gate.metric!r} here; {_hint(gate.metric, known)}"
        if message:
            problems.append(gate.problem(message))
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


def enforce(gates: Sequence[Condition], metrics: Mapping[str, Any], trained: Path, folder: Run) -> None:
    """Raises GateMissed where a gate's condition holds; the summary lists such gates, each with what it met."""
    missed = [f"{gate.text} (it is {_value(metrics.get(gate.metric))})" for gate in gates if gate.holds(metrics)]
    folder.summary["gates_missed"] = missed
    if missed:
        raise GateMissed(f"{trained}: gate missed: {'; '.join(missed)}")


def _value(value: float | None) -> str:
    if value is None:
        return "not defined on this data"
    return f"{value:,}" if isinstance(value, int) else f"{value:.4f}"
