"""A metric, a comparison, a number: the gates of `eval --fail-if`, and what `runs --where` asks for. No torch here."""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from transferctl.errors import Problem, SpecError

_COMPARISONS = {"<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge}
_WITHOUT_END = "(calibrated_)?loss|(n|temperature|elapsed_s|epoch|step|lr)$"


@dataclass(frozen=True)
class Condition:
    """`text` as written, after the option `flag`: metric, comparison and limit."""

    text: str
    metric: str
    comparison: str
    limit: float
    flag: str

    def is_met(self, value: float) -> bool:
        """No number that is not finite meets any."""
        return math.isfinite(value) and bool(_COMPARISONS[self.comparison](value, self.limit))

    def holds(self, metrics: Mapping[str, Any]) -> bool:
        """As a gate: what is not defined, or no finite number, passes none."""
        value = float(metrics.get(self.metric, math.nan))
        return not math.isfinite(value) or self.is_met(value)

    def range(self) -> tuple[float, float] | None:
        """What the metric can be at all; None where that has no end."""
        if re.match(_WITHOUT_END, self.metric):
            return None
        if self.metric.startswith(("accuracy_change", "accuracy_difference", "source_change")):
            return -1, 1
        return (0, 2) if "brier" in self.metric else (0, 1)

    def out_of_range(self) -> str:
        """What is wrong with a limit that the metric cannot have; nothing where it can."""
        possible = self.range()
        if possible is None or possible[0] <= self.limit <= possible[1]:
            return ""
        what = f"{self.metric} is {'a fraction, ' if possible[1] == 1 else ''}from {possible[0]} to {possible[1]}"
        percent = f"; write {self.limit / 100:g} for {self.limit:g} %" if abs(self.limit) <= 100 else ""
        return what + (percent if possible[1] == 1 else "")

    def problem(self, message: str) -> Problem:
        return Problem("", message, f"{self.flag} {self.text}")


def parse(text: str, flag: str = "--fail-if", example: str = "accuracy<0.9") -> Condition:
    """'accuracy<0.9'. Raises SpecError."""
    match = re.fullmatch(r"\s*([a-z0-9_]+)\s*(<=|>=|<|>)\s*([-+0-9.eE]+)\s*", text)
    try:
        if match:
            return Condition(text, match[1], match[2], float(match[3]), flag)
    except ValueError:
        pass
    message = f"write a metric, <, <=, > or >=, and a number, such as {example}"
    raise SpecError([Problem("", message, f"{flag} {text}")])
