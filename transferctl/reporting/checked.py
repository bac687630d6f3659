"""Values out of files that may come from anyone: each is what it should be, or is not there."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from transferctl.wording import printable


def number(value: Any) -> float | None:
    """A finite number; True is none."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return float(value) if math.isfinite(value) else None
    except OverflowError:  # an integer of a thousand digits
        return None


def count(value: Any) -> int | None:
    """A whole number from 0 to 2⁵³."""
    found = number(value)
    return int(found) if found is not None and found == int(found) and 0 <= found <= 2**53 else None


def share(value: Any) -> float | None:
    """A number from 0 to 1."""
    found = number(value)
    return found if found is not None and 0 <= found <= 1 else None


def mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def sequence(value: Any) -> Sequence[Any]:
    return value if isinstance(value, Sequence) and not isinstance(value, str | bytes) else ()


def text(value: Any, most: int = 200) -> str:
    """Printable, cut; empty for what is no text."""
    found = printable(value[: most + 1]) if isinstance(value, str) else ""
    return found if len(found) <= most else f"{found[: most - 1]}…"
