"""Names, counts and errors of others as text for a message."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pydantic import ValidationError

SHOWN = 3


@dataclass(kw_only=True)
class SomeNames:
    """How many, and the first few of them: there may be one beside each of a million images."""

    count: int = 0
    first: list[str] = field(default_factory=list)

    def add(self, name: str) -> None:
        self.count += 1
        if self.count <= SHOWN:
            self.first.append(name)

    def __str__(self) -> str:
        more = self.count - len(self.first)
        return shown(self.first, SHOWN) + (f" and {more:,} more" if more else "")


def shown(names: Sequence[str], most: int = SHOWN) -> str:
    """A few names for a message, with how many more there are; unprintable characters escaped."""
    few = ", ".join(printable(name) for name in names[:most])
    return few + (f" and {len(names) - most} more" if len(names) > most else "")


def counted(n: int, noun: str, plural: str = "") -> str:
    """1 file, 2 files."""
    return f"{n:,} {noun if n == 1 else plural or f'{noun}s'}"


def percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def two_digits(value: float) -> str:
    """A figure that is measured roughly: 9.5, 130, 1,200."""
    return f"{float(f'{value:.2g}'):,.12g}"


def points_with_interval(found: Mapping[str, float], name: str = "accuracy_difference") -> str:
    """A difference of accuracies, as paired.py has it, in points."""
    value, low, high = (100 * found[f"{name}{end}"] for end in ("", "_low", "_high"))
    return f"{value:+.1f} points (95 % interval {low:+.1f} to {high:+.1f})"


def printable(text: str) -> str:
    """Text safe to show in a terminal: control characters and undecodable bytes as escapes."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def one_line(error: object, most: int = 200) -> str:
    """Another library's words in one printable line, cut; an exception without words gives its name."""
    words = printable(" ".join(str(error).split())[:most])
    return words or (type(error).__name__ if isinstance(error, BaseException) else "")


def shortened(text: str, most: int) -> str:
    """In one printable line of at most so many characters, cut at a word; what stands after the last semicolon is kept:
    there a message says what to do."""
    words = printable(" ".join(text.split()))
    if len(words) <= most:
        return words
    cause, _, advice = words.rpartition("; ")
    ending = f" …; {advice}" if cause and len(advice) < most // 2 else " …"
    return words[: most - len(ending)].rsplit(" ", 1)[0].rstrip(";:,") + ending


def faults_in(error: ValidationError) -> str:
    """What pydantic finds wrong with another's file: keys and why, the first few."""
    return shown([f"{'.'.join(map(str, one['loc']))}: {one_line(one['msg'])}".lstrip(": ") for one in error.errors()])
