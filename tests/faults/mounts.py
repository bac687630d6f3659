"""Small disks in memory, full or read-only; for those who may mount."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from trials import Outcome, Reference, Trials

ROOMY = 1 << 30


def can_mount(folder: Path) -> bool:
    try:
        with _disk(folder, ROOMY):
            return True
    except (OSError, subprocess.CalledProcessError):
        return False


def on_full_disk(trials: Trials, reference: Reference, folder: Path, n_bytes: int) -> Outcome:
    """A disk of so many bytes; it grows before the run is carried on."""
    with _disk(folder, n_bytes) as place:
        mend = partial(_remount, place / "root", f"size={ROOMY}")
        return trials.on(reference, f"a disk of {n_bytes >> 10:,} KiB", place, mend)


def on_read_only_disk(trials: Trials, reference: Reference, folder: Path) -> Outcome:
    """A disk that nobody may write to, not even root; one may before the run is carried on."""
    with _disk(folder, ROOMY) as place:
        _remount(place / "root", "ro")
        return trials.on(reference, "a read-only disk", place, partial(_remount, place / "root", "rw"))


@contextmanager
def _disk(folder: Path, n_bytes: int) -> Iterator[Path]:
    """A folder in `folder` whose `root` is a tmpfs. Raises CalledProcessError where that is not allowed."""
    with tempfile.TemporaryDirectory(dir=folder) as place:
        root = Path(place) / "root"
        root.mkdir()
        _call("mount", "-t", "tmpfs", "-o", f"size={n_bytes}", "tmpfs", root)
        try:
            yield Path(place)
        finally:
            _call("umount", "--lazy", root)


def _remount(root: Path, options: str) -> None:
    _call("mount", "-o", f"remount,{options}", root)


def _call(*words: object) -> None:
    subprocess.run([str(word) for word in words], check=True, capture_output=True)
