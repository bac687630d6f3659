"""What people see. The only module that imports rich.

Results (plan, tables, the run's path, or one JSON object) go to stdout; progress, notes and errors go to
stderr. On a terminal: bars and colour. Elsewhere: plain lines with a time. All of it also into log.txt. Names of files,
classes and settings are others' words: what is unprintable in them is escaped here, for terminal and log alike.
"""

from __future__ import annotations

import contextlib
import errno
import os
import sys
import textwrap
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import IO, Any

from transferctl import jsontext
from transferctl.errors import ResourceError
from transferctl.wording import printable

PLAIN_INTERVAL_S = 10.0
EPOCH_INTERVAL_S = 1.0
PLAIN_WIDTH = 120


class Display:
    """One per command. `as_json`: stdout carries the JSON object alone."""

    def __init__(self, as_json: bool = False):
        self.as_json = as_json
        self.terminal = sys.stderr.isatty()
        self._quiet, self._warns = False, True
        self._epoch_said = 0.0
        self._log: IO[str] | None = None
        self._before_log: list[str] = []

    @contextmanager
    def log_to(self, path: Path) -> Iterator[None]:
        """Everything shown inside goes into this file too, and what was shown before that no other log has."""
        outer = self._log
        try:
            with appended(path) as self._log:
                self._log.writelines(self._before_log)
                self._before_log.clear()
                yield
        finally:  # a disk may be full at the first line: what is said of that must not go to a closed file
            self._log = outer

    @contextmanager
    def quietly(self, warnings: bool = True) -> Iterator[None]:
        """Inside, notes and results go to the log alone; errors and progress are shown, and warnings, unless those of
        many runs would say the same."""
        before = self._quiet, self._warns
        self._quiet, self._warns = True, self._warns and warnings
        try:
            yield
        finally:
            self._quiet, self._warns = before

    def note(self, text: str) -> None:
        """Something chosen or noticed on the user's behalf."""
        self.line(text, shown=not self._quiet)

    def epoch(self, text: str, last: bool) -> None:
        """A line an epoch: all of them in the log; where epochs take milliseconds, one a second is shown, and the
        last."""
        now = time.monotonic()
        due = last or now - self._epoch_said >= EPOCH_INTERVAL_S
        self._epoch_said = now if due else self._epoch_said
        self.line(text, shown=due and not self._quiet)

    def warn(self, text: str) -> None:
        self.line(f"warning: {text}", style="yellow", shown=self._warns)

    def error(self, text: str) -> None:
        for line in text.split("\n"):  # not splitlines: a form feed in a name would begin a line of its own
            self.line(f"error: {line}", style="red")

    def line(self, text: str, style: str = "", shown: bool = True) -> None:
        """A line with its time, on stderr and in the log. Raises ResourceError where stderr takes no more."""
        text = printable(text)
        stamp = datetime.now().astimezone().strftime("%Y-%m-%d %H:%M:%S")
        self._to_log(f"{stamp} {text}\n")
        if not shown:
            return
        try:
            self._write(stamp, text, style)
        except OSError as error:
            silence(sys.stderr)
            raise ResourceError(f"stderr: cannot write: {error.strerror}") from None

    def _write(self, stamp: str, text: str, style: str) -> None:
        if self.terminal:
            wrapped = _wrapped(text, self._stderr.width)
            self._stderr.print(wrapped, style=style or None, markup=False, highlight=False, soft_wrap=True)
        else:
            print(f"{stamp} {text}", file=sys.stderr, flush=True)

    @cached_property
    def _stderr(self) -> Any:
        """One console for bars and lines, so that a line goes above a bar that is being drawn."""
        return _console(sys.stderr)

    def result(self, text: str) -> None:
        """A line of the result; the last one is the run folder's path."""
        text = printable(text)
        self._to_log(f"{text}\n")
        with self._results() as file:
            print(text, file=file, flush=True)

    def remark(self, text: str) -> None:
        """A sentence of the result; on a terminal it is wrapped at words, as lines are."""
        text = printable(text)
        self._to_log(f"{text}\n")
        with self._results() as file:
            print(_wrapped(text, self.width) if file.isatty() else text, file=file, flush=True)

    def rows(self, lines: bytes) -> None:
        """Whole lines of results for other programs, in their very bytes; what is unprintable in them is escaped on a
        terminal alone. Raises ResourceError where stdout takes no more."""
        if self.is_on_screen:
            text = lines.decode("utf-8", "surrogateescape")
            lines = "".join(f"{printable(line)}\n" for line in text.split("\n")[:-1]).encode(
                "utf-8", "backslashreplace"
            )
        with self._results() as file:
            file.flush()
            file.buffer.write(lines)  # type: ignore[attr-defined]
            file.buffer.flush()  # type: ignore[attr-defined]

    @property
    def is_on_screen(self) -> bool:
        """Whether results go to a terminal."""
        return sys.stdout.isatty()

    @contextmanager
    def _results(self) -> Iterator[IO[str]]:
        """Where results go. Raises ResourceError where stdout takes no more: a closed pipe, a full disk."""
        if self._quiet:
            with Path(os.devnull).open("w") as nowhere:
                yield nowhere
            return
        name = "stderr" if self.as_json else "stdout"
        try:
            yield getattr(sys, name)
        except OSError as error:
            silence(getattr(sys, name))
            raise ResourceError(f"{name}: cannot write: {error.strerror}") from None

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
        """A table of results; columns whose cells all are numbers are set to the right. Where it is wider than the
        terminal, and no cell can be wrapped at a space, each row becomes a list of its own: no name is broken."""
        title, columns = printable(title), [printable(column) for column in columns]
        cells = [[_cell(value) for value in row] for row in rows]
        numeric = [bool(rows) and all(isinstance(row[i], int | float) for row in rows) for i, _ in enumerate(columns)]
        with self._results() as file:
            console = _console(file)
            narrowest = sum(_longest_word([column, *(row[i] for row in cells)]) + 3 for i, column in enumerate(columns))
            drawn = _table(title, columns, cells, numeric)
            if rows and len(columns) > 2 and narrowest > console.width:
                drawn = _lists(title, columns, cells)
            console.print(drawn)
            file.flush()
        self._to_log("\n".join([title, "\t".join(columns), *("\t".join(row) for row in cells), ""]))

    def fits(self, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> bool:
        """Whether a table has room without wrapping a cell."""
        cells = [list(columns), *([_cell(value) for value in row] for row in rows)]
        return sum(max(map(len, column)) + 3 for column in zip(*cells, strict=True)) <= self.width

    def _to_log(self, text: str) -> None:
        if self._log:
            self._log.write(text)
        else:
            self._before_log.append(text)

    def json(self, values: dict[str, Any]) -> None:
        """The one object on stdout. Raises ResourceError where stdout takes no more."""
        if self.as_json:
            try:
                print(jsontext.dumps(values), flush=True)
            except OSError as error:
                silence(sys.stdout)
                raise ResourceError(f"stdout: cannot write: {error.strerror}") from None

    @property
    def width(self) -> int:
        """Columns that a table may take."""
        return int(_console(sys.stderr if self.as_json else sys.stdout).width)

    @contextmanager
    def progress(self, what: str, total: int | None = None) -> Iterator[Progress]:
        """A bar over `total` images (None: nobody knows) with rate and time left; plain lines every ten seconds
        elsewhere."""
        if not self.terminal:
            yield _PlainProgress(self, what, total)
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
            yield _BarProgress(bar, bar.add_task(what, total=total, detail=""))


def appended(path: Path) -> IO[str]:
    """A file to append lines to; a link is not followed, as a run folder may come from anyone. Raises OSError."""

    def no_link(name: str, flags: int) -> int:
        return os.open(name, flags | os.O_NOFOLLOW, 0o666)

    return open(path, "a", encoding="utf-8", errors="backslashreplace", buffering=1, opener=no_link)


class Progress:
    """How far a pass has come, shown nowhere. `detail` shows losses."""

    def advance(self, images: int, detail: str = "") -> None:
        pass

    def skip(self, images: int) -> None:
        """Done before, by another process: they do not count in the rate."""


class _BarProgress(Progress):
    def __init__(self, bar: Any, task: Any):
        self._bar, self._task = bar, task
        self._start, self._done = time.monotonic(), 0

    def advance(self, images: int, detail: str = "") -> None:
        self._done += images
        rate = self._done / max(time.monotonic() - self._start, 1e-9)
        self._bar.update(self._task, advance=images, detail=f"{rate:,.0f} images/s {detail}".rstrip())

    def skip(self, images: int) -> None:
        self._bar.update(self._task, advance=images)


class _PlainProgress(Progress):
    def __init__(self, display: Display, what: str, total: int | None):
        self._display, self._what, self._total = display, what, total
        self._start = self._said = time.monotonic()
        self._done = self._skipped = 0

    def skip(self, images: int) -> None:
        self._done, self._skipped = self._done + images, self._skipped + images

    def advance(self, images: int, detail: str = "") -> None:
        self._done += images
        now = time.monotonic()
        if now - self._said < PLAIN_INTERVAL_S:
            return
        self._said = now
        rate = (self._done - self._skipped) / (now - self._start)
        done = f"{self._done:,} images, {rate:,.0f}/s"
        if self._total is not None:
            left = (self._total - self._done) / max(rate, 1e-9)
            done = f"{self._done:,}/{self._total:,} images, {rate:,.0f}/s, {left:.0f} s left"
        self._display.line(f"{self._what}: {done} {detail}".rstrip())


def _wrapped(text: str, width: int) -> str:
    """At words; a path that is longer than the line stays whole, to be copied."""
    look: dict[str, Any] = {"break_long_words": False, "break_on_hyphens": False, "replace_whitespace": False}
    return textwrap.fill(text, width, subsequent_indent="  ", **look)


def _console(file: IO[str]) -> Any:
    from rich.console import Console

    class OurConsole(Console):
        def on_broken_pipe(self) -> None:
            """rich's own would exit 1 here, our code for a bug."""
            raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))

    width = None if file.isatty() or "COLUMNS" in os.environ else PLAIN_WIDTH
    return OurConsole(file=file, width=width)


