"""A folder of images: each folder in it is a class, its images lie in it at any depth."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from transferctl import scratch
from transferctl.errors import DataError
from transferctl.images import EXTENSIONS, ImageFiles, first_frame_notes, is_gif
from transferctl.listing import entries, is_hidden, is_image_name, leads_to_folder
from transferctl.outside import DESCRIPTION, Choice, Outsiders
from transferctl.settings import DataSettings, InputPath, Text
from transferctl.texts import Texts
from transferctl.wording import SomeNames, counted, printable, shown


class Settings(DataSettings):
    dataset: Literal["folder"] = Field("folder", description="A folder with one folder of images a class.")
    path: InputPath = Field(description="The folder.")
    exclude: Annotated[tuple[Text, ...], Field(strict=False)] = Field(
        (), description="Files to leave out: patterns on the name or the path inside the folder."
    )
    outside: Choice = Field("read", description=DESCRIPTION)


@dataclass
class _Found:
    """What a scan saw besides images, and how many of those are GIFs."""

    outsiders: Outsiders
    hidden: int = 0
    gifs: int = 0
    excluded: SomeNames = field(default_factory=SomeNames)
    strays: SomeNames = field(default_factory=SomeNames)
    undecodable: list[str] = field(default_factory=list)
    used_patterns: set[str] = field(default_factory=set)


def load(settings: Settings, role: str, seed: int) -> ImageFiles:
    """List the folder. Raises DataError where it is no folder of class folders, or cannot be listed."""
    root, sizes = settings.path, list[int]()
    found = _Found(Outsiders(root, "links"))
    try:
        class_folders = _class_folders(root, found)
        paths = Texts(_all_images(class_folders, settings, found, sizes))
    except OSError as error:  # not only of listing: a link to itself, or into a folder that may not be entered
        fix = "give this user permission to list it" if isinstance(error, PermissionError) else "mend or remove it"
        raise DataError(f"{printable(str(error.filename))}: cannot be listed: {error.strerror}; {fix}") from None
    empty = [name for name, size in zip(class_folders, sizes, strict=True) if not size]
    _refuse_undecodable(root, [*found.undecodable, *(name for name in class_folders if not name.isprintable())])
    if not len(paths):
        raise DataError(f"{root}: holds no images ({', '.join(sorted(EXTENSIONS))}) in its class folders")
    if empty and role == "train":
        raise DataError(f"{root}: no images in the class folders {shown(empty)}; fill them or remove them")
    if idle := [pattern for pattern in settings.exclude if pattern not in found.used_patterns]:
        raise DataError(f"{root}: `exclude` names what is not there: {shown(idle)}; mend the pattern or remove it")
    notes = [*found.outsiders.notes(settings.outside), *_notes(found)]
    notes += [f"empty class folders: {shown(empty)}"] if empty else []
    return ImageFiles(paths, _labels(sizes), class_folders, [*notes, *first_frame_notes(found.gifs)])


def _labels(sizes: Sequence[int]) -> np.ndarray:
    """int32 [n]: each class's number as often as it has images."""
    labels, done = scratch.empty(sum(sizes), np.int32), 0
    for label, size in enumerate(sizes):
        labels[done : done + size] = label
        done += size
    return labels


def _class_folders(root: Path, found: _Found) -> list[str]:
    if not root.exists():
        raise DataError(f"{root}: no such folder; paths are relative to the spec's folder, then the working folder")
    if not root.is_dir():
        raise DataError(f"{root}: is a file, not a folder of class folders; a manifest's name must end in .csv")
    names = []
    for name, kind in entries(str(root)):
        path = os.path.join(root, name)
        if is_hidden(name):
            found.hidden += 1
        elif kind == "d" or (kind == "l" and leads_to_folder(path)):
            names.append(name)
        else:
            found.strays.add(path)
    if not names:
        raise DataError(f"{root}: has no class folders; put the images of each class into a folder of its own")
    if {"train"} <= set(names) <= {"train", "val", "valid", "validation", "test"}:
        raise DataError(f"{root}: holds splits, not classes; name {root}/train and its siblings in the spec")
    return names


def _all_images(class_folders: Sequence[str], settings: Settings, found: _Found, sizes: list[int]) -> Iterator[str]:
    """Class by class; `sizes` becomes the number of images of each."""
    for name in class_folders:
        sizes.append(0)
        folder = os.path.join(settings.path, name)
        is_outside = os.path.islink(folder) and found.outsiders.links_out(folder)
        for path in _images(folder, settings.path, settings.exclude, found, (), is_outside):
            sizes[-1] += 1
            found.gifs += is_gif(path)
            yield path


def _images(
    folder: str, root: Path, exclude: tuple[str, ...], found: _Found, parents: tuple[tuple[int, int], ...],
    is_outside: bool,
) -> Iterator[str]:  # fmt: skip
    """Image paths below a class folder, in name order. Links are followed; a link to a parent is an error. is_outside:
    whether the folder was reached by a link that leads out of the root."""
    status = os.stat(folder)
    identity = (status.st_dev, status.st_ino)
    if identity in parents:
        raise DataError(f"{printable(folder)}: a link that leads back to a folder around it; remove it")
    for name, kind in entries(folder):
        path = f"{folder}{os.sep}{name}"
        if is_hidden(name):
            found.hidden += 1
        elif exclude and (matching := {pattern for pattern in exclude if _excludes(path, pattern, root)}):
            found.excluded.add(path)
            found.used_patterns |= matching
        elif kind == "d" or (kind == "l" and _is_linked_folder(path)):
            leads_out = is_outside or (kind == "l" and found.outsiders.links_out(path))
            yield from _images(path, root, exclude, found, (*parents, identity), leads_out)
        elif kind == "o" or not is_image_name(name):
            found.strays.add(path)
        elif not _is_text(name):
            found.undecodable.append(path)
        else:
            if is_outside or (kind == "l" and found.outsiders.links_out(path)):
                found.outsiders.add(path)
            yield path


def _is_linked_folder(path: str) -> bool:
    """A link that cannot be followed is a sample if it is an image by name: reading it says what is wrong."""
    try:
        return leads_to_folder(path)
    except OSError:
        if is_image_name(path):
            return False
        raise


def _is_text(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _refuse_undecodable(root: Path, names: list[str]) -> None:
    """predictions.csv and manifests are UTF-8: such a file could not be named in them."""
    if names:
        encoding = sys.getfilesystemencoding()
        fix = "rename them, or exclude them"
        if encoding != "utf-8":  # a locale such as C, and PYTHONUTF8=0: the names may well be UTF-8
            fix = f"names are read as {encoding} here; set PYTHONUTF8=1, or a locale of UTF-8"
        raise DataError(f"{root}: {counted(len(names), 'name')} not printable UTF-8: {shown(names)}; {fix}")


def _excludes(path: str, pattern: str, root: Path) -> bool:
    return fnmatch(os.path.basename(path), pattern) or fnmatch(os.path.relpath(path, root), pattern)


def _notes(found: _Found) -> Iterator[str]:
    if found.hidden:
        yield f"{found.hidden:,} hidden ignored (names that start with a dot, __MACOSX, Thumbs.db, desktop.ini)"
    if found.excluded.count:
        yield f"{counted(found.excluded.count, 'file')} left out by `exclude`: {found.excluded}"
    if found.strays.count:
        yield f"{counted(found.strays.count, 'file')} not used, being no images by name: {found.strays}"
