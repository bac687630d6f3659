"""One process at a time writes a run: a lock on RUN/lock, which ends with its process, however that ends.

The file says who holds it, `{"pid", "host", "since"}`, for people; what counts is the lock of the operating system
(flock). On a file system that has none, the process named there counts: one of this host that is gone has left the
lock behind, one of another host cannot be looked at.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

from transferctl.errors import LockedError, from_os_error
from transferctl.forked import closed_in_children
from transferctl.wording import printable

NAME = "lock"
OWNER_BYTES = 4096
PATIENCE_S = 0.2  # whoever only looks whether it is held, holds it for a moment
NO_LOCKS_HERE = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)


@contextmanager
def locked(run: Path) -> Iterator[str]:
    """Hold the run's lock. Gives what there is to say of an owner who left it behind, or nothing.

    Raises LockedError, which names the owner, where another process holds it; ResourceError where it cannot be made.
    """
    path = run / NAME
    try:
        descriptor = _take(path)
    except OSError as error:
        raise from_os_error(error, path) from None
    closed_in_children.add(descriptor)
    try:
        left_by = _owner(path)
        _say_owner(descriptor)
        yield f"{path} was left behind by {left_by}; taken over" if left_by else ""
    finally:
        closed_in_children.discard(descriptor)
        with contextlib.suppress(OSError):
            path.unlink()  # while it is ours: whoever opened it before sees that it is another file
        os.close(descriptor)


def held_by(run: Path) -> LockedError:
    """The error that names who holds a run's lock."""
    owner = _owner(run / NAME) or "another process"
    message = f"{run}: {owner} writes this run; wait for it, or end it"
    if _read(run / NAME)[1] not in ("", socket.gethostname()):
        message += f" there. If it is gone, remove {run / NAME}"
    return LockedError(message)


def is_held(run: Path) -> bool:
    """Whether some process writes the run now."""
    try:
        descriptor = os.open(run / NAME, os.O_RDWR)
    except OSError:
        return False
    try:
        return not _lock(descriptor, run / NAME)
    finally:
        os.close(descriptor)


def _take(path: Path) -> int:
    give_up = time.monotonic() + PATIENCE_S
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
        if not _lock(descriptor, path):
            os.close(descriptor)
            if time.monotonic() > give_up:
                raise held_by(path.parent)
            time.sleep(PATIENCE_S / 10)
            continue
        with contextlib.suppress(OSError):
            if os.fstat(descriptor).st_ino == path.stat().st_ino:
                return descriptor
        os.close(descriptor)  # its owner ended and removed it between our opening and locking it


def _lock(descriptor: int, path: Path) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno in NO_LOCKS_HERE and not _owner_lives(path)
    return True


def _owner_lives(path: Path) -> bool:
    """By what the file says; another host's processes are taken to live."""
    pid, host = _read(path)
    if pid is None or pid == os.getpid():
        return False
    if host != socket.gethostname():
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def _owner(path: Path) -> str:
    pid, host = _read(path)
    return "" if pid is None else f"process {pid} on {printable(host)}"


def _read(path: Path) -> tuple[int | None, str]:
    try:
        with path.open(encoding="utf-8") as file:
            owner = json.loads(file.read(OWNER_BYTES))
        return int(owner["pid"]), str(owner["host"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None, ""


def _say_owner(descriptor: int) -> None:
    owner = {"pid": os.getpid(), "host": socket.gethostname(), "since": f"{datetime.now().astimezone():%FT%T%z}"}
    with contextlib.suppress(OSError):  # a full disk: the lock holds all the same, and the run will say so
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps(owner).encode(), 0)
