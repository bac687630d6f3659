"""A CSV manifest: columns path, label and, if wanted, split; one image a row."""

from __future__ import annotations

import csv
import os
from collections import Counter
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from pydantic import Field

from transferctl import repeats, scratch
from transferctl.errors import DataError
from transferctl.images import ImageFiles, first_frame_notes, is_gif
from transferctl.outside import DESCRIPTION, Choice, Outsiders
from transferctl.settings import DataSettings, InputPath, Text
from transferctl.texts import Texts
from transferctl.wording import counted, printable, shown

SHOWN_FAULTS = 20
MAX_LINE = 100_000  # characters
MAX_LABEL = 255  # characters; no file system has a longer name for a folder


class Settings(DataSettings):
    dataset: Literal["manifest"] = Field("manifest", description="A CSV file with the columns path,label[,split].")
    path: InputPath = Field(description="The CSV file; paths in it are relative to its folder.")
    split: Text | None = Field(
        None, description="Rows to take, by the split column; default: train, val or test, by where this stands."
    )
    outside: Choice = Field("read", description=DESCRIPTION)


class _Fault(NamedTuple):
    line: int
    text: str


def load(settings: Settings, role: str, seed: int) -> ImageFiles:
    """Read the manifest. Raises DataError naming each faulty line; images are looked at only when they are read."""
    wanted = settings.split or role
    rows = _Rows(settings, wanted)
    _refuse(settings, [*rows.faults, *rows.repeats()])
    if not rows.split_sizes:
        raise DataError(f"{settings.path}: has no rows below its header")
    notes = []
    if "split" in rows.columns:
        sizes = rows.split_sizes
        if wanted not in sizes:
            raise DataError(f"{settings.path}: no row has split {wanted!r}; the file has {shown(sorted(sizes), 10)}")
        if len(sizes) > 1:
            others = [f"{name or 'no name'} ({n})" for name, n in sorted(sizes.items()) if name != wanted]
            notes.append(f"rows of split {wanted}; the file has others: {shown(others, 10)}")
    elif settings.split is not None:
        raise DataError(f"{settings.path}: the spec asks for split {wanted!r}, but there is no column split")
    folder = os.path.dirname(settings.path)
    class_names = sorted(rows.label_names)
    positions = np.empty(len(class_names), np.int32)
    positions[[rows.label_names[name] for name in class_names]] = np.arange(len(class_names))
    other = [name for name in rows.columns if name not in ("path", "label", "split")]
    notes += [f"columns not used: {shown(other, 10)}"] if other else []
    paths = (os.path.join(folder, path) for path in rows.paths)
    notes += [*rows.outsiders.notes(settings.outside), *first_frame_notes(rows.gifs)]
    return ImageFiles(paths, scratch.taken(positions, rows.labels), class_names, notes)


