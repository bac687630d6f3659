"""The cache's folder: an entry a product, locks that keep those in use, and their removal.

    vFORMAT/KEY/entry.json   what it is, for people: title, identity, key, format
    vFORMAT/KEY/lock         shared by those who use the entry, taken alone by whoever removes it; its time of
                             modification is when the entry was used last
    vFORMAT/KEY/NAME.*       shards

Nothing else is ever removed. Every format keeps to this much, so that each can count and remove the others' entries.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transferctl.cache.shards import (
    FORMAT,
    NAME,
    Damaged,
    listed,
    manifests,
    read_json,
    read_manifest,
    write_json,
)
from transferctl.errors import Problem, SpecError
from transferctl.wording import printable

LOCK, DESCRIPTION = "lock", "entry.json"
MEMO = "digests.sqlite"  # beside the entries, see hashes.py
DESCRIPTION_BYTES = 1 << 20
OURS = re.compile(rf"{LOCK}|{re.escape(DESCRIPTION)}|{NAME}\.(rows|json)(\.tmp)?|[0-9a-f]{{16}}\.json\.tmp")


@dataclass(frozen=True)
class Entry:
    """used: when last, seconds since 1970; bytes: all its files together."""

    folder: Path
    format: int
    title: str
    bytes: int
    used: float

    @property
    def key(self) -> str:
        return self.folder.name

    def rows(self) -> int:
        """Of all whole shards, as their manifests have it."""
        total = 0
        for manifest in manifests(self.folder) if self.format == FORMAT else []:
            with contextlib.suppress(Damaged):
                total += read_manifest(manifest).rows
        return total


def root_of(path: Path | str) -> Path:
    """The folder that is meant by a path or by auto; it need not be there. Raises SpecError where it is a file."""
    given = os.environ.get("TRANSFERCTL_CACHE")
    key, where = ("cache.path", "") if isinstance(path, Path) else ("", "TRANSFERCTL_CACHE" if given else "cache")
    try:
        root = path if isinstance(path, Path) else Path(given).expanduser() if given else _users_own()
    except RuntimeError:
        message = "this user has no home folder; name a folder as cache.path, or in TRANSFERCTL_CACHE"
        raise SpecError([Problem(key, message, where)]) from None
    if root.exists() and not root.is_dir():
        message = f"{printable(str(root))} is a file; the cache needs a folder"
        raise SpecError([Problem(key, message, where)])
    return root.absolute()


def _users_own() -> Path:
    """By the XDG base directory specification, which has relative paths ignored. Raises RuntimeError without a home."""
    base = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return (base if base.is_absolute() else Path.home() / ".cache") / "transferctl"


def folder_of(root: Path, key: str) -> Path:
    return root / f"v{FORMAT}" / key


def found(root: Path) -> list[Entry]:
    """Every entry of every format; those of other formats first, then by when they were used last."""
    entries = [
        entry
        for version in listed(root)
        if re.fullmatch(r"v[0-9]{1,6}", version.name) and not version.is_symlink()
        for folder in listed(version)
        if re.fullmatch("[0-9a-f]{64}", folder.name) and (entry := _entry(folder, int(version.name[1:])))
    ]
    return sorted(entries, key=lambda entry: (entry.format == FORMAT, entry.used))


def _entry(folder: Path, version: int) -> Entry | None:
    """None where it is none of ours: a link, or a folder of another format that does not say that it is one."""
    if folder.is_symlink() or not folder.is_dir():
        return None
    try:
        described = read_json(folder / DESCRIPTION, DESCRIPTION_BYTES)
    except Damaged:
        described = {}
    ours = (described.get("format"), described.get("key")) == (version, folder.name)
    if not ours and version != FORMAT:
        return None
    size, used = 0, 0.0
    for path in listed(folder):
        with contextlib.suppress(OSError):  # gone since
            status = path.lstat()
            size += status.st_size
            used = status.st_mtime if path.name == LOCK else used
    title = described.get("title") if ours else None
    return Entry(folder, version, title if isinstance(title, str) else "(its description is damaged)", size, used)


def describe(folder: Path, key: str, title: str, identity: Mapping[str, Any], row_bytes: int) -> None:
    """Write entry.json, unless it is there. Raises OSError."""
    try:
        if read_json(folder / DESCRIPTION, DESCRIPTION_BYTES).get("key") == key:
            return
    except Damaged:
        pass
    values = {"format": FORMAT, "key": key, "title": title, "row_bytes": row_bytes, "identity": identity}
    write_json(folder / DESCRIPTION, values, aside=secrets.token_hex(8))


def use(folder: Path, *, create: bool) -> int | None:
    """A descriptor whose shared lock keeps the entry from being removed until it is closed. None where there is no
    such entry (or, with `create`, never). Raises OSError, for one where the folder may not be made."""
    if create:
        folder.mkdir(parents=True, exist_ok=True)
    if folder.is_symlink() or folder.parent.is_symlink():
        raise OSError(0, f"{folder} is a link, which is not followed")
    for _ in range(100):
        try:
            lock = _shared_lock(folder / LOCK, create or folder.is_dir())
        except FileNotFoundError:
            if not create:
                return None
            folder.mkdir(parents=True, exist_ok=True)  # removed since
            continue
        if lock is not None:
            with contextlib.suppress(OSError):  # read-only, or another user's
                os.utime(lock)
            return lock
    raise OSError(0, f"{folder} is being removed and made again all the time")


def _shared_lock(path: Path, create: bool) -> int | None:
    """None where the file was removed between its opening and its locking."""
    lock = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | (os.O_CREAT if create else 0), 0o666)
    try:
        fcntl.flock(lock, fcntl.LOCK_SH)
    except OSError:  # a file system without locks: entries there are not protected while they are used
        return lock
    with contextlib.suppress(FileNotFoundError):
        if os.path.samestat(os.fstat(lock), path.lstat()):
            return lock
    os.close(lock)
    return None


def memo_bytes(root: Path) -> int:
    total = 0
    for path in _memo_files(root):
        with contextlib.suppress(OSError):
            total += path.lstat().st_size
    return total


def remove_memo(root: Path) -> None:
    """Raises OSError."""
    for path in _memo_files(root):
        path.unlink(missing_ok=True)


def _memo_files(root: Path) -> list[Path]:
    """The database last: SQLite would play an older log back into a new one."""
    return [root / f"{MEMO}{suffix}" for suffix in ("-wal", "-shm", "")]


def is_free(entry: Entry) -> bool:
    """Whether nobody uses it now."""
    lock = _exclusive_lock(entry)
    if lock is not None:
        os.close(lock)
    return lock is not None


def _exclusive_lock(entry: Entry) -> int | None:
    try:
        lock = os.open(entry.folder / LOCK, os.O_RDWR | os.O_NOFOLLOW | os.O_CREAT, 0o666)
    except OSError:  # read-only, or another user's: it cannot be removed either
        return None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.path.samestat(os.fstat(lock), (entry.folder / LOCK).lstat()):  # else removed since, and made anew
            return lock
    except OSError:
        pass
    os.close(lock)
    return None


def remove(entry: Entry) -> bool:
    """Whether it was removed: not where somebody uses it, or where it may not be. Manifests go first, the lock last,
    so that what an interruption leaves is a smaller entry. Files that are none of ours stay, and so the folder."""
    lock = _exclusive_lock(entry)
    if lock is None:
        return False
    try:
        order = {".json": 0, DESCRIPTION: 2, LOCK: 3}
        files = [path for path in listed(entry.folder) if path.is_symlink() or not path.is_dir()]
        paths = [path for path in files if OURS.fullmatch(path.name) or entry.format != FORMAT]
        for path in sorted(paths, key=lambda path: order.get(path.name, order.get(path.suffix, 1))):
            path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            entry.folder.rmdir()
            if entry.format != FORMAT:  # ours may be filled by another process just now
                entry.folder.parent.rmdir()
        return True
    except OSError:
        return False
    finally:
        os.close(lock)
