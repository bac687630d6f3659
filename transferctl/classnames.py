"""Class names that people, or their spreadsheets, take for something else. They stay as they are, and that is said."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Sequence
from contextlib import suppress

from transferctl.wording import shown

FORMULA_STARTS = ("=", "+", "-", "@")  # what OWASP lists, less control characters, which no class name may have


def notes(names: Sequence[str]) -> Iterator[str]:
    """predictions.csv has names exactly, as scripts read them back; a quote in front would be another class."""
    if formulas := [name for name in names if name.startswith(FORMULA_STARTS) and not _is_number(name)]:
        yield f"spreadsheets compute {shown(formulas)}: import the columns of predictions.csv as text"
    if spaced := [name for name in names if name != name.strip()]:
        yield f"names begin or end with a space: {shown([repr(name) for name in spaced])}"
    seen: dict[str, str] = {}
    for name in names:
        first = seen.setdefault(_as_seen(name), name)
        if first != name:
            yield f"{first!r} and {name!r} look alike, and are two classes"


def _is_number(name: str) -> bool:
    with suppress(ValueError):
        float(name)
        return True
    return False


def _as_seen(name: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", name).casefold().split())