class _Rows:
    """The sound rows of the wanted split, packed: paths as written, labels in the order of their first rows, lines."""

    def __init__(self, settings: Settings, wanted: str):
        self.columns: list[str] = []
        self.faults: list[_Fault] = []
        self.split_sizes: Counter[str] = Counter()
        self.gifs = 0
        self._refuses = settings.outside == "refuse"
        how = "links, absolute paths or .." if self._refuses else "absolute paths or .."
        self.outsiders = Outsiders(settings.path.parent, how)
        self.label_names: dict[str, int] = {}
        labels, lines = scratch.Growing(np.int32), scratch.Growing(np.int64)
        self.paths = Texts(self._read(settings, wanted, labels, lines))
        self.labels, self.lines = labels.array(), lines.array()

    def _read(self, settings: Settings, wanted: str, labels: scratch.Growing, lines: scratch.Growing) -> Iterator[str]:
        """The paths, one after another; all else is noted on the way."""
        with closing(_lines(settings)) as file:
            reader = csv.reader(file, strict=True)
            try:
                self.columns += [name.strip() for name in next(reader, [])]
                _check_header(settings, self.columns)
                for cells in filter(None, reader):
                    if faults := [_Fault(reader.line_num, text) for text in _faults(self.columns, cells)]:
                        self.faults += faults
                        continue
                    row = dict(zip(self.columns, cells, strict=True))
                    split = row.get("split", wanted)
                    self.split_sizes[split] += 1
                    if split == wanted:
                        labels.add(self.label_names.setdefault(row["label"], len(self.label_names)))
                        lines.add(reader.line_num)
                        self.gifs += is_gif(row["path"])
                        if self._is_outside(row["path"]):
                            self.outsiders.add(row["path"])
                        yield row["path"]
            except csv.Error as error:
                raise DataError(f"{settings.path}:{reader.line_num}: is not CSV: {error}") from None

    def _is_outside(self, path: str) -> bool:
        """By its words; where such are refused, by the links on its way too."""
        whole = os.path.join(self.outsiders.folder, path)
        if self._refuses:
            return self.outsiders.links_out(whole)
        return (".." in path or os.path.isabs(path)) and self.outsiders.names_out(whole)

    def repeats(self) -> Iterator[_Fault]:
        """Rows of a path that an earlier one has."""
        hashes = repeats.hashes(map(os.path.normpath, self.paths), len(self.paths))
        names = list(self.label_names)
        for row, first in repeats.earlier(hashes, self._normal):
            label, other = names[self.labels[row]], names[self.labels[first]]
            how = "again, as" if label == other else f"as {label!r}, but as {other!r}"
            yield _Fault(int(self.lines[row]), f"{self.paths[row]} stands here {how} in line {self.lines[first]}")

    def _normal(self, row: int) -> str:
        return os.path.normpath(self.paths[row])


def _lines(settings: Settings) -> Generator[str]:
    path = settings.path
    try:
        if path.exists() and not path.is_file():
            raise DataError(f"{path}: is not a regular file; name a CSV file")
        with path.open(encoding="utf-8-sig") as file:
            for number, line in enumerate(iter(partial(file.readline, MAX_LINE), ""), 1):
                if len(line) == MAX_LINE:
                    raise DataError(f"{path}:{number}: is longer than {MAX_LINE:,} characters; that is no manifest")
                yield line
    except FileNotFoundError:
        raise DataError(
            f"{path}: no such file; paths are relative to the spec's folder, then the working folder"
        ) from None
    except UnicodeDecodeError:
        raise DataError(f"{path}: is not UTF-8 (byte {_first_odd_byte(path)}); save it as UTF-8") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from None


def _first_odd_byte(path: Path) -> int:
    """Counted from the file's start: reading line by line, the decoder counts from where it reads."""
    try:
        path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        return error.start
    return 0


def _check_header(settings: Settings, columns: list[str]) -> None:
    missing = [name for name in ("path", "label") if name not in columns]
    if missing or len(set(columns)) < len(columns):
        fault = f"lacks {' and '.join(missing)}" if missing else "names a column twice"
        raise DataError(f"{settings.path}:1: the header {fault}; it must be path,label or path,label,split")


def _faults(columns: Sequence[str], cells: Sequence[str]) -> Iterator[str]:
    if len(cells) != len(columns):
        yield f"has {counted(len(cells), 'cell')} where the header has {len(columns)}"
        return
    for name, value in zip(columns, cells, strict=True):
        if name in ("path", "label") and not value.strip():
            yield f"{name} is empty"
        elif name in ("path", "label") and not value.isprintable():
            yield f"{name} has unprintable characters: {printable(value)}"
        elif name == "label" and len(value) > MAX_LABEL:
            yield f"label has {len(value):,} characters; the most for a class name are {MAX_LABEL}"
        elif name in ("label", "split") and value != value.strip():
            yield f"{name} {value!r} begins or ends with a space; remove it"


def _refuse(settings: Settings, faults: Sequence[_Fault]) -> None:
    if not faults:
        return
    lines = [f"{settings.path}:{line}: {text}" for line, text in sorted(faults)[:SHOWN_FAULTS]]
    if len(faults) > SHOWN_FAULTS:
        lines.append(f"{settings.path}: and {counted(len(faults) - SHOWN_FAULTS, 'more fault')}")
    raise DataError("\n".join(lines))
