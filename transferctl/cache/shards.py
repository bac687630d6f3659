"""Shards, the files that a cache entry consists of: immutable, checksummed, a file and its manifest each.

    NAME.rows   values, uint8 [rows, row_bytes], then keys, uint8 [rows, 32]
    NAME.json   the manifest: format, rows, row_bytes, bytes and sha256 of NAME.rows

The manifest is written last, so a shard without one does not exist. Whoever writes one holds a lock on it until then;
what is left without a manifest and without a lock was left by a process that died.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import io
import json
import mmap
import os
import re
import stat
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # `transferctl cache` does without, and starts in half the time
    import numpy as np

FORMAT = 1  # of the whole folder; another one is another cache
KEY_BYTES = 32
SHARD_BYTES = 64 << 20
SHARD_ROWS = 1 << 16
NAME = "[0-9a-f]{16}-[0-9]{4,9}"
MANIFEST_BYTES = 4096  # more is none of ours
LEFTOVER_AGE_S = 60.0  # between a file's creation and its lock lies a moment


class Damaged(Exception):
    """A shard that is not what its manifest says, or a manifest that is none. The message says why."""


class Unreadable(Damaged):
    """It may well be whole: a permission or a resource is missing. Nothing to remove it for."""


@dataclass(frozen=True)
class Shard:
    """A shard as its manifest describes it."""

    path: Path
    rows: int
    row_bytes: int
    sha256: str

    def keys(self) -> np.ndarray:
        """uint8 [rows, 32], not verified. Raises Damaged."""
        import numpy as np

        with self._opened() as file, _as_damage():
            file.seek(self.rows * self.row_bytes)
            keys = np.frombuffer(file.read(self.rows * KEY_BYTES), np.uint8)
        if len(keys) != self.rows * KEY_BYTES:
            raise Damaged("it ends too early")
        return keys.reshape(self.rows, KEY_BYTES)

    def values(self) -> np.ndarray:
        """uint8 [rows, row_bytes], mapped, after the whole file was verified. Raises Damaged."""
        with self._opened() as file, _as_damage():
            self._verify(file)
            return mapped(file, self.rows, self.row_bytes)

    def verify(self) -> None:
        """Raises Damaged."""
        with self._opened() as file, _as_damage():
            self._verify(file)

    def _verify(self, file: io.BufferedReader) -> None:
        if hashlib.file_digest(file, "sha256").hexdigest() != self.sha256:
            raise Damaged("its checksum is another")

    @contextlib.contextmanager
    def _opened(self) -> Iterator[io.BufferedReader]:
        with _as_damage(), _open_regular(self.path) as file:
            size, wanted = os.fstat(file.fileno()).st_size, self.rows * (self.row_bytes + KEY_BYTES)
            if size != wanted:
                raise Damaged(f"it has {size:,} bytes instead of {wanted:,}")
            yield file


def remove_shard(path: Path) -> bool:
    """The manifest first: what has none does not exist. Where this may not be the shard stays, to be found damaged
    again: False."""
    try:
        path.with_suffix(".json").unlink(missing_ok=True)
        path.unlink(missing_ok=True)
    except OSError:
        return False
    return True


@contextlib.contextmanager
def _as_damage() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        lost = error.errno in (errno.ENOENT, errno.EIO, errno.ELOOP)
        raise (Damaged if lost else Unreadable)(error.strerror or str(error)) from None


def _open_regular(path: Path) -> io.BufferedReader:
    """For reading; links are not followed, and what is no file (a FIFO would block) is refused."""
    file = open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), "rb")  # noqa: SIM115, PTH123 (given away)
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise Damaged("it is no regular file")
    return file


def mapped(file: io.IOBase, rows: int, row_bytes: int) -> np.ndarray:
    """The first rows of a file, uint8 [rows, row_bytes], in pages that belong to it; the file may be closed."""
    import numpy as np

    pages = mmap.mmap(file.fileno(), rows * row_bytes, prot=mmap.PROT_READ)
    return np.frombuffer(pages, np.uint8).reshape(rows, row_bytes)


def read_json(path: Path, most: int) -> dict[str, Any]:
    """A JSON object from disk. Raises Damaged where it is none, or larger than `most` bytes."""
    with _as_damage(), _open_regular(path) as file:
        data = file.read(most + 1)
    try:
        found = json.loads(data) if len(data) <= most else None
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise Damaged("its description is no JSON object")
    return found


def read_manifest(path: Path) -> Shard:
    """The shard of a manifest, checked for form and for limits. Raises Damaged."""
    found = read_json(path, MANIFEST_BYTES)
    rows, row_bytes, digest = found.get("rows"), found.get("row_bytes"), found.get("sha256")
    if not (type(rows) is int and type(row_bytes) is int and 0 < rows <= SHARD_ROWS and 0 < row_bytes < 1 << 40):
        raise Damaged("its manifest has impossible sizes")
    if found.get("format") != FORMAT or found.get("bytes") != rows * (row_bytes + KEY_BYTES):
        raise Damaged("its manifest contradicts itself")
    if not (isinstance(digest, str) and re.fullmatch("[0-9a-f]{64}", digest)):
        raise Damaged("its manifest has no checksum")
    return Shard(path.with_suffix(".rows"), rows, row_bytes, digest)


def manifests(folder: Path) -> list[Path]:
    """Those of an entry's shards, in the order of their names; [] where there is no such folder."""
    return sorted(path for path in listed(folder) if re.fullmatch(rf"{NAME}\.json", path.name))


