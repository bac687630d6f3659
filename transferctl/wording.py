"""Names, counts and errors of others as text for a message."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pydantic import ValidationError


def shown(names: Sequence[str], most: int = 3) -> str:
    """A few names for a message, with how many more there are; unprintable characters escaped."""
    few = ", ".join(printable(name) for name in names[:most])
    return few + (f" and {len(names) - most} more" if len(names) > most else "")


def counted(n: int, noun: str, plural: str = "") -> str:
    """1 file, 2 files."""
    return f"{n:,} {noun if n == 1 else plural or f'{noun}s'}"


def printable(text: str) -> str:
    """Text safe to show in a terminal: control characters and undecodable bytes as escapes."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def one_line(error: object, most: int = 200) -> str:
    """Another library's words in one printable line, cut; an exception without words gives its name."""
    words = printable(" ".join(str(error).split())[:most])
    return words or (type(error).__name__ if isinstance(error, BaseException) else "")


def faults_in(error: ValidationError) -> str:
    """What pydantic finds wrong with another's file: keys and why, the first few."""
    return shown([f"{'.'.join(map(str, one['loc']))}: {one_line(one['msg'])}".lstrip(": ") for one in error.errors()])
