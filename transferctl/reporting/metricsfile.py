"""metrics.jsonl of a run, however long it is: by split, thinned."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from transferctl import jsontext
from transferctl.reporting import checked

MOST_LINES = 1000  # that are kept of a split; of more every second is left out, again and again
LINE = 50_000  # characters that are looked at as one line
CURVES = ("train", "val", "source_val")


def read(path: Path) -> tuple[Mapping[str, Sequence[Mapping[str, Any]]], str]:
    """Lines that hold an object, by split, and in words what was left out. One that is cut (a run was killed, or is
    still writing it) is passed over."""
    found = {split: _Thinned() for split in CURVES}
    unread = ""
    try:
        for number, line in enumerate(_lines(path), 1):
            if len(line) == LINE:
                unread = f"line {number} is longer than {LINE:,} characters, so what follows is left out"
                break
            row = _object(line)
            split = row.get("split")
            if isinstance(split, str) and split in found:
                found[split].add(row)
    except OSError as error:
        unread = f"cannot be read: {error.strerror or error}"
    thinned = [f"every {one.every:,}th line of {split} is drawn" for split, one in found.items() if one.every > 1]
    words = "; ".join([*thinned, *([unread] if unread else [])])
    return {split: one.rows() for split, one in found.items()}, f"metrics.jsonl: {words}" if words else ""


def _lines(path: Path) -> Iterator[str]:
    """However large the file is, a line at a time."""
    if path.is_file():  # a pipe would block
        with path.open(encoding="utf-8-sig", errors="replace") as file:
            yield from iter(partial(file.readline, LINE), "")


def _object(line: str) -> Mapping[str, Any]:
    try:
        return checked.mapping(jsontext.loads(line))
    except ValueError:
        return {}


class _Thinned:
    """Of however many rows at most MOST_LINES, evenly spread, and the last. every: of how many one is kept."""

    def __init__(self) -> None:
        self.every, self._n = 1, 0
        self._kept: list[Mapping[str, Any]] = []
        self._last: Mapping[str, Any] = {}

    def add(self, row: Mapping[str, Any]) -> None:
        if self._n % self.every == 0:
            self._kept.append(row)
        self._last = row
        self._n += 1
        if len(self._kept) > MOST_LINES:
            self._kept, self.every = self._kept[::2], 2 * self.every

    def rows(self) -> Sequence[Mapping[str, Any]]:
        is_there = not self._kept or self._kept[-1] is self._last
        return self._kept if is_there else [*self._kept, self._last]