def listed(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return []


def remove_leftovers(folder: Path) -> None:
    """What a writer that died left behind: asides, and shards without a manifest."""
    for path in listed(folder):
        aside = re.fullmatch(rf"({NAME}|[0-9a-f]{{16}})\.(rows|json)\.tmp", path.name)
        if aside or (re.fullmatch(rf"{NAME}\.rows", path.name) and not path.with_suffix(".json").exists()):
            with contextlib.suppress(OSError, Damaged):
                _remove_if_dead(path)


def _remove_if_dead(path: Path) -> None:
    with _open_regular(path) as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # OSError: its writer lives
        old = time.time() - os.fstat(file.fileno()).st_mtime > LEFTOVER_AGE_S
        finished = path.suffix == ".rows" and path.with_suffix(".json").exists()  # while it was being looked at
        if old and not finished:
            path.unlink()


def capacity(row_bytes: int) -> int:
    """Rows of a whole shard."""
    return max(1, min(SHARD_ROWS, SHARD_BYTES // (row_bytes + KEY_BYTES)))


class ShardWriter:
    """Writes one shard, rows as they come. `rows`: how many are written; `room`: how many more it takes."""

    def __init__(self, path: Path, row_bytes: int):
        """path: what it will be called, NAME.rows. Raises OSError."""
        self.path, self.rows, self._row_bytes, self._finished = path, 0, row_bytes, False
        self.capacity = capacity(row_bytes)
        self._aside = path.with_name(f"{path.name}.tmp")
        self._file = self._aside.open("x+b", buffering=0)
        with contextlib.suppress(OSError):  # file systems without locks; its age protects it, and shards are small
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        self._digest, self._keys = hashlib.sha256(), list[bytes]()
        self._opened = time.monotonic()

    @property
    def age_s(self) -> float:
        return time.monotonic() - self._opened

    @property
    def room(self) -> int:
        return self.capacity - self.rows

    def append(self, keys: np.ndarray, values: np.ndarray) -> None:
        """keys: uint8 [m, 32], values: uint8 [m, row_bytes]. Raises OSError; `rows` counts what is whole."""
        import numpy as np

        data = np.ascontiguousarray(values).data.cast("B")
        written = 0
        try:
            while written < len(data):
                written += self._file.write(data[written:])
        finally:
            whole = written // self._row_bytes
            self._digest.update(data[: whole * self._row_bytes])
            self._keys.append(keys[:whole].tobytes())
            self.rows += whole

    def values(self) -> np.ndarray:
        """uint8 [rows, row_bytes], mapped, of what is written so far."""
        return mapped(self._file, self.rows, self._row_bytes)

    def finish(self) -> None:
        """Keys, flush, rename; the manifest last. Raises OSError."""
        keys = b"".join(self._keys)
        end = self.rows * self._row_bytes
        self._file.truncate(end)
        self._file.seek(end)
        written = 0
        while written < len(keys):
            written += self._file.write(memoryview(keys)[written:])
        os.fsync(self._file.fileno())
        self._digest.update(keys)
        self._aside.rename(self.path)
        sizes = {"rows": self.rows, "row_bytes": self._row_bytes, "bytes": end + len(keys)}
        write_json(self.path.with_suffix(".json"), {"format": FORMAT, **sizes, "sha256": self._digest.hexdigest()})
        self._finished = True

    def unname(self) -> None:
        """Unless it is finished, nothing is left on disk; its rows stay readable as long as they are mapped."""
        for path in () if self._finished else (self._aside, self.path):
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)

    def close(self) -> None:
        self._file.close()


def write_json(path: Path, values: dict[str, Any], aside: str = "") -> None:
    """Aside, flush, rename. aside: a name of the writer's own, where several write the same. Raises OSError."""
    temporary = path.with_name(f"{aside or path.stem}.json.tmp")
    try:
        with temporary.open("x", encoding="utf-8") as file:
            json.dump(values, file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        temporary.rename(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # else a power cut may undo the renames
    finally:
        os.close(folder)
