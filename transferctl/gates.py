"""Gates of `eval --fail-if`: a metric, a comparison, a number; a gate whose condition holds is missed."""

from __future__ import annotations

import difflib
import math
import operator
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from transferctl.errors import Problem, SpecError

_COMPARISONS = {"<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge}


@dataclass(frozen=True)
class Gate:
    """`text` as written: metric, comparison and limit."""

    text: str
    metric: str
    comparison: str
    limit: float

    def holds(self, metrics: Mapping[str, Any]) -> bool:
        """A number that is not finite passes no gate."""
        value = float(metrics[self.metric])
        return not math.isfinite(value) or bool(_COMPARISONS[self.comparison](value, self.limit))


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
        if gate.metric not in known:
            near = difflib.get_close_matches(gate.metric, known, 1, 0.6)
            hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(known)}"
            problems.append(Problem("", f"there is no metric {gate.metric!r} here; {hint}", f"--fail-if {gate.text}"))
        elif gate.metric not in ("loss", "n") and not 0 <= gate.limit <= 1:
            message = f"{gate.metric} is a fraction, from 0 to 1; write {gate.limit / 100:g} for {gate.limit:g} %"
            problems.append(Problem("", message, f"--fail-if {gate.text}"))
    if problems:
        raise SpecError(problems)


def missed(gates: Sequence[Gate], metrics: Mapping[str, Any]) -> list[str]:
    """The gates that were missed, each with the number it met."""
    return [f"{gate.text} (it is {metrics[gate.metric]:.4f})" for gate in gates if gate.holds(metrics)]
