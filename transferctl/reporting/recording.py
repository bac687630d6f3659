"""A display that shows nothing: what others' code says on the way is kept for the page, or dropped."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from transferctl.display import Display, Progress
from transferctl.wording import printable


@dataclass(frozen=True)
class Table:
    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[object, ...], ...]


class RecordingDisplay(Display):
    def __init__(self) -> None:
        super().__init__(as_json=True)
        self.warnings: list[str] = []
        self.tables: list[Table] = []

    def line(self, text: str, style: str = "", shown: bool = True) -> None:
        """Notes are dropped."""

    def warn(self, text: str) -> None:
        self.warnings.append(printable(text))

    def result(self, text: str) -> None:
        """Dropped."""

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
        self.tables.append(Table(title, tuple(columns), tuple(map(tuple, rows))))

    def json(self, values: dict[str, Any]) -> None:
        """Dropped."""

    @contextmanager
    def progress(self, what: str, total: int | None = None) -> Iterator[Progress]:
        yield _Silent()


class _Silent(Progress):
    def advance(self, images: int, detail: str = "") -> None:
        pass

    def skip(self, images: int) -> None:
        pass