def _table(title: str, columns: Sequence[str], cells: Sequence[Sequence[str]], numeric: Sequence[bool]) -> Any:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    look: dict[str, Any] = {"title_justify": "left", "box": box.SIMPLE_HEAD, "show_header": any(columns)}
    table = Table(title=Text(title, style="bold"), **look)
    for column, is_numeric in zip(columns, numeric, strict=True):
        justify: Any = "right" if is_numeric else "left"
        table.add_column(Text(column), justify=justify, overflow="fold", no_wrap=is_numeric)
    for row in cells:
        table.add_row(*(Text(cell) for cell in row))
    return table


def _lists(title: str, columns: Sequence[str], cells: Sequence[Sequence[str]]) -> Any:
    """Of each row its first cell, which names it, and below it each other cell after its column's name."""
    from rich.text import Text

    text = Text(f"{title}\n", style="bold")
    longest = max(map(len, columns[1:]))
    for first, *others in cells:
        text.append(f"\n  {first}\n", style="not bold")
        for column, cell in zip(columns[1:], others, strict=True):
            text.append(f"    {column:{longest}}  {cell}\n" if cell else "", style="not bold")
    return text


def _longest_word(cells: Sequence[str]) -> int:
    return max((len(word) for cell in cells for word in cell.split(" ")), default=0)


def silence(stream: IO[str]) -> None:
    """What is still in its buffer must not fail again when the interpreter ends."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _cell(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.4f}"
    return f"{value:,}" if isinstance(value, int) else printable(str(value))
