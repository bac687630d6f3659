"""What a sweep goes over: `--over KEY=VALUES` as points and ranges of settings. Starts without torch.

lambda=0.1,0.3,1                 points, each as YAML has it; [brackets] stay whole
epochs=2:10:2                    start:stop:step, both ends included, as `eval --interpolate` reads it
optimizer.lr=log:0.0001:0.1:4    four points, each the same factor apart
optimizer.lr=0.001:0.1           anything in between, evenly: for random and optuna
optimizer.lr=log:0.0001:0.1      evenly by its logarithm
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal

from transferctl.errors import Problem, SpecError

SEED = "seed"  # members that differ in it alone are repeats of one setting
MOST = 1000  # members of a sweep, and points of an axis
NAME_LENGTH = 90  # of names, which have 100 characters at most
DIGITS = 4  # significant ones of a number that is drawn
_NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
_RANGE = re.compile(rf"(log:)?({_NUMBER}):({_NUMBER})(?::({_NUMBER}))?")
_NOT_SWEPT = {
    "name": "names the members' run folders, which the sweep does itself",
    "target.test": "is read once, at the end, for the member that is picked; set it in the spec",
    "report": "has no effect on a score; `transferctl report` makes a member's page",
    "baseline": "is no part of a member; run extract with it on the setting that is picked",
}


@dataclass(frozen=True)
class Points:
    """texts: the values, as `--set KEY=TEXT` takes them."""

    key: str
    texts: tuple[str, ...]
    written: str


@dataclass(frozen=True)
class Range:
    """Every number from low to high; is_log: evenly by its logarithm; is_whole: whole ones alone."""

    key: str
    low: float
    high: float
    is_log: bool
    written: str
    is_whole: bool = False

    def __str__(self) -> str:
        return f"{'log:' if self.is_log else ''}{':'.join(self.ends)}"

    @property
    def ends(self) -> tuple[str, str]:
        return number_text(self.low), number_text(self.high)

    def at(self, part: float) -> str:
        """The number so far (0–1) along the range, in a few digits, never beyond its ends."""
        if self.is_log:
            value = math.exp(math.log(self.low) + part * (math.log(self.high) - math.log(self.low)))
        else:
            value = self.low + part * (self.high - self.low)
        if self.is_whole:
            value = round(value) if self.is_log else math.floor(self.low + part * (self.high - self.low + 1))
            return number_text(min(max(value, self.low), self.high))
        return self.rounded(value)

    def rounded(self, value: float) -> str:
        """In a few digits, never beyond the ends."""
        return number_text(min(max(float(f"{value:.{DIGITS}g}"), self.low), self.high))


Axis = Points | Range


@dataclass(frozen=True)
class Member:
    """One run of a sweep. number: counted from 1; settings: of each axis its value, as text."""

    number: int
    settings: Mapping[str, str]

    @property
    def setting(self) -> tuple[tuple[str, str], ...]:
        """Without the seed: what members that are repeats of each other share."""
        return tuple((key, text) for key, text in self.settings.items() if key != SEED)

    def name_in(self, sweep: str) -> str:
        """Of its run; the sweep's name is cut, that the number can be added."""
        return f"{sweep[:NAME_LENGTH]}-{self.number:03d}"

    @property
    def sets(self) -> list[str]:
        """As `--set` takes them."""
        return [f"{key}={text}" for key, text in self.settings.items()]


def parse(overs: Sequence[str], sets: Sequence[str] = ()) -> tuple[list[Axis], list[Problem]]:
    """Of `--over` options, in their order: those that can be read, and what is wrong. sets: of `--set`, whose keys
    cannot be swept."""
    axes: list[Axis] = []
    problems: list[Problem] = []
    fixed = {text.partition("=")[0].strip() for text in sets}
    for over in overs:
        try:
            axis = _axis(over)
        except SpecError as error:
            problems += error.problems
            continue
        if axis.key in {other.key for other in axes}:
            problems.append(_problem(over, f"{axis.key} is swept twice; write its values into one --over"))
        if axis.key in fixed:
            problems.append(_problem(over, f"{axis.key} is given by --set too; leave one of them out"))
        axes.append(axis)
    if not overs:
        problems.append(Problem("", "say what to sweep: --over optimizer.lr=0.001,0.01,0.1", "--over"))
    return axes, problems


