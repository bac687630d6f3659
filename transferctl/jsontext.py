"""JSON as everyone can read it: JSON has no NaN and no infinity, so such a number is written as null.

What is read may come from anyone: too large, nested too deep or no regular file is a ValueError, as is all else that
is no JSON.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from transferctl.sizes import in_words

MAX_BYTES = 64 * 10**6  # a million class names take 20 MB


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


def read(path: Path) -> Any:
    """The value that a file holds. Raises OSError, and ValueError where it holds none that is fit to be read."""
    return loads(read_text(path))


def read_text(path: Path) -> str:
    """A file of at most MAX_BYTES, as UTF-8. Raises OSError, ValueError."""
    if path.exists() and not path.is_file():  # a FIFO would block
        raise ValueError("it is not a regular file")
    with path.open("rb") as file:
        data = file.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise ValueError(f"it is larger than {in_words(MAX_BYTES)}")
    return data.decode("utf-8-sig")


def loads(text: str) -> Any:
    """Raises ValueError, whatever is wrong."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
