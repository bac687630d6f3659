"""A folder of images: each folder in it is a class, its images lie in it at any depth."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from transferctl.errors import DataError
from transferctl.images import EXTENSIONS, ImageFiles, first_frame_notes
from transferctl.settings import DataSettings, InputPath, Text
from transferctl.wording import counted, printable, shown

SYSTEM_NAMES = ("__macosx", "thumbs.db", "desktop.ini")  # left by macOS's zip and by Windows, in any case


class Settings(DataSettings):
    dataset: Literal["folder"] = Field("folder", description="A folder with one folder of images a class.")
    path: InputPath = Field(description="The folder.")
    exclude: Annotated[tuple[Text, ...], Field(strict=False)] = Field(
        (), description="Files to leave out: patterns on the name or the path inside the folder."
    )


@dataclass
class _Found:
    """What a scan saw besides images."""

    hidden: int = 0
    excluded: list[str] = field(default_factory=list)
    strays: list[str] = field(default_factory=list)
    undecodable: list[str] = field(default_factory=list)


def load(settings: Settings, role: str, seed: int) -> ImageFiles:
    """List the folder. Raises DataError where it is no folder of class folders, or cannot be listed."""
    root, found = settings.path, _Found()
    try:
        class_folders = _class_folders(root, found)
        listed = [list(_images(os.path.join(root, name), root, settings.exclude, found, ())) for name in class_folders]
    except OSError as error:  # not only of listing: a link to itself, or into a folder that may not be entered
        fix = "give this user permission to list it" if isinstance(error, PermissionError) else "mend or remove it"
        raise DataError(f"{printable(str(error.filename))}: cannot be listed: {error.strerror}; {fix}") from None
    paths = [path for images in listed for path in images]
    labels = [label for label, images in enumerate(listed) for _ in images]
    empty = [name for name, images in zip(class_folders, listed, strict=True) if not images]
    _refuse_undecodable(root, [*found.undecodable, *(name for name in class_folders if not name.isprintable())])
    if not paths:
        raise DataError(f"{root}: holds no images ({', '.join(sorted(EXTENSIONS))}) in its class folders")
    if empty and role == "train":
        raise DataError(f"{root}: no images in the class folders {shown(empty)}; fill them or remove them")
    if idle := [
        pattern for pattern in settings.exclude if not any(_excludes(p, pattern, root) for p in found.excluded)
    ]:
        raise DataError(f"{root}: `exclude` names what is not there: {shown(idle)}; mend the pattern or remove it")
    notes = [*_notes(found), *([f"empty class folders: {shown(empty)}"] if empty else []), *first_frame_notes(paths)]
    return ImageFiles(paths, labels, class_folders, notes)


def _class_folders(root: Path, found: _Found) -> list[str]:
    if not root.exists():
        raise DataError(f"{root}: no such folder; paths are relative to the spec's folder, then the working folder")
    if not root.is_dir():
        raise DataError(f"{root}: is a file, not a folder of class folders; a manifest's name must end in .csv")
    names = []
    for entry in _entries(str(root)):
        if _is_hidden(entry.name):
            found.hidden += 1
        elif entry.is_dir():
            names.append(entry.name)
        else:
            found.strays.append(entry.path)
    if not names:
        raise DataError(f"{root}: has no class folders; put the images of each class into a folder of its own")
    if {"train"} <= set(names) <= {"train", "val", "valid", "validation", "test"}:
        raise DataError(f"{root}: holds splits, not classes; name {root}/train and its siblings in the spec")
    return names


def _images(
    folder: str, root: Path, exclude: tuple[str, ...], found: _Found, parents: tuple[tuple[int, int], ...]
) -> Iterator[str]:
    """Image paths below a class folder, in name order. Links are followed; a link to a parent is an error."""
    status = os.stat(folder)
    identity = (status.st_dev, status.st_ino)
    if identity in parents:
        raise DataError(f"{printable(folder)}: a link that leads back to a folder around it; remove it")
    for entry in _entries(folder):
        if _is_hidden(entry.name):
            found.hidden += 1
        elif any(_excludes(entry.path, pattern, root) for pattern in exclude):
            found.excluded.append(entry.path)
        elif _is_folder(entry):
            yield from _images(entry.path, root, exclude, found, (*parents, identity))
        elif not _is_image_name(entry.name) or not (entry.is_symlink() or entry.is_file()):
            found.strays.append(entry.path)
        elif not _is_text(entry.name):
            found.undecodable.append(entry.path)
        else:
            yield entry.path


def _entries(folder: str) -> list[os.DirEntry[str]]:
    with os.scandir(folder) as entries:
        return sorted(entries, key=lambda entry: entry.name)


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name.lower() in SYSTEM_NAMES


def _is_folder(entry: os.DirEntry[str]) -> bool:
    """A link that cannot be followed is a sample if it is an image by name: reading it says what is wrong."""
    try:
        return entry.is_dir()
    except OSError:
        if entry.is_symlink() and _is_image_name(entry.name):
            return False
        raise


def _is_image_name(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in EXTENSIONS


def _is_text(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _refuse_undecodable(root: Path, names: list[str]) -> None:
    """predictions.csv and manifests are UTF-8: such a file could not be named in them."""
    if names:
        raise DataError(
            f"{root}: {counted(len(names), 'name')} not printable UTF-8: {shown(names)}; rename them, or exclude them"
        )


def _excludes(path: str, pattern: str, root: Path) -> bool:
    return fnmatch(os.path.basename(path), pattern) or fnmatch(os.path.relpath(path, root), pattern)


def _notes(found: _Found) -> Iterator[str]:
    if found.hidden:
        yield f"{found.hidden:,} hidden ignored (names that start with a dot, __MACOSX, Thumbs.db, desktop.ini)"
    if found.excluded:
        yield f"{counted(len(found.excluded), 'file')} left out by `exclude`: {shown(found.excluded)}"
    if found.strays:
        yield f"{counted(len(found.strays), 'file')} not used, being no images by name: {shown(found.strays)}"