def without_points(axis: Range, why: str) -> Problem:
    """A range where points are needed, and how to write some."""
    low, high = axis.ends
    number = f" or a number of points (log:{low}:{high}:4)" if axis.low > 0 else ""
    listed = ", ".join(dict.fromkeys([low, axis.at(0.5), high]))
    ways = f"list some ({listed}), give a step ({low}:{high}:STEP){number}, or draw from it with --method random"
    return _problem(axis.written, f"{why}: {ways}")


def number_text(value: float) -> str:
    """As people write it: 10, 0.003, 1e-05."""
    return str(int(value)) if float(value).is_integer() and abs(value) < 1e15 else repr(float(value))


def _axis(over: str) -> Axis:
    key, separator, text = (part.strip() for part in over.partition("="))
    if not separator or not key or not text:
        raise SpecError([_problem(over, "write it as KEY=VALUES, such as lambda=0.1,0.3,1 or epochs=2:10:2")])
    for name, why in _NOT_SWEPT.items():
        if key == name or key.startswith(f"{name}."):
            raise SpecError([_problem(over, f"{name} {why}")])
    if match := _RANGE.fullmatch(text):
        axis = _range(over, key, bool(match[1]), match[2], match[3], match[4])
    elif text.startswith("log:"):
        raise SpecError([_problem(over, "write log:LOW:HIGH, or log:LOW:HIGH:N for N points")])
    else:
        axis = Points(key, tuple(_values(over, text)), over)
    if key == SEED and isinstance(axis, Range):
        raise SpecError([_problem(over, "seeds are repeats of each setting: list them (0,1,2), or write 0:2:1")])
    return axis


def _range(over: str, key: str, is_log: bool, low: str, high: str, third: str | None) -> Axis:
    start, stop = Decimal(low), Decimal(high)
    if not start < stop or (is_log and start <= 0):
        needed = "0 < LOW < HIGH" if is_log else "a start below the stop"
        raise SpecError([_problem(over, f"a range needs {needed}")])
    if third is None:
        return Range(key, float(start), float(stop), is_log, over)
    if is_log:
        return Points(key, tuple(_log_points(over, float(start), float(stop), third)), over)
    step = Decimal(third)
    if step <= 0:
        raise SpecError([_problem(over, "start:stop:step needs a step above 0")])
    if step * MOST <= stop - start:
        raise SpecError([_problem(over, f"gives more than {MOST} points; take a longer step")])
    found = [start + i * step for i in range(int((stop - start) / step) + 1)]
    found += [stop] if found[-1] < stop else []
    return Points(key, tuple(format(value.normalize(), "f") for value in found), over)


def _log_points(over: str, low: float, high: float, count: str) -> Iterator[str]:
    if not re.fullmatch(r"\d+", count) or not 2 <= int(count) <= MOST:
        raise SpecError([_problem(over, f"log:LOW:HIGH:N needs a whole number N of points, 2 to {MOST}")])
    between = Range("", low, high, True, over)
    n = int(count)
    for i in range(n):
        yield between.ends[bool(i)] if i in (0, n - 1) else between.at(i / (n - 1))


def _values(over: str, text: str) -> Iterator[str]:
    """Parted at commas that are in no brackets, braces or quotes."""
    depth, quote, start = 0, "", 0
    seen: set[str] = set()
    for i, letter in enumerate(f"{text},"):
        if quote:
            quote = "" if letter == quote else quote
        elif letter in "'\"":
            quote = letter
        elif letter in "[{":
            depth += 1
        elif letter in "]}":
            depth -= 1
        if letter != "," or ((depth > 0 or quote) and i < len(text)):
            continue
        value, start = text[start:i].strip(), i + 1
        if not value or value in seen:
            what = f"has {value} twice" if value else "has an empty value; write null for none"
            raise SpecError([_problem(over, what)])
        seen.add(value)
        yield value


def _problem(over: str, message: str) -> Problem:
    return Problem("", message, f"--over {over}")
