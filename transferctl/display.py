"""What people see. The only module that imports rich.

Results (plan, tables, the run's path, or one JSON object) go to stdout; progress, notes and errors go to
stderr. On a terminal: bars and colour. Elsewhere: plain lines with a time. All of it also into log.txt.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import IO, Any

PLAIN_INTERVAL_S = 10.0


class Display:
    """One per command. `as_json`: stdout carries the JSON object alone."""

    def __init__(self, as_json: bool = False):
        self.as_json = as_json
        self.terminal = sys.stderr.isatty()
        self._log: IO[str] | None = None
        self._before_log: list[str] = []

    @contextmanager
    def log_to(self, path: Path) -> Iterator[None]:
        """Everything shown inside goes into this file too, and what was shown before that no other log has."""
        with path.open("a", encoding="utf-8", errors="backslashreplace", buffering=1) as self._log:
            self._log.writelines(self._before_log)
            self._before_log.clear()
            try:
                yield
            finally:
                self._log = None

    def note(self, text: str) -> None:
        """Something chosen or noticed on the user's behalf."""
        self._line(text)

    def warn(self, text: str) -> None:
        self._line(f"warning: {text}", style="yellow")

    def error(self, text: str) -> None:
        for line in text.splitlines():
            self._line(f"error: {line}", style="red")

    def _line(self, text: str, style: str = "") -> None:
        stamp = datetime.now().astimezone().strftime("%Y-%m-%d %H:%M:%S")
        self._to_log(f"{stamp} {text}\n")
        if self.terminal:
            self._stderr.print(text, style=style or None, markup=False, highlight=False, soft_wrap=True)
        else:
            print(f"{stamp} {text}", file=sys.stderr, flush=True)

    @cached_property
    def _stderr(self) -> Any:
        """One console for bars and lines, so that a line goes above a bar that is being drawn."""
        return _console(stderr=True)

    def result(self, text: str) -> None:
        """A line of the result; the last one is the run folder's path."""
        self._to_log(f"{text}\n")
        print(text, file=sys.stderr if self.as_json else sys.stdout, flush=True)

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
        """A table of results; columns whose cells all are numbers are set to the right."""
        from rich import box
        from rich.table import Table
        from rich.text import Text

        table = Table(title=Text(title, style="bold"), title_justify="left", box=box.SIMPLE_HEAD)
        cells = [[_cell(value) for value in row] for row in rows]
        for i, column in enumerate(columns):
            numeric = bool(rows) and all(isinstance(row[i], int | float) for row in rows)
            table.add_column(Text(column), justify="right" if numeric else "left", overflow="fold")
        for row in cells:
            table.add_row(*(Text(cell) for cell in row))
        console = _console(stderr=self.as_json)
        console.print(table)
        self._to_log("\n".join([title, "\t".join(columns), *("\t".join(row) for row in cells), ""]))

    def _to_log(self, text: str) -> None:
        if self._log:
            self._log.write(text)
        else:
            self._before_log.append(text)

    def json(self, values: dict[str, Any]) -> None:
        if self.as_json:
            print(json.dumps(values, ensure_ascii=False, allow_nan=False), flush=True)

    @contextmanager
    def progress(self, what: str, total: int, unit: str = "images") -> Iterator[Progress]:
        """A bar over `total` units with rate and time left; plain lines every ten seconds elsewhere."""
        if not self.terminal:
            yield _PlainProgress(self, what, total, unit)
            return
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as RichProgress

        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[detail]}", markup=False),
            TimeRemainingColumn(),
        )
        with RichProgress(*columns, console=self._stderr, transient=True) as bar:
            yield _BarProgress(bar, bar.add_task(what, total=total, detail=""), unit)


class Progress:
    """How far a pass has come. `detail` shows losses."""

    def advance(self, units: int, detail: str = "") -> None:
        raise NotImplementedError


class _BarProgress(Progress):
    def __init__(self, bar: Any, task: Any, unit: str):
        self._bar, self._task, self._unit = bar, task, unit
        self._start, self._done = time.monotonic(), 0

    def advance(self, units: int, detail: str = "") -> None:
        self._done += units
        rate = self._done / max(time.monotonic() - self._start, 1e-9)
        self._bar.update(self._task, advance=units, detail=f"{rate:,.0f} {self._unit}/s {detail}".rstrip())


class _PlainProgress(Progress):
    def __init__(self, display: Display, what: str, total: int, unit: str):
        self._display, self._what, self._total, self._unit = display, what, total, unit
        self._start = self._said = time.monotonic()
        self._done = 0

    def advance(self, units: int, detail: str = "") -> None:
        self._done += units
        now = time.monotonic()
        if now - self._said < PLAIN_INTERVAL_S:
            return
        self._said = now
        rate = self._done / (now - self._start)
        left = (self._total - self._done) / max(rate, 1e-9)
        done = f"{self._done:,}/{self._total:,} {self._unit}, {rate:,.0f}/s, {left:.0f} s left"
        self._display.note(f"{self._what}: {done} {detail}".rstrip())


def _console(stderr: bool) -> Any:
    from rich.console import Console

    console = Console(stderr=stderr)
    return console if console.is_terminal else Console(stderr=stderr, width=120)


def _cell(value: object) -> str:
    return f"{value:.4f}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)
