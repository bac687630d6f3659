"""JSON as everyone can read it: JSON has no NaN and no infinity, so such a number is written as null."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any


def dumps(values: Any, indent: int | None = None) -> str:
    """Text in UTF-8's full range, less lone surrogates (of file names that are no text), which no JSON may hold."""
    text = json.dumps(_finite(values), ensure_ascii=False, allow_nan=False, indent=indent)
    return text.encode("utf-8", "backslashreplace").decode()


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_finite(inner) for inner in value]
    return value
