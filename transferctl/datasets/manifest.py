"""A CSV manifest: columns path, label and, if wanted, split; one image a row."""

from __future__ import annotations

import csv
import io
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

from pydantic import Field

from transferctl.errors import DataError
from transferctl.images import ImageFiles, first_frame_notes
from transferctl.settings import DataSettings, InputPath, Text
from transferctl.wording import counted, printable, shown

SHOWN_FAULTS = 20


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


class _Fault(NamedTuple):
    line: int
    text: str


def load(settings: Settings, role: str, seed: int) -> ImageFiles:
    """Read the manifest. Raises DataError naming each faulty line; images are looked at only when they are read."""
    rows, columns, faults = _rows(settings)
    wanted = settings.split or role
    used = [row for row in rows if row.split == wanted] if "split" in columns else rows
    _refuse(settings, [*faults, *_repeats(used)])
    if not rows:
        raise DataError(f"{settings.path}: has no rows below its header")
    notes = []
    if "split" in columns:
        sizes = Counter(row.split for row in rows)
        if wanted not in sizes:
            raise DataError(f"{settings.path}: no row has split {wanted!r}; the file has {shown(sorted(sizes), 10)}")
        if len(sizes) > 1:
            others = [f"{name or 'no name'} ({n})" for name, n in sorted(sizes.items()) if name != wanted]
            notes.append(f"rows of split {wanted}; the file has others: {shown(others, 10)}")
    elif settings.split is not None:
        raise DataError(f"{settings.path}: the spec asks for split {wanted!r}, but there is no column split")
    folder = os.path.dirname(settings.path)
    paths = [os.path.join(folder, row.path) for row in used]
    class_names = sorted({row.label for row in used})
    positions = {name: i for i, name in enumerate(class_names)}
    other = [name for name in columns if name not in ("path", "label", "split")]
    notes += [f"columns not used: {shown(other, 10)}"] if other else []
    return ImageFiles(paths, [positions[row.label] for row in used], class_names, [*notes, *first_frame_notes(paths)])


def _rows(settings: Settings) -> tuple[list[_Row], list[str], list[_Fault]]:
    """The sound rows, the column names, and what is wrong with the other rows."""
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
    faults: list[_Fault] = []
    try:
        columns = [name.strip() for name in next(reader, [])]
        _check_header(settings, columns)
        for cells in filter(None, reader):
            found = [_Fault(reader.line_num, text) for text in _faults(columns, cells)]
            faults += found
            if not found:
                values = dict(zip(columns, cells, strict=True))
                rows.append(_Row(reader.line_num, values["path"], values["label"], values.get("split", "")))
    except csv.Error as error:
        raise DataError(f"{path}:{reader.line_num}: is not CSV: {error}") from None
    return rows, columns, faults


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


def _repeats(rows: Sequence[_Row]) -> Iterator[_Fault]:
    first: dict[str, _Row] = {}
    for row in rows:
        earlier = first.setdefault(os.path.normpath(row.path), row)
        if earlier is not row:
            how = "again, as" if earlier.label == row.label else f"as {row.label!r}, but as {earlier.label!r}"
            yield _Fault(row.line, f"{row.path} stands here {how} in line {earlier.line}")


def _refuse(settings: Settings, faults: Sequence[_Fault]) -> None:
    if not faults:
        return
    lines = [f"{settings.path}:{line}: {text}" for line, text in sorted(faults)[:SHOWN_FAULTS]]
    if len(faults) > SHOWN_FAULTS:
        lines.append(f"{settings.path}: and {counted(len(faults) - SHOWN_FAULTS, 'more fault')}")
    raise DataError("\n".join(lines))
