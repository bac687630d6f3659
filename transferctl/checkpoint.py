"""Checkpoints: a folder a step, each whole or absent; `best`, `last` and `start` are links to them.

    checkpoints/step-000120/model.safetensors   every weight: backbone.*, heads.target.*, heads.source.*
                            state.safetensors   what training goes on from: the optimizer's state, averages
                            manifest.json       architecture, classes, preprocessing, metrics, SHA-256 of the files
                step-000150-unscored/           between two validations: to resume from, no model to choose

The manifest is written last and the folder renamed into place, so a folder with a proper name is complete. Every file
is on the disk before the manifest that vouches for it, and so is the folder before links point at it.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transferctl import jsontext, signals
from transferctl.errors import CheckpointError, from_os_error
from transferctl.wording import one_line, shown

if TYPE_CHECKING:
    from torch import Tensor

SCHEMA_VERSION = 2
READABLE_VERSIONS = (1, 2)  # 1 has no training state
WEIGHTS_FILE, STATE_FILE, REFERENCES_FILE = "model.safetensors", "state.safetensors", "references.safetensors"
FILES = (WEIGHTS_FILE, STATE_FILE, REFERENCES_FILE)
LINKS = ("best", "last", "start")
UNSCORED = "-unscored"
KEPT = 2  # of those that training can go on from, besides what links point at: should the newest be damaged
NAME = re.compile(rf"step-([0-9]{{6,12}})({UNSCORED})?")
_FIX = "copy the run folder again, or name another checkpoint"


class Damaged(CheckpointError):
    """A checkpoint whose files are not those that its manifest vouches for, or that has no whole manifest: nothing will
    ever read it again."""


@dataclass(frozen=True)
class Checkpoint:
    """state: every weight by name; manifest: what is needed to rebuild the model around them."""

    path: Path
    state: dict[str, Tensor]
    manifest: dict[str, Any]

    def tensors(self, file: str) -> dict[str, Tensor]:
        """Of another of its files, verified; none where it has no such file. Raises CheckpointError."""
        return _verified(self.path, file, self.manifest["files"]) if file in self.manifest["files"] else {}


def name_of(step: int, *, scored: bool = True) -> str:
    return f"step-{step:06d}" + ("" if scored else UNSCORED)


def save(
    run: Path, name: str, files: Mapping[str, Mapping[str, Tensor]], manifest: Mapping[str, Any],
    links: tuple[str, ...] = (),
) -> None:  # fmt: skip
    """Write a checkpoint, point `links` (of LINKS) at it, remove older ones. One that is there already, whole, is this
    very one (a run takes each step once), and only linked. A signal waits.

    files: their tensors, by the file's name. Raises ResourceError where the disk refuses; the older checkpoints then
    stay as they were.
    """
    from safetensors import SafetensorError

    folder = run / "checkpoints" / name
    aside = folder.with_name(f".{name}.tmp")
    with signals.held():
        try:
            if not is_whole(run, name):
                _write(aside, files, manifest)
                shutil.rmtree(folder, ignore_errors=True)
                aside.rename(folder)
                _sync(folder.parent)
            link(run, dict.fromkeys(links, name))
            _prune(folder.parent)
        except (OSError, SafetensorError) as error:
            shutil.rmtree(aside, ignore_errors=True)
            raise from_os_error(_as_os_error(error), folder) from None


def _write(aside: Path, files: Mapping[str, Mapping[str, Tensor]], manifest: Mapping[str, Any]) -> None:
    from safetensors.torch import save_file

    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    facts = {}
    for name, tensors in files.items():
        save_file({key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}, aside / name)
        _sync(aside / name)
        facts[name] = {"sha256": _sha256(aside / name), "bytes": (aside / name).stat().st_size}
    content = {"schema_version": SCHEMA_VERSION, **manifest, "files": facts}
    (aside / "manifest.json").write_text(jsontext.dumps(content, indent=1), encoding="utf-8")
    for name in files:
        shutil.copymode(aside / "manifest.json", aside / name)  # safetensors lets only the owner read it
    _sync(aside / "manifest.json")
    _sync(aside)


def _as_os_error(error: Exception) -> OSError:
    """safetensors' own error has the system's number in its words alone."""
    if isinstance(error, OSError):
        return error
    found = re.search(r"os error (\d+)", str(error))
    code = int(found[1]) if found else errno.EIO
    return OSError(code, os.strerror(code))


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def link(run: Path, names: Mapping[str, str]) -> None:
    """Point links at checkpoints, by name. Raises OSError."""
    folder = run / "checkpoints"
    for key, name in names.items():
        if os.path.lexists(folder / key) and (folder / key).is_symlink() and str((folder / key).readlink()) == name:
            continue
        _point(folder / key, name)
    _sync(folder)


def _point(link: Path, name: str) -> None:
    """Move a link in one step: a reader sees the old target or the new one."""
    aside = link.with_name(f".{link.name}.tmp")
    aside.unlink(missing_ok=True)
    aside.symlink_to(name)
    aside.replace(link)


def _prune(folder: Path) -> None:
    resumable = [entry for entry in _newest_first(folder) if (entry / STATE_FILE).is_file()][:KEPT]
    kept = {(folder / link).resolve().name for link in LINKS} | {entry.name for entry in resumable}
    kept |= set(filter(None, map(_best_of, resumable)))
    for entry in folder.iterdir():
        if entry.name.startswith(("step-", ".step-")) and not entry.is_symlink() and entry.name not in kept:
            _remove(entry)


def _best_of(folder: Path) -> str | None:
    """The checkpoint of the epoch that was best when a training was saved; it needs that to go on."""
    try:
        return name_of(int(_read_manifest(folder)["training"]["best"]["step"]))
    except (CheckpointError, OSError, KeyError, TypeError, ValueError):
        return None


def _remove(folder: Path) -> None:
    """Out of the way first, so that what has a proper name is whole at every instant."""
    if not folder.name.startswith("."):
        aside = folder.with_name(f".{folder.name}.tmp")
        shutil.rmtree(aside, ignore_errors=True)
        folder = folder.rename(aside)
    for _ in range(2):  # what a fault has left of it goes at the second time; a training does not end for it
        shutil.rmtree(folder, ignore_errors=True)


def keep_linked_alone(run: Path) -> None:
    """Of a finished run, which nothing goes on from, what links point at. Raises ResourceError."""
    folder = run / "checkpoints"
    try:
        linked = {(folder / link).resolve().name for link in LINKS}
        for entry in _newest_first(folder):
            if entry.name not in linked:
                _remove(entry)
    except OSError as error:
        raise from_os_error(error, folder) from None


def load(run: Path, which: str = "best") -> Checkpoint:
    """The checkpoint of a run that is called so (a link or its own name), its weights verified against its manifest.
    Raises CheckpointError."""
    folder = run / "checkpoints" / which
    if not run.is_dir():
        raise CheckpointError(f"{run}: no such run folder; `transferctl runs` shows them")
    _refuse_outside(folder)
    try:
        manifest = _read_manifest(folder)
    except FileNotFoundError:
        raise CheckpointError(f"{run}: {_why_there_is_none(run, which)}") from None
    return Checkpoint(folder.resolve(), _verified(folder, WEIGHTS_FILE, manifest["files"]), manifest)


def _refuse_outside(folder: Path) -> None:
    """`best` and its like are links to a step beside them, nowhere else; `checkpoints` may lie on another disk."""
    try:
        outside = folder.resolve(strict=True).parent != folder.parent.resolve()
    except (OSError, RuntimeError):  # missing, or a link to itself: told by who reads it
        return
    if outside:
        raise CheckpointError(f"{folder}: leads out of its run, to {folder.resolve()}; it must be a step beside it")


def _why_there_is_none(run: Path, which: str) -> str:
    """In words, from what the run says of itself."""
    try:
        summary = jsontext.read(run / "summary.json")
    except (OSError, ValueError):
        summary = None
    if not isinstance(summary, dict):
        return "is no run folder (it has no summary.json); `transferctl runs` shows them"
    none = f"has no checkpoint `{which}`"
    if "evaluated" in summary:
        return f"{none}, as it is an evaluation; name the run that it scored, {summary['evaluated']}"
    if "without_model" in summary:
        return f"{none}, as {one_line(summary['without_model'])}"
    if summary.get("status") == "failed":
        return f"{none}, as it failed before it had one: {one_line(summary.get('error', 'see its log.txt'))}"
    more = f" (--resume {run} goes on with it)" if any_of(run) else ""
    return f"{none}, as it was stopped before it had one{more}"


def resumable(run: Path, say: Callable[[str], None]) -> Iterator[tuple[Checkpoint, dict[str, Tensor]]]:
    """What training can go on from, the newest first, and its tensors beside the weights; all verified, and of those
    that are damaged `say` is told.

    Raises CheckpointError for one that cannot be read now, or not by this version: it may be whole."""
    if (run / "checkpoints").is_symlink():
        raise CheckpointError(f"{run / 'checkpoints'}: is a link, which is not written through; make it a folder")
    for folder in _newest_first(run / "checkpoints"):
        try:
            manifest = _read_manifest(folder)
            if manifest["schema_version"] != SCHEMA_VERSION and folder.name != name_of(0):
                message = f"was saved by an older version (schema {manifest['schema_version']}), without what training"
                raise CheckpointError(f"{folder}: {message} goes on from; begin anew, or with --from {run}")
            if "training" not in manifest:
                continue
            found = Checkpoint(folder, _verified(folder, WEIGHTS_FILE, manifest["files"]), manifest)
            yield found, found.tensors(STATE_FILE)
        except (Damaged, FileNotFoundError) as error:
            say(f"{folder.name} cannot be used, falling back to an older one: {error}")


def discard_newer(run: Path, than: str | None, *, whole_ones: bool) -> None:
    """Remove what is newer than the checkpoint that training goes on from (None: all but `start`) and damaged: its
    steps are taken again. whole_ones: others too, because what is trained now is not what they hold. Raises OSError."""
    for folder in _newest_first(run / "checkpoints"):
        if folder.name == than:
            break
        if folder.name != name_of(0) and (whole_ones or not is_whole(run, folder.name)):
            _remove(folder)


def _newest_first(folder: Path) -> list[Path]:
    """Folders with proper names; a scored one is newer than an unscored one of the same step."""
    found = []
    with contextlib.suppress(OSError):
        for entry in folder.iterdir():
            match = NAME.fullmatch(entry.name)
            if match and not entry.is_symlink() and entry.is_dir():
                found.append((int(match[1]), match[2] is None, entry))
    return [entry for *_, entry in sorted(found, reverse=True)]


def any_of(run: Path) -> bool:
    """Whether a run has come to a checkpoint."""
    return bool(_newest_first(run / "checkpoints"))


def exists(run: Path, which: str) -> bool:
    """Whether a run has the named checkpoint, whole or not."""
    return (run / "checkpoints" / which).is_dir()


def is_run(path: Path) -> bool:
    return (path / "checkpoints").is_dir() or (path / "summary.json").is_file()


def _read_manifest(folder: Path) -> dict[str, Any]:
    """Raises FileNotFoundError, CheckpointError."""
    try:
        manifest = jsontext.read(folder / "manifest.json")
        version, files = manifest["schema_version"], manifest["files"]
        _facts(files[WEIGHTS_FILE])
    except FileNotFoundError:
        raise
    except OSError as error:
        raise CheckpointError(f"{folder}/manifest.json: cannot be read: {error.strerror}; {_FIX}") from None
    except (ValueError, KeyError, TypeError) as error:
        raise Damaged(f"{folder}/manifest.json: cannot be read: {error}; {_FIX}") from None
    if version not in READABLE_VERSIONS:
        readable = " and ".join(map(str, READABLE_VERSIONS))
        message = f"written by another version (schema {version}, this one reads {readable}); use that one"
        raise CheckpointError(f"{folder}: {message}")
    if odd := [name for name in files if name not in FILES]:
        raise CheckpointError(
            f"{folder}/manifest.json: lists files that are none of a checkpoint ({shown(odd)}); {_FIX}"
        )
    assert isinstance(manifest, dict)
    return manifest


def _facts(file: Mapping[str, Any]) -> str:
    return str(file["sha256"])


def _verify(folder: Path, name: str, files: Mapping[str, Any]) -> None:
    """Raises CheckpointError where a file is not what the manifest says."""
    path = folder / name
    if not path.is_file():  # a pipe would block
        raise Damaged(f"{path}: is missing, or no regular file; {_FIX}")
    try:
        if _sha256(path) != _facts(files[name]):
            raise Damaged(f"{path}: its SHA-256 is not the manifest's; the file is damaged; {_FIX}")
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}; {_FIX}") from None
    except (KeyError, TypeError) as error:
        raise Damaged(f"{folder}/manifest.json: cannot be read: {error!r}; {_FIX}") from None


def _verified(folder: Path, name: str, files: Mapping[str, Any]) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    _verify(folder, name, files)
    try:
        tensors: dict[str, Tensor] = load_file(folder / name)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{folder / name}: cannot be read: {error}; {_FIX}") from None
    return tensors


def is_whole(run: Path, which: str) -> bool:
    """Whether the named checkpoint is there, and every file of it as its manifest says."""
    folder = run / "checkpoints" / which
    try:
        files = _read_manifest(folder)["files"]
        for name in files:
            _verify(folder, name, files)
    except (CheckpointError, FileNotFoundError):
        return False
    return True


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
