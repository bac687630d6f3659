"""What differs between the specs of several runs: each setting that is not the same in all, and its value in each."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from transferctl.wording import printable

ABSENT = "-"
LEFT_OUT = ("name", "report")  # what a run is called, and whether it has a page, says nothing of what it did
LONGEST = 80
BEFORE = 20  # characters of what long values have in common, before what differs


def differing(specs: Sequence[Mapping[str, Any]]) -> dict[str, list[str]]:
    """Dotted keys whose values differ between resolved specs, in the order they are written, with each spec's value in
    words; "-" where it has no such key. A group that only some have is told setting by setting."""
    leaves = [dict(_leaves(spec)) for spec in specs]
    keys = dict.fromkeys(key for one in leaves for key in one if key not in LEFT_OUT)
    told = {key: [in_words(one[key]) if key in one else ABSENT for one in leaves] for key in keys}
    return {key: _shortened(values) for key, values in told.items() if len(set(values)) > 1}


def in_words(value: Any) -> str:
    """A setting's value as it would be written, in one printable line."""
    return printable(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str))


def _shortened(values: Sequence[str]) -> list[str]:
    """At most LONGEST characters of each, among them the first that differ from the others."""
    found = []
    for value in values:
        others = [other for other in values if other not in (value, ABSENT)]
        common = max((_common(value, other) for other in others), default=0)
        start = common - BEFORE if common > LONGEST // 2 else 0
        if not others and "/" in value:  # the end of a path says more than its beginning
            start = len(value)
        found.append(value if len(value) <= LONGEST else _part(value, start))
    return found


def _common(one: str, other: str) -> int:
    """How many characters both begin with."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(one), len(other)))


def _part(value: str, start: int) -> str:
    """LONGEST characters from there on, or the last ones; … for what is left out."""
    start = min(start, len(value) - LONGEST + 1)
    text = f"…{value[start:]}" if start else value
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…"


def _leaves(spec: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Lists are leaves; null and an empty group are what is left out. A loop: what others write may be nested deep."""
    waiting: list[tuple[str, Any]] = [("", spec)]
    while waiting:
        key, value = waiting.pop()
        if isinstance(value, Mapping):
            inner = [(f"{key}.{name}" if key else str(name), one) for name, one in value.items()]
            waiting += reversed(inner)
        elif key and value is not None:
            yield key, value
