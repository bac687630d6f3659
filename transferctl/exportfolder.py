"""The folder of an export: written aside, whole, then put in the place of the one before, which stays until then."""

from __future__ import annotations

import os
import shutil
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from transferctl import lock, signals
from transferctl.errors import CheckpointError, Problem, SpecError, from_os_error
from transferctl.wording import shown


def refuse_other(out: Path, names: Collection[str], *, is_chosen: bool) -> Path:
    """Where the export goes, links followed if a person named it. names: those that an export may have.

    Raises SpecError for what is no folder, or has files that no export writes: it is to be replaced as a whole;
    CheckpointError for a link inside the run folder, which may come from anyone."""
    if out.is_symlink() and not is_chosen:
        raise CheckpointError(f"{out}: is a link, which is not written through; name a folder with --out DIR")
    try:
        out = out.resolve() if is_chosen else out
        if out.exists():
            _refuse_foreign(out, names, out)
    except OSError as error:
        raise from_os_error(error, out, "--out") from None
    except RuntimeError:
        raise SpecError([Problem("", "is a link to itself; name another folder with --out DIR", str(out))]) from None
    if out == Path.cwd():
        raise SpecError([Problem("", "is the working folder, which would be replaced; name one in it", f"--out {out}")])
    return out


def _refuse_foreign(folder: Path, names: Collection[str], out: Path) -> None:
    """Raises SpecError where `folder`, which is or was `out`, is no folder or has what no export writes, OSError."""
    if folder.is_symlink() or not folder.is_dir():
        raise SpecError([Problem("", "is no folder; name another one with --out DIR", str(out))])
    if others := sorted(entry.name for entry in folder.iterdir() if entry.name not in names or entry.is_dir()):
        what = f"has what no export writes ({shown(others)}), and would be replaced"
        raise SpecError([Problem("", f"{what}; choose another folder with --out", str(out))])


@contextmanager
def replacing(out: Path, names: Collection[str]) -> Iterator[Path]:
    """An empty folder to fill, which takes the place of `out` at the end; after an error nothing has changed.

    What a killed process left is put right first. Raises LockedError where another process writes it, ResourceError
    where the disk refuses, SpecError as `refuse_other` does: others may have put files there in the meantime."""
    aside = out.with_name(f".{out.name}.tmp")
    try:
        aside.mkdir(parents=True, exist_ok=True)
        if aside.is_symlink():
            raise CheckpointError(f"{aside}: is a link, which is not written through; remove it")
        try:
            with lock.locked(aside):
                yield from _replaced(out, names, aside / "new", aside / "old")
        finally:
            with suppress(OSError):  # another process has it, or an earlier export that could not be put back
                aside.rmdir()
    except OSError as error:
        raise from_os_error(error, out, "--out") from None


def _replaced(out: Path, names: Collection[str], new: Path, old: Path) -> Iterator[Path]:
    if os.path.lexists(old):  # killed between the renames of `_swap`, or after them
        if old.is_dir() and not (old.is_symlink() or os.path.lexists(out)):
            old.rename(out)
        else:
            _refuse_foreign(old, names, old)
            _clear(old)
    try:
        _clear(new)
        new.mkdir()
        yield new
        _sync(*new.iterdir(), new)
        with signals.held():
            _swap(out, names, new, old)
            _clear(old)
    finally:
        with signals.held():
            _clear(new)


def _swap(out: Path, names: Collection[str], new: Path, old: Path) -> None:
    """`new` becomes `out`, which becomes `old`. It is looked at once it is there, where nobody puts anything any more.
    After an error all is where it was: `old` is never removed before `out` is there."""
    try:
        if os.path.lexists(out):
            out.rename(old)
            _refuse_foreign(old, names, out)
        new.rename(out)
        _sync(out.parent)
    except BaseException:
        with suppress(OSError):  # what cannot be put back stays, for the next export to put back
            if not new.exists():
                out.rename(new)
            if os.path.lexists(old):
                old.rename(out)
        raise


def _clear(*folders: Path) -> None:
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)


def _sync(*paths: Path) -> None:
    for path in paths:
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
