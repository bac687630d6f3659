"""The file that predictions go to: whole at the end, safe on the way, and gone on with after any ending.

    FILE.part               the rows so far; it becomes FILE once there are no more to come
    .FILE.progress.json     what FILE is made by, how far it is, how many of which class

Rows are not in FILE itself before they are all there, so that whoever waits for FILE never takes a part for the whole.
What the progress says is on the disk; what FILE.part has beyond it was being written when the process was killed, and
is cut off at a resume. So rows come again batch by batch as they would have: the last bits of a probability depend on
which images are computed together. The progress stays beside FILE, to say what made it.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import stat
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from transferctl import jsontext, runs, signals
from transferctl.errors import CheckpointError, LockedError, Problem, ResourceError, SpecError
from transferctl.predictionrows import PathPrediction
from transferctl.wording import printable, shown

SCHEMA_VERSION = 1
SAVE_INTERVAL_S = 1.0  # a save waits for the disk twice; a killed process costs no more than that
NAMED = 20  # bad files that are kept by name


@dataclass
class Tally:
    """What the rows so far are: counts of each class, of all rows, of bad files, of whom the first are named; and a
    digest of their paths."""

    counts: list[int]
    rows: int = 0
    bad: int = 0
    first_bad: list[list[str]] = field(default_factory=list)
    paths: str = ""

    def add(self, predictions: Sequence[PathPrediction]) -> None:
        self.rows += len(predictions)
        self.paths = chained(self.paths, (one.path for one in predictions))
        for one in predictions:
            if not one.error:
                self.counts[one.ranked[0][0]] += 1
                continue
            self.bad += 1
            if len(self.first_bad) < NAMED:
                self.first_bad.append([one.path, one.error])


def chained(digest: str, paths: Iterable[str]) -> str:
    """The digest of a list of paths from that of its beginning and what follows."""
    for path in paths:
        digest = hashlib.sha256(digest.encode() + os.fsencode(path)).hexdigest()
    return digest


@dataclass(frozen=True)
class Begun:
    """What .FILE.progress.json says. made_by: what the rows depend on besides the paths."""

    made_by: Mapping[str, Any]
    is_finished: bool
    size: int
    tally: Tally


class PredictionFile:
    """FILE, what is there of it. Raises SpecError (exit 2) where it cannot become what is asked for."""

    def __init__(self, path: Path, *, resume: bool, overwrite: bool):
        self.path, self.overwrite = path, overwrite
        self.safe_rows = 0  # that a resume would find
        try:
            self._refuse_odd()
            self.part = path.with_name(f"{path.name}.part")
            self.progress = path.with_name(f".{path.name}.progress.json")
            if not (resume or overwrite):
                self._refuse_existing()
        except OSError as error:
            raise _usage(path, f"cannot be looked for: {error.strerror}") from None

    def _refuse_odd(self) -> None:
        if self.path.is_dir():
            raise _usage(self.path, "is a folder; name a file in it")
        if self.path.exists() and not self.path.is_file():
            raise _usage(self.path, "is no regular file; without --out rows go to stdout")
        if not self.path.parent.is_dir():
            raise _usage(self.path, f"there is no folder {printable(str(self.path.parent))}; make it first")

    def _refuse_existing(self) -> None:
        if os.path.lexists(self.path):
            raise _usage(self.path, "exists; --overwrite replaces it, --resume goes on with what was begun")
        if os.path.lexists(self.part):
            raise _usage(self.path, "was begun; --resume goes on with it, --overwrite begins anew")

    def begun(self, made_by: Mapping[str, Any], classes: int) -> Begun:
        """How far it is; not begun where there is nothing to go on with. Raises CheckpointError where it was begun in
        another way, or is not what its progress says."""
        anew = Begun(made_by, is_finished=False, size=0, tally=Tally([0] * classes))
        rows = self.part if os.path.lexists(self.part) else self.path
        if self.overwrite or not os.path.lexists(rows):
            return anew
        try:
            if not stat.S_ISREG(rows.lstat().st_mode):
                raise self.error(f"{printable(rows.name)} is no regular file")
            size = rows.stat().st_size
        except OSError as error:
            raise self.error(f"{printable(rows.name)} cannot be looked at: {error.strerror}") from None
        if rows == self.part and not size:  # killed before it came to its first row
            return anew
        found = self._read_progress(classes)
        if found is None:
            raise self.error("was not begun by predict, or its progress is gone")
        if differing := [key for key in {**found.made_by, **made_by} if found.made_by.get(key) != made_by.get(key)]:
            was = "; ".join(f"{key}: {found.made_by.get(key)} then, {made_by.get(key)} now" for key in differing)
            raise self.error(f"was begun by something else ({printable(was)})")
        if rows == self.path and not found.is_finished:
            raise self.error(f"{printable(self.part.name)} is gone, which had its rows")
        if size < found.size or (found.is_finished and size != found.size):
            raise self.error(f"{printable(rows.name)} has {size:,} bytes of the {found.size:,} that were written")
        return found if found.tally.rows else anew

    def _read_progress(self, classes: int) -> Begun | None:
        """None where there is none that is fit to be read."""
        try:
            values = jsontext.read(self.progress)
            made_by, size, tally = dict(values["made_by"]), values["size"], Tally(**values["tally"])
            is_sound = values["schema_version"] == SCHEMA_VERSION and isinstance(values["is_finished"], bool)
            counts = [size, tally.rows, tally.bad, *tally.counts]
            is_sound &= all(isinstance(n, int) and not isinstance(n, bool) and n >= 0 for n in counts)
            is_sound &= len(tally.counts) == classes and isinstance(tally.paths, str)
            tally.first_bad = [[str(name), str(reason)] for name, reason in tally.first_bad]
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None
        return Begun(made_by, values["is_finished"], size, tally) if is_sound else None

    @contextmanager
    def growing(self, begun: Begun, header: bytes) -> Iterator[Growing]:
        """Rows are added inside. At the end it becomes FILE; where it ends otherwise, what is whole stays to be gone on
        with. Raises LockedError, ResourceError."""
        with contextlib.ExitStack() as stack:
            with self._refused():
                descriptor = stack.enter_context(_opened(self.part, begun.size))
                growing = Growing(self, descriptor, begun)
                growing.begin(header)
            try:
                yield growing
            except BaseException:
                with contextlib.suppress(ResourceError):
                    growing.save()
                raise
            growing.save(is_finished=True)
            self.finish()

    def finish(self) -> None:
        """The last step, if it is still to be taken. Raises ResourceError."""
        with self._refused(), contextlib.suppress(FileNotFoundError):
            self.part.replace(self.path)

    @contextmanager
    def _refused(self) -> Iterator[None]:
        fixes = {errno.ENOSPC: "free some space", errno.EDQUOT: "free some of your quota"}
        try:
            yield
        except OSError as error:
            fix = fixes.get(error.errno or 0, "choose another place for --out")
            message = f"{printable(str(self.path))}: cannot write: {error.strerror or error}; {fix}"
            raise ResourceError(message) from None

    def error(self, message: str) -> CheckpointError:
        return CheckpointError(f"--resume: {printable(str(self.path))}: {message}; --overwrite begins anew")


class Growing:
    """FILE.part while rows are added to it."""

    def __init__(self, target: PredictionFile, descriptor: int, begun: Begun):
        self._target, self._descriptor, self._made_by = target, descriptor, begun.made_by
        self.tally, self._size, self._saved = begun.tally, begun.size, time.monotonic()

    def begin(self, header: bytes) -> None:
        """What is not known to be whole goes; before there are rows, it is said that they are ours. Raises OSError."""
        if not self.tally.rows:
            self._save(is_finished=False)
        self._target.safe_rows = self.tally.rows
        os.ftruncate(self._descriptor, self._size)
        os.lseek(self._descriptor, self._size, os.SEEK_SET)
        if not self.tally.rows:
            self._write(header)

    def add(self, rows: bytes, predictions: Sequence[PathPrediction]) -> None:
        """A batch, whole, whatever signal comes. Raises ResourceError."""
        with signals.held(), self._target._refused():
            self._write(rows)
            self.tally.add(predictions)
        if time.monotonic() - self._saved >= SAVE_INTERVAL_S:
            self.save()

    def save(self, *, is_finished: bool = False) -> None:
        """Rows first, then that they are there. Raises ResourceError."""
        with signals.held(), self._target._refused():
            os.fsync(self._descriptor)
            self._save(is_finished)
        self._saved = time.monotonic()

    def _write(self, content: bytes) -> None:
        left = memoryview(content)
        while left:
            left = left[os.write(self._descriptor, left) :]
        self._size += len(content)

    def _save(self, is_finished: bool) -> None:
        progress = Begun(self._made_by, is_finished, self._size, self.tally)
        values = {"schema_version": SCHEMA_VERSION, **asdict(progress)}
        runs.write_atomically(self._target.progress, jsontext.dumps(values) + "\n")
        self._target.safe_rows = self.tally.rows


@contextmanager
def _opened(part: Path, size: int) -> Iterator[int]:
    """Its descriptor, alone. size: bytes that it must have already. A link is not followed: it may be there to have
    another file overwritten. Raises OSError, LockedError."""
    flags = os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | (0 if size else os.O_CREAT)
    descriptor = os.open(part, flags, 0o666)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise LockedError(f"{printable(str(part))}: another process writes it; wait for it, or end it") from None
        except OSError:
            pass  # a file system without locks
        status = os.fstat(descriptor)
        if status.st_ino != part.stat().st_ino or status.st_size < size or not stat.S_ISREG(status.st_mode):
            raise LockedError(f"{printable(str(part))}: another process has just written it; try again")
        yield descriptor
    finally:
        os.close(descriptor)


def _usage(path: Path, message: str) -> SpecError:
    return SpecError([Problem("", message, f"--out {shown([str(path)])}")])
