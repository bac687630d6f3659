"""Checkpoints: a folder a step, each whole or absent; `best`, `last` and `start` are links to them.

    checkpoints/step-000120/model.safetensors   every weight: backbone.*, heads.target.*, heads.source.*
                            manifest.json       architecture, classes, preprocessing, metrics, SHA-256 of the files

The manifest is written last and the folder renamed into place, so a folder with a proper name is complete.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transferctl import jsontext
from transferctl.errors import CheckpointError, from_os_error
from transferctl.wording import shown

if TYPE_CHECKING:
    from torch import Tensor

SCHEMA_VERSION = 1
WEIGHTS_FILE = "model.safetensors"
LINKS = ("best", "last", "start")
_FIX = "copy the run folder again, or name another checkpoint"


@dataclass(frozen=True)
class Checkpoint:
    """state: every weight by name; manifest: what is needed to rebuild the model around them."""

    path: Path
    state: dict[str, Tensor]
    manifest: dict[str, Any]


def save(
    run: Path, step: int, state: Mapping[str, Tensor], manifest: Mapping[str, Any], links: tuple[str, ...]
) -> None:
    """Write a checkpoint, point `links` (of LINKS) at it, remove those that no link points at.

    Raises ResourceError where the disk refuses; the older checkpoints then stay as they were.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    folder = run / "checkpoints" / f"step-{step:06d}"
    aside = folder.with_name(f".{folder.name}.tmp")
    try:
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
        save_file({name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}, aside / WEIGHTS_FILE)
        _sync(aside / WEIGHTS_FILE)
        files = {
            WEIGHTS_FILE: {"sha256": _sha256(aside / WEIGHTS_FILE), "bytes": (aside / WEIGHTS_FILE).stat().st_size}
        }
        content = {"schema_version": SCHEMA_VERSION, **manifest, "step": step, "files": files}
        (aside / "manifest.json").write_text(json.dumps(content, ensure_ascii=False, indent=1), encoding="utf-8")
        shutil.copymode(aside / "manifest.json", aside / WEIGHTS_FILE)  # safetensors lets only the owner read it
        _sync(aside / "manifest.json")
        _sync(aside)
        assert not folder.exists(), "a step is saved once"
        aside.rename(folder)
        for link in links:
            _point(folder.parent / link, folder.name)
        _sync(folder.parent)
        _prune(folder.parent)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(aside, ignore_errors=True)
        if isinstance(error, SafetensorError):
            code = errno.ENOSPC if f"os error {errno.ENOSPC}" in str(error) else errno.EIO
            error = OSError(code, os.strerror(code))
        raise from_os_error(error, folder) from None


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _point(link: Path, name: str) -> None:
    """Move a link in one step: a reader sees the old target or the new one."""
    aside = link.with_name(f".{link.name}.tmp")
    aside.unlink(missing_ok=True)
    aside.symlink_to(name)
    aside.replace(link)


def _prune(folder: Path) -> None:
    kept = {(folder / link).resolve().name for link in LINKS}
    for entry in folder.iterdir():
        if entry.name.startswith(("step-", ".step-")) and not entry.is_symlink() and entry.name not in kept:
            shutil.rmtree(entry)


def load(run: Path, which: str = "best") -> Checkpoint:
    """The named checkpoint of a run, verified against its manifest. Raises CheckpointError."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    folder = run / "checkpoints" / which
    if not run.is_dir():
        raise CheckpointError(f"{run}: no such run folder; `ls runs` shows them")
    _refuse_outside(folder)
    try:
        manifest = jsontext.read(folder / "manifest.json")
        files, version = manifest["files"], manifest["schema_version"]
        expected = files[WEIGHTS_FILE]["sha256"]
        if odd := [name for name in files if Path(name).name != name]:
            raise CheckpointError(f"{folder}/manifest.json: lists files that are not beside it ({shown(odd)}); {_FIX}")
    except FileNotFoundError:
        raise CheckpointError(
            f"{run}: has no checkpoint `{which}`; it is an evaluation, or was stopped before its first epoch"
        ) from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{folder}/manifest.json: cannot be read: {error}; {_FIX}") from None
    if version != SCHEMA_VERSION:
        raise CheckpointError(
            f"{folder}: written by another version (schema {version}, this one reads {SCHEMA_VERSION}); use that one"
        )
    path = folder / WEIGHTS_FILE
    if not path.is_file():  # a pipe would block
        raise CheckpointError(f"{path}: is missing, or no regular file; {_FIX}")
    try:
        if _sha256(path) != expected:
            raise CheckpointError(f"{path}: its SHA-256 is not the manifest's; the file is damaged; {_FIX}")
        return Checkpoint(folder.resolve(), load_file(path), manifest)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path}: cannot be read: {error}; {_FIX}") from None


def _refuse_outside(folder: Path) -> None:
    """`best` and its like are links to a step beside them, nowhere else; `checkpoints` may lie on another disk."""
    try:
        outside = folder.resolve(strict=True).parent != folder.parent.resolve()
    except (OSError, RuntimeError):  # missing, or a link to itself: told by who reads it
        return
    if outside:
        raise CheckpointError(f"{folder}: leads out of its run, to {folder.resolve()}; it must be a step beside it")


def exists(run: Path, which: str) -> bool:
    """Whether a run has the named checkpoint, whole or not."""
    return (run / "checkpoints" / which).is_dir()


def is_run(path: Path) -> bool:
    return (path / "checkpoints").is_dir() or (path / "summary.json").is_file()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
