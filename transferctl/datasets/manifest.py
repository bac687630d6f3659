"""A CSV manifest: columns path, label and, if wanted, split; one image a row."""

from __future__ import annotations

import csv
import io
import os
from collections import Counter
from typing import Literal, NamedTuple

from pydantic import Field

from transferctl.errors import DataError
from transferctl.images import ImageFiles, first_frame_notes, printable, shown
from transferctl.settings import DataSettings, InputPath, Text


class Settings(DataSettings):
    dataset: Literal["manifest"] = Field("manifest", description="A CSV file with the columns path,label[,split].")
    path: InputPath = Field(description="The CSV file; paths in it are relative to its folder.")
    split: Text | None = Field(
        None, description="Rows to take, by the split column; default: train, val or test, by where this stands."
    )


class _Row(NamedTuple):
    line: int
    path: str
    label: str
    split: str


def load(settings: Settings, role: str, seed: int) -> ImageFiles:
    """Read the manifest. Raises DataError naming the line; images are looked at only when they are read."""
    rows, columns = _rows(settings)
    wanted = settings.split or role
    notes = []
    if "split" in columns:
        sizes = Counter(row.split for row in rows)
        if wanted not in sizes:
            raise DataError(f"{settings.path}: no row has split {wanted!r}; the file has {shown(sorted(sizes), 10)}")
        if len(sizes) > 1:
            others = [f"{name or 'no name'} ({n})" for name, n in sorted(sizes.items()) if name != wanted]
            notes.append(f"rows of split {wanted}; the file has others: {shown(others, 10)}")
        rows = [row for row in rows if row.split == wanted]
    elif settings.split is not None:
        raise DataError(f"{settings.path}: the spec asks for split {wanted!r}, but there is no column split")
    if not rows:
        raise DataError(f"{settings.path}: has no rows below its header")
    _refuse_repeats(settings, rows)
    folder = os.path.dirname(settings.path)
    paths = [os.path.join(folder, row.path) for row in rows]
    class_names = sorted({row.label for row in rows})
    positions = {name: i for i, name in enumerate(class_names)}
    other = [name for name in columns if name not in ("path", "label", "split")]
    notes += [f"columns not used: {shown(other, 10)}"] if other else []
    return ImageFiles(paths, [positions[row.label] for row in rows], class_names, [*notes, *first_frame_notes(paths)])


def _rows(settings: Settings) -> tuple[list[_Row], list[str]]:
    path = settings.path
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise DataError(
            f"{path}: no such file; paths are relative to the spec's folder, then the working folder"
        ) from None
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: is not UTF-8 (byte {error.start}); save it as UTF-8") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from None
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    rows: list[_Row] = []
    try:
        columns = [name.strip() for name in next(reader, [])]
        _check_header(settings, columns)
        for cells in reader:
            if cells:
                rows.append(_row(settings, columns, cells, reader.line_num))
    except csv.Error as error:
        raise DataError(f"{path}:{reader.line_num}: is not CSV: {error}") from None
    return rows, columns


def _check_header(settings: Settings, columns: list[str]) -> None:
    missing = [name for name in ("path", "label") if name not in columns]
    if missing or len(set(columns)) < len(columns):
        fault = f"lacks {' and '.join(missing)}" if missing else "names a column twice"
        raise DataError(f"{settings.path}:1: the header {fault}; it must be path,label or path,label,split")


def _row(settings: Settings, columns: list[str], cells: list[str], line: int) -> _Row:
    if len(cells) != len(columns):
        raise DataError(f"{settings.path}:{line}: has {len(cells)} cells where the header has {len(columns)}")
    values = dict(zip(columns, cells, strict=True))
    row = _Row(line, values["path"], values["label"], values.get("split", ""))
    for name, value in (("path", row.path), ("label", row.label)):
        if not value.strip():
            raise DataError(f"{settings.path}:{line}: {name} is empty")
        if not value.isprintable():
            raise DataError(f"{settings.path}:{line}: {name} has unprintable characters: {printable(value)}")
    return row


def _refuse_repeats(settings: Settings, rows: list[_Row]) -> None:
    first: dict[str, _Row] = {}
    for row in rows:
        earlier = first.setdefault(os.path.normpath(row.path), row)
        if earlier is not row:
            how = "again" if earlier.label == row.label else f"as {row.label!r}, but as {earlier.label!r}"
            raise DataError(f"{settings.path}:{row.line}: {row.path} stands here {how} in line {earlier.line}")
