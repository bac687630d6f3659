"""Large arrays that live in a file instead of in memory: a million samples cost address space, not RAM."""

from __future__ import annotations

import tempfile
from typing import Any

import numpy as np

IN_MEMORY = 1 << 20  # bytes; smaller ones are ordinary arrays


def empty(shape: int | tuple[int, ...], dtype: Any) -> np.ndarray:
    """An array to be filled. Beyond 1 MiB its pages belong to an unlinked file in the temporary folder, so the system
    can write them out, forked workers share them, and nothing is left behind. Raises OSError where that is full."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    if size <= IN_MEMORY:
        return np.empty(shape, dtype)
    with tempfile.TemporaryFile(prefix="transferctl-") as file:
        file.truncate(size)
        return np.memmap(file, dtype, "r+", shape=shape)
