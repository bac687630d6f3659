"""One product's entry in the cache as a process that uses it sees it, and the room that it may take."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transferctl.cache import entries
from transferctl.cache.shards import (
    FORMAT,
    KEY_BYTES,
    Damaged,
    Shard,
    ShardWriter,
    Unreadable,
    capacity,
    manifests,
    read_manifest,
    remove_leftovers,
    remove_shard,
)
from transferctl.sizes import in_words
from transferctl.wording import printable

if TYPE_CHECKING:
    import numpy as np

DISK_MARGIN = 1 << 30  # bytes that are left free, or a twentieth of a smaller disk
ENTRY_BYTES = 1 << 14  # description, lock, manifests


@dataclass(frozen=True)
class Product:
    """What a row is. identity: everything that a row depends on besides its key (architecture, hash of the weights,
    preprocessing, versions, precision, …), JSON values; title: for people."""

    identity: Mapping[str, Any]
    row_bytes: int
    title: str

    @cached_property
    def key(self) -> str:
        """SHA-256 of all that a row depends on, the form of the cache included."""
        parts = {"format": FORMAT, "identity": self.identity, "row_bytes": self.row_bytes}
        text = json.dumps(parts, sort_keys=True, separators=(",", ":"), allow_nan=False)
        return hashlib.sha256(text.encode()).hexdigest()


class NoRoom(OSError):
    """The cache's limit, or the disk, leaves no room for more."""


@dataclass
class OpenEntry:
    """Protected from removal from the moment that it exists until it is closed. warn: says what was found damaged."""

    root: Path
    limit: int
    product: Product
    warn: Callable[[str], None]
    _lock: int | None = None
    _writer: str = field(default_factory=lambda: secrets.token_hex(8))
    _written: int = 0

    def __post_init__(self) -> None:
        self._lock = self._use(create=False)
        if self._lock is not None:
            remove_leftovers(self._folder)

    @property
    def _folder(self) -> Path:
        return entries.folder_of(self.root, self.product.key)

    def _use(self, *, create: bool) -> int | None:
        try:
            return entries.use(self._folder, create=create)
        except OSError:
            if create:
                raise
            return None  # told where it is to be written

    def shards(self) -> Iterator[tuple[Shard, np.ndarray]]:
        """Each with its keys, uint8 [rows, 32]; neither is verified yet. Damaged ones are said and removed."""
        for path in manifests(self._folder) if self._lock is not None else []:
            try:
                shard = read_manifest(path)
                if shard.row_bytes != self.product.row_bytes:
                    raise Damaged(f"its rows have {shard.row_bytes:,} bytes")
                keys = shard.keys()
            except Damaged as damage:
                if path.exists():  # else another process has removed it since
                    self.drop(path.with_suffix(".rows"), damage)
                continue
            yield shard, keys

    def drop(self, path: Path, damage: Damaged) -> None:
        """Say what is wrong with a shard and remove it."""
        drop(path, self.product.row_bytes, damage, self.warn)

    def new_shard(self, most_rows: int) -> ShardWriter:
        """For so many rows, or as many as a shard takes. Raises OSError where it cannot be written, or has no room."""
        if self._lock is None:
            self._lock = self._use(create=True)
        writer = f"{self._writer}-{self._written:04d}.rows"
        make_room(self.root, self.limit, shard_bytes(most_rows, self.product.row_bytes))
        entries.describe(
            self._folder, self.product.key, self.product.title, self.product.identity, self.product.row_bytes
        )
        self._written += 1
        return ShardWriter(self._folder / writer, self.product.row_bytes)

    def close(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
        self._lock = None


def drop(path: Path, row_bytes: int, damage: Damaged, warn: Callable[[str], None]) -> None:
    """Say that a shard is damaged, and remove it; one that merely cannot be read stays."""
    try:
        rows = f"its {read_manifest(path.with_suffix('.json')).rows:,} rows"
    except Damaged:
        rows = "its rows"
    if isinstance(damage, Unreadable):
        warn(f"{printable(str(path))}: cannot be read ({damage}); {rows} are computed again")
        return
    warn(f"{printable(str(path))}: damaged ({damage}); {rows} are computed again")
    remove_shard(path)


def shard_bytes(most_rows: int, row_bytes: int) -> int:
    return min(most_rows, capacity(row_bytes)) * (row_bytes + KEY_BYTES) + ENTRY_BYTES


def disk_room(folder: Path) -> int:
    """Bytes that may be written to its disk, less a margin; the folder need not be there. Raises OSError."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    usage = shutil.disk_usage(folder)
    return usage.free - min(DISK_MARGIN, usage.total // 20)


def lacking(root: Path, limit: int, n_bytes: int, kept: int) -> int:
    """How many bytes have to go, so that the limit and the disk allow so many more. kept: what the cache has."""
    return max(0, kept + n_bytes - limit, n_bytes - disk_room(root))


def total_bytes(root: Path) -> tuple[int, list[entries.Entry]]:
    """Of all entries and of the memo of digests; and the entries, in the order in which they are removed."""
    found = entries.found(root)
    return entries.memo_bytes(root) + sum(entry.bytes for entry in found), found


def make_room(root: Path, limit: int, n_bytes: int) -> None:
    """Remove the entries that were not used for longest, if that makes room for so many bytes; else none.

    Raises NoRoom; OSError where the folder cannot be looked at.
    """
    kept, found = total_bytes(root)
    lack = lacking(root, limit, n_bytes, kept)
    if not lack:
        return
    free = [entry for entry in found if entries.is_free(entry)]
    if sum(entry.bytes for entry in free) < lack:
        raise _no_room(root, limit, n_bytes, kept)
    for entry in free:
        lack -= entry.bytes if entries.remove(entry) else 0
        if lack <= 0:
            return
    raise _no_room(root, limit, n_bytes, kept)  # somebody began to use them


def _no_room(root: Path, limit: int, n_bytes: int, kept: int) -> NoRoom:
    if kept + n_bytes > limit:
        return NoRoom(errno.EDQUOT, f"its limit of {in_words(limit)} is reached, and all that is left is in use")
    return NoRoom(errno.ENOSPC, "the disk is nearly full")
