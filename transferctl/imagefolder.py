"""What a folder of images holds: how it is laid out, its classes and splits, the sizes of its images."""

from __future__ import annotations

import csv
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from transferctl import data, grouping, images
from transferctl.contracts import BadSample
from transferctl.data import DomainData, Split
from transferctl.display import Display
from transferctl.errors import DataError
from transferctl.listing import is_image_name
from transferctl.settings import DataSettings
from transferctl.spec import TargetSettings
from transferctl.wording import SomeNames, counted, shown

LOOKED_AT = 500  # files whose size is read, at most
ROLES = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation", "dev"),
    "test": ("test", "testing"),
}
MANIFEST = "manifest.csv"
HOW = (
    "the images of each class belong into a folder of its own ({0}/cat/1.jpg, {0}/dog/2.jpg), or into a list: "
    "{0}/manifest.csv with the columns path,label"
)


@dataclass(frozen=True)
class Sizes:
    """Of `looked_at` files, spread over all: width and height, [n, 2] pixels; unreadable: how many are not, and who."""

    pixels: np.ndarray
    looked_at: int
    unreadable: SomeNames

    @property
    def short(self) -> np.ndarray:
        """Short sides, sorted. [n]"""
        return np.sort(self.pixels.min(axis=1))


@dataclass(frozen=True)
class Found:
    """paths: of each split that is there, as the spec names it; layout: in words; data: with the hold-out that the spec
    asks for where there is no val."""

    paths: Mapping[str, Path]
    layout: str
    data: DomainData
    sizes: Sizes

    def counts(self, split: Split) -> dict[str, int]:
        """Samples of each class, in the class map's order."""
        counts = grouping.counts(split.labels, len(self.data.classes))
        return {name: int(count) for name, count in zip(self.data.classes, counts, strict=True)}


def look(folder: Path, val_fraction: float, display: Display) -> Found:
    """Raises DataError where there is nothing to train on as it lies, with how to arrange it."""
    paths, layout = _laid_out(folder)
    settings = TargetSettings.model_validate({role: written(path.absolute()) for role, path in paths.items()})
    val: DataSettings | float = settings.val if "val" in paths else val_fraction
    found, problems = data.survey(settings.train, val, settings.test, 0, domain="target")
    if found is not None and len(found.classes) == 1 and (only := paths["train"] / found.classes[0]).is_dir():
        inner = _folders(only)
        problems += [f"if {shown(inner)} in it are the classes, or the splits, name {only}"] if inner else []
    if problems or found is None:
        raise DataError("\n".join(problems))
    for note in found.notes:
        display.warn(note)
    return Found(paths, layout, found, _sizes(found))


def written(path: Path) -> Any:
    """A path as a spec names it: a folder that is called like a manifest says that it is none."""
    is_odd = path.suffix.lower() == ".csv" and path.is_dir()
    return {"dataset": "folder", "path": str(path)} if is_odd else str(path)


def _laid_out(folder: Path) -> tuple[dict[str, Path], str]:
    """The path of each split that is there, and the layout in words."""
    if folder.suffix.lower() == ".csv" and not folder.is_dir():
        return _listed(folder)
    if (folder / MANIFEST).is_file():
        return _listed(folder / MANIFEST)
    if not folder.is_dir():
        what = "is a file" if folder.exists() else "no such folder"
        raise DataError(f"{folder}: {what}; name the folder that holds the images")
    names = _folders(folder)
    if splits := _splits(folder, names):
        unused = [name for name in names if folder / name not in splits.values()]
        more = f"; not used: {shown(unused)}" if unused else ""
        return splits, f"splits in folders ({', '.join(path.name for path in splits.values())}){more}"
    if not names:
        n = sum(is_image_name(path.name) for path in folder.iterdir())
        what = f"nothing says of what class the {counted(n, 'image')} in it are" if n else "holds no images"
        raise DataError(f"{folder}: {what}; {HOW.format(folder)}")
    return {"train": folder}, "a folder for each class"


def _folders(folder: Path) -> list[str]:
    """Names of what may be class folders or splits."""
    try:
        with os.scandir(folder) as entries:
            return sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))
    except OSError as error:
        raise DataError(f"{folder}: cannot be listed: {error.strerror}") from None


def _splits(folder: Path, names: list[str]) -> dict[str, Path]:
    """By their names; nothing where these are classes (a railway's `train` holds images, no folders)."""
    found: dict[str, Path] = {}
    for role, synonyms in ROLES.items():
        called = [name for name in names if name.lower() in synonyms]
        if len(called) > 1:
            raise DataError(f"{folder}: {shown(called)} would all be {role}; keep one, or move the others elsewhere")
        if called:
            found[role] = folder / called[0]
    if "train" not in found:
        if found and len(found) == len(names):
            raise DataError(f"{folder}: has {shown(names)}, but no folder `train`; rename one")
        return {}
    is_alone = len(found) == 1 and len(names) > 1
    return found if _folders(found["train"]) and not is_alone else {}


def _listed(manifest: Path) -> tuple[dict[str, Path], str]:
    try:
        with manifest.open(encoding="utf-8-sig", newline="") as file:
            rows = csv.DictReader(file)
            named = {row.get("split") for row in rows} if "split" in (rows.fieldnames or ()) else set()
    except (OSError, UnicodeDecodeError, csv.Error):
        named = set()  # reading it as data says what is wrong
    roles = ["train", *(role for role in ("val", "test") if role in named)]
    return dict.fromkeys(roles, manifest), f"a manifest ({manifest.name})"


def _sizes(found: DomainData) -> Sizes:
    splits = found.splits()
    ends = np.cumsum([len(split) for split in splits])
    random = np.random.default_rng(0)
    drawn = np.sort(random.choice(ends[-1], min(LOOKED_AT, int(ends[-1])), replace=False, shuffle=False))
    pixels, unreadable = [], SomeNames()
    for at, which in zip(drawn.tolist(), np.searchsorted(ends, drawn, "right").tolist(), strict=True):
        split = splits[which]
        name = split.sample_name(at - int(ends[which]) + len(split))
        try:
            pixels.append(images.header_size(name))
        except BadSample:
            unreadable.add(name)
    return Sizes(np.array(pixels, dtype=np.int64).reshape(-1, 2), len(drawn), unreadable)
