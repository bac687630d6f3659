"""Large arrays that live in a file instead of in memory: a million samples cost address space, not RAM.

What numpy makes on the way, an index of 8 bytes a sample, would be memory after all; so it is done piece by piece here.
"""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import IO, Any

import numpy as np

from transferctl.errors import ResourceError

IN_MEMORY = 1 << 20  # bytes; smaller ones are ordinary arrays
PIECE = 1 << 16  # elements that are worked on at a time


def empty(shape: int | tuple[int, ...], dtype: Any) -> np.ndarray:
    """An array to be filled. Beyond 1 MiB its pages belong to an unlinked file in the temporary folder, so the system
    can write them out, forked workers share them, and nothing is left behind. Raises ResourceError where that is
    full."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    if size <= IN_MEMORY:
        return np.empty(shape, dtype)
    with _room(), tempfile.TemporaryFile(prefix="transferctl-") as file:
        _reserve(file, size)
        return _mapped(file, dtype).reshape(shape)


def arange(n: int) -> np.ndarray:
    """int32 [n]: 0, 1, …"""
    numbers = empty(n, np.int32)
    for part in pieces(n):
        numbers[part] = np.arange(part.start, part.stop)
    return numbers


def taken(values: np.ndarray, index: np.ndarray) -> np.ndarray:
    """values[index], along the first axis."""
    return mapped(lambda part: values[part], index, values.dtype, values.shape[1:])


def mapped(
    function: Callable[[np.ndarray], np.ndarray], values: np.ndarray, dtype: Any, shape: tuple[int, ...] = ()
) -> np.ndarray:
    """`function` of each piece of `values`: [n, *shape]."""
    result = empty((len(values), *shape), dtype)
    for part in pieces(len(values)):
        result[part] = function(values[part])
    return result


def positions(mask: np.ndarray) -> np.ndarray:
    """int32 [k]: where a mask [n] is true, ascending."""
    found, done = empty(int(np.count_nonzero(mask)), np.int32), 0
    for part in pieces(len(mask)):
        here = np.flatnonzero(mask[part])
        found[done : done + len(here)] = here + part.start
        done += len(here)
    return found


def filled(n: int, value: Any, dtype: Any) -> np.ndarray:
    array = empty(n, dtype)
    array[:] = value
    return array


def pieces(n: int) -> Iterator[slice]:
    for start in range(0, n, PIECE):
        yield slice(start, min(start + PIECE, n))


class Growing:
    """An array whose length shows as it is filled: bytes in a temporary file, once they are more than 1 MiB."""

    def __init__(self, dtype: Any):
        self._dtype = np.dtype(dtype)
        self._file = tempfile.SpooledTemporaryFile(IN_MEMORY, prefix="transferctl-")  # noqa: SIM115 (closed in __del__)
        self._waiting: list[float] = []

    def __del__(self) -> None:
        self._file.close()

    def add(self, value: float) -> None:
        self._waiting.append(value)
        if len(self._waiting) == 4096:
            self._write_waiting()

    def append(self, values: bytes | np.ndarray) -> None:
        """Raises ResourceError where the temporary folder is full."""
        self._write_waiting()
        self._write(values if isinstance(values, bytes) else values.astype(self._dtype).tobytes())

    def array(self) -> np.ndarray:
        """What was appended so far."""
        self._write_waiting()
        if self._file.tell() <= IN_MEMORY:
            self._file.seek(0)
            return np.frombuffer(bytearray(self._file.read()), self._dtype)
        with _room():
            self._file.flush()
        return _mapped(self._file, self._dtype)

    def _write_waiting(self) -> None:
        if self._waiting:
            self._write(np.array(self._waiting, self._dtype).tobytes())
            self._waiting.clear()

    def _write(self, content: bytes) -> None:
        with _room():
            self._file.write(content)


def _reserve(file: IO[bytes], size: int) -> None:
    """A page of a sparse file that finds no room when it is written is a SIGBUS."""
    try:
        os.posix_fallocate(file.fileno(), 0, size)
    except (AttributeError, OSError) as error:  # macOS has no such call, some file systems do not support it
        if getattr(error, "errno", errno.EINVAL) not in (errno.EINVAL, errno.EOPNOTSUPP):
            raise
        file.truncate(size)


def _mapped(file: IO[bytes], dtype: Any) -> np.ndarray:
    """As a plain array: numpy is slow in the elements of a memmap, and shuffles it by another path."""
    return np.asarray(np.memmap(file, dtype, "r+"))


@contextmanager
def _room() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        fix = "free some space, or name another folder in TMPDIR"
        raise ResourceError(f"{tempfile.gettempdir()}: {error.strerror}; {fix}") from None
