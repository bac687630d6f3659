"""Bytes as people write them: 20GB, 1.5 GiB."""

from __future__ import annotations

import re

LIMIT = 20 * 10**9  # of the cache, unless a spec says otherwise
DECIMAL = {"B": 1, "kB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
UNITS = DECIMAL | {"KB": 10**3, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40}


def parse(text: str) -> int:
    """The bytes of 500MB, 1.5 GiB, 20GB. Raises ValueError."""
    match = re.fullmatch(rf"([0-9]+(?:\.[0-9]+)?) ?({'|'.join(UNITS)})", text.strip())
    if not match:
        raise ValueError(f"must be a size such as 500MB or 20GB, or a number of bytes, not {text}")
    return round(float(match[1]) * UNITS[match[2]])


def in_words(n_bytes: int) -> str:
    """20 GB, 1.5 MB."""
    unit = next((unit for unit, size in DECIMAL.items() if round(n_bytes / size, 1) < 1000), "TB")
    return f"{n_bytes / DECIMAL[unit]:,.1f} {unit}".replace(".0 ", " ")
