"""The SHA-256 of every sample's content: what it is found by in the cache.

Reading all files to know that nothing changed costs as much as decoding small ones, so digests are remembered, by
path, size, times of modification and of change, inode and device. The time of change cannot be set back, as the other
can, by whoever copies or unpacks files. A file that is written anew with the same size within the clock's resolution
could pass for the old one; therefore nothing is remembered of a file that is younger than two seconds. On file systems
whose clocks or inodes are not to be trusted `verify` reads all.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from transferctl import scratch
from transferctl.cache import entries
from transferctl.contracts import BadSample
from transferctl.errors import DataError
from transferctl.images import ImageFiles, read_bytes
from transferctl.wording import printable

if TYPE_CHECKING:
    from transferctl.data import Split

BATCH = 1 << 12  # samples at a time
TASK = 64  # of them, a thread at a time: handing over single small files takes longer than to hash them
RACY_NS = 2 * 10**9  # FAT's times have this resolution; others are finer
ATTEMPTS = 3
BUSY_S = 5.0  # how long another process may hold the memo
MEMO_PART = 10  # the memo may take a tenth of the cache's limit
NONE = bytes(32)
T = TypeVar("T")
R = TypeVar("R")


def digests(split: Split, memo: Memo | None, *, verify: bool = False) -> np.ndarray:
    """uint8 [n, 32], in the split's order; zeros for a sample that cannot be read, which the pass that decodes it will
    name. verify: read every file, whatever the memo says. Raises DataError for a file that changes all the time."""
    found = scratch.empty((len(split), 32), np.uint8)
    of_batch = _of_files if isinstance(split.dataset, ImageFiles) else _of_contents
    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as threads:
        for start in range(0, len(split), BATCH):
            part = slice(start, start + BATCH)
            batch = of_batch(split, split.indices[part].tolist(), memo, verify, threads)
            found[part] = np.frombuffer(b"".join(batch), np.uint8).reshape(-1, 32)
    return found


def _of_contents(
    split: Split, indices: Sequence[int], memo: Memo | None, verify: bool, threads: ThreadPoolExecutor
) -> list[bytes]:
    """Of data that is no folder of files the data set knows the content."""

    def digest(index: int) -> bytes:
        try:
            return bytes.fromhex(split.dataset.content_hash(index))
        except BadSample:
            return NONE

    return list(_on(threads, digest, indices) if split.dataset.reads_files else map(digest, indices))


def _of_files(
    split: Split, indices: Sequence[int], memo: Memo | None, verify: bool, threads: ThreadPoolExecutor
) -> list[bytes]:
    paths = [split.dataset.name(index) for index in indices]
    if memo is None:
        return [digest for digest, _ in _on(threads, digest_of, paths)]
    stamps = [_stamp(path) for path in paths]
    known = {} if verify else memo.find(stamps)
    digests = [known.get(stamp, NONE) for stamp in stamps]
    unknown = [i for i, digest in enumerate(digests) if digest == NONE]
    new: list[tuple[bytes, bytes]] = []
    for i, (digest, stamp) in zip(unknown, _on(threads, digest_of, [paths[i] for i in unknown]), strict=True):
        digests[i] = digest
        new += [(stamp, digest)] if stamp else []
    memo.add(new)
    return digests


def _on(threads: ThreadPoolExecutor, work: Callable[[T], R], items: Sequence[T]) -> Iterator[R]:
    """map, in threads."""
    for results in threads.map(lambda task: [work(item) for item in task], _in_parts(items, TASK)):
        yield from results


def digest_of(path: str) -> tuple[bytes, bytes]:
    """The file's SHA-256 and the stamp to remember it by, empty where it must not be remembered; zeros where it cannot
    be read. Raises DataError for a file that changes all the time."""
    for _ in range(ATTEMPTS):
        before, now = _stamp(path), time.time_ns()
        try:
            content = read_bytes(path)
        except BadSample:
            return NONE, b""
        if _stamp(path) == before:
            return hashlib.sha256(content).digest(), before if _is_settled(path, now) else b""
    raise DataError(f"{printable(path)}: changes while it is read; run again once nothing writes to it any more")


def _stamp(path: str) -> bytes:
    """What tells one content of a file from another, in 16 bytes; empty where there is no such file."""
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return b""
    parts = f"{status.st_size} {status.st_mtime_ns} {status.st_ctime_ns} {status.st_ino} {status.st_dev} "
    where = path if path.startswith("/") else os.path.abspath(path)
    text = parts.encode() + where.encode("utf-8", "surrogateescape")
    return hashlib.blake2b(text, digest_size=16).digest()


def _is_settled(path: str, now_ns: int) -> bool:
    """Whether a later write would surely show in the time of modification; one in the future says nothing."""
    try:
        return os.stat(path).st_mtime_ns < now_ns - RACY_NS
    except OSError:
        return False


class Memo:
    """Digests by stamp, in an SQLite file that processes share. What it cannot do it leaves: a memo may be lost."""

    def __init__(self, path: Path):
        """Raises sqlite3.Error, OSError."""
        self._path, self._damaged = path, False
        self._database = sqlite3.connect(path, timeout=BUSY_S, isolation_level=None)
        try:
            self._database.execute("PRAGMA journal_mode = WAL")
            self._database.execute("PRAGMA synchronous = OFF")  # at worst it is made anew
            self._database.execute("PRAGMA mmap_size = 1073741824")  # pages in the file, not in memory
            self._database.execute(
                "CREATE TABLE IF NOT EXISTS digests (stamp BLOB PRIMARY KEY, digest BLOB NOT NULL) WITHOUT ROWID"
            )
        except BaseException:
            self._database.close()
            raise

    def find(self, stamps: Sequence[bytes]) -> dict[bytes, bytes]:
        """The digests that are known, by stamp."""
        known: dict[bytes, bytes] = {}
        with self._leniently():
            for some in _in_parts(stamps, 500):
                marks = ",".join("?" * len(some))
                query = f"SELECT stamp, digest FROM digests WHERE stamp IN ({marks})"  # noqa: S608 (question marks)
                known.update(self._database.execute(query, some))
        return {stamp: digest for stamp, digest in known.items() if type(digest) is bytes and len(digest) == 32}

    def add(self, new: Sequence[tuple[bytes, bytes]]) -> None:
        """stamp and digest of each."""
        with self._leniently(), self._transaction():
            self._database.executemany("INSERT OR REPLACE INTO digests VALUES (?, ?)", sorted(new))

    @contextlib.contextmanager
    def _leniently(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.OperationalError:  # busy, full, read-only
            pass
        except sqlite3.DatabaseError:
            self._damaged = True

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        self._database.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            self._database.execute("ROLLBACK")
            raise
        self._database.execute("COMMIT")

    def close(self) -> None:
        """What was found damaged is removed: the next one begins anew."""
        self._database.close()
        if self._damaged:
            with contextlib.suppress(OSError):
                entries.remove_memo(self._path.parent)

    def __enter__(self) -> Memo:
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()


def open_memo(root: Path, limit: int) -> Memo | None:
    """The memo in a cache's folder. One that has grown too large, or that is damaged, begins anew."""
    path = root / entries.MEMO
    try:
        root.mkdir(parents=True, exist_ok=True)
        if path.exists() and path.stat().st_size > limit // MEMO_PART:
            entries.remove_memo(root)
        try:
            return Memo(path)
        except sqlite3.DatabaseError as error:
            if isinstance(error, sqlite3.OperationalError):  # busy, read-only, full
                return None
            entries.remove_memo(root)
            return Memo(path)
    except (OSError, sqlite3.Error):
        return None


def _in_parts(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]
