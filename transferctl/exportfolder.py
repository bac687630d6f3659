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
        entries = sorted(entry.name for entry in out.iterdir()) if out.exists() else []
    except NotADirectoryError:
        raise SpecError([Problem("", "is no folder; name another one with --out DIR", str(out))]) from None
    except OSError as error:
        raise from_os_error(error, out, "--out") from None
    except RuntimeError:
        raise SpecError([Problem("", "is a link to itself; name another folder with --out DIR", str(out))]) from None
    if out == Path.cwd():
        raise SpecError([Problem("", "is the working folder, which would be replaced; name one in it", f"--out {out}")])
    if others := [name for name in entries if name not in names]:
        message = (
            f"has what no export writes ({shown(others)}), and would be replaced; choose another folder with --out"
        )
        raise SpecError([Problem("", message, str(out))])
    return out


@contextmanager
def replacing(out: Path) -> Iterator[Path]:
    """An empty folder to fill, which takes the place of `out` at the end; after an error nothing has changed.

    What a killed process left is put right first. Raises LockedError where another process writes it, ResourceError
    where the disk refuses."""
    aside = out.with_name(f".{out.name}.tmp")
    try:
        aside.mkdir(parents=True, exist_ok=True)
        if aside.is_symlink():
            raise CheckpointError(f"{aside}: is a link, which is not written through; remove it")
        try:
            with lock.locked(aside):
                yield from _replaced(out, aside / "new", aside / "old")
        finally:
            with suppress(OSError):  # another process has it
                aside.rmdir()
    except OSError as error:
        raise from_os_error(error, out, "--out") from None


def _replaced(out: Path, new: Path, old: Path) -> Iterator[Path]:
    if old.is_dir() and not out.exists():
        old.rename(out)  # killed between the two renames below
    try:
        _clear(new, old)
        new.mkdir()
        yield new
        _sync(new)
        with signals.held():
            if out.exists():
                out.rename(old)
            new.rename(out)
    finally:
        with signals.held():
            _clear(new, old)


def _clear(*folders: Path) -> None:
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)


def _sync(folder: Path) -> None:
    for path in (*folder.iterdir(), folder):
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
