"""`transferctl runs`: which runs are shown, in which order, and how to go on with them."""

from __future__ import annotations

import math
import os
import re
import shlex
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from fnmatch import fnmatchcase
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from transferctl import conditions, jsontext, runrows
from transferctl.conditions import Condition
from transferctl.display import Display
from transferctl.errors import Problem, SpecError
from transferctl.runrows import STATES, Row
from transferctl.wording import counted, printable, shortened, shown

SORTS = ("age", "name", "accuracy", "state", "elapsed")
RESUMABLE = ("pretrain", "extract", "finetune", "sweep")  # as resuming.RESUMABLE, which imports the spec
SHOWN_ROWS = 50
WIDE = 100  # columns
REASONS_SHOWN = 5
LEAST_REASON = 60  # characters of a reason, where the line is narrower
VERBS = (*RESUMABLE, "eval", "rank", "advise")


@dataclass(frozen=True)
class Wanted:
    """Which rows are asked for: by state, verb, name (a glob, of the run or its folder) and conditions on metrics."""

    state: str | None = None
    verb: str | None = None
    name: str | None = None
    where: Sequence[str] = ()

    @property
    def is_all(self) -> bool:
        return not (self.state or self.verb or self.name or self.where)


def show(folder: Path, wanted: Wanted, sort: str, limit: int | None, display: Display) -> dict[str, Any]:
    """A row a run, and how to go on. limit None: for people the first SHOWN_ROWS, for scripts all; 0: all.

    Raises SpecError where there is no such folder, or a condition is on a metric that no run has.
    """
    asked = [conditions.parse(text, "--where", "accuracy>0.8") for text in wanted.where]
    folders = _run_folders(folder)
    most = (None if display.as_json else SHOWN_ROWS) if limit is None else limit or None
    if sort == "age" and wanted.is_all:  # the folders' names tell their order: no more is read than is shown
        rows, total = [runrows.row_of(path, started) for path, started in folders[:most]], len(folders)
    else:
        found = [runrows.row_of(path, started) for path, started in folders]
        found = [row for row in found if _is_wanted(row, wanted)]
        chosen = _satisfying(found, asked)
        rows, total = sorted(chosen, key=_ORDERS[sort])[:most], len(chosen)
    _say(folder, rows[:SHOWN_ROWS] if limit is None else rows, total, len(folders), display)
    return {"path": str(folder), "total": total, "runs": [_as_json(row) for row in rows]}


def _run_folders(folder: Path) -> list[tuple[Path, float]]:
    """Run folders and when each was started, the latest first."""
    if not folder.is_dir():
        what = "is a file" if folder.exists() else "no such folder"
        raise _usage(folder, f"{what}; name the folder that --runs-dir named, by default ./runs of where a run started")
    if (folder / "sweep.json").exists():
        raise _usage(folder, f"is a sweep; its members: transferctl runs {_quoted(folder / 'members')}")
    if (folder / "summary.json").exists():
        raise _usage(folder, f"is a run; name the folder that holds it: transferctl runs {_quoted(folder.parent)}")
    try:
        with os.scandir(folder) as entries:
            folders = [Path(entry.path) for entry in entries if not entry.name.startswith(".") and entry.is_dir()]
    except OSError as error:
        raise _usage(folder, f"cannot be listed: {error.strerror}") from None
    found = [(path, runrows.started(path)) for path in folders if runrows.is_run(path)]
    return sorted(found, key=lambda one: (one[1], one[0].name), reverse=True)


def _usage(folder: Path, message: str) -> SpecError:
    return SpecError([Problem("", message, printable(str(folder)))])


# -- which of them, and in which order -------------------------------------------------------------------


def _value(row: Row, metric: str) -> float | None:
    return row.elapsed_s if metric == "elapsed_s" else row.metrics.get(metric)


def _satisfying(rows: Sequence[Row], asked: Sequence[Condition]) -> list[Row]:
    """A run that lacks the metric is left out; a metric that none has, or a number that it cannot be, is most likely a
    mistake. Raises SpecError."""
    problems = []
    for one in asked:
        message = one.out_of_range()
        if rows and all(_value(row, one.metric) is None for row in rows):
            known = sorted({name for row in rows for name in row.metrics} | {"elapsed_s"})
            message = f"no run here has {one.metric}; there are {shown(known, 30)}"
        problems += [one.problem(message)] if message else []
    if problems:
        raise SpecError(problems)
    return [row for row in rows if all(_holds(row, one) for one in asked)]


def _holds(row: Row, condition: Condition) -> bool:
    value = _value(row, condition.metric)
    return value is not None and condition.is_met(value)


def _is_wanted(row: Row, wanted: Wanted) -> bool:
    return (
        wanted.state in (None, row.state)
        and wanted.verb in (None, row.verb)
        and (wanted.name is None or any(fnmatchcase(name, wanted.name) for name in (row.name, row.path.name)))
    )


def _highest_first(value: float | None) -> float:
    return math.inf if value is None else -value


_ORDERS: dict[str, Callable[[Row], Any]] = {
    "age": lambda row: -row.started,
    "name": lambda row: (row.name, row.path.name),
    "accuracy": lambda row: (_highest_first(row.accuracy), -row.started),
    "state": lambda row: (STATES.index(row.state), -row.started),
    "elapsed": lambda row: (_highest_first(row.elapsed_s), -row.started),
}


# -- for people -----------------------------------------------------------------------------------------


def _say(folder: Path, rows: Sequence[Row], total: int, of: int, display: Display) -> None:
    if not rows:
        none = f"none of {counted(of, 'run')} is like this" if of else "no runs yet; transferctl extract SPEC makes one"
        display.result(f"{folder}: {none}")
        return
    now, is_wide = datetime.now().timestamp(), display.width >= WIDE
    columns: dict[str, Callable[[Row], str]] = {
        "run": lambda row: row.path.name,
        "state": lambda row: row.state_in_words,
        "accuracy, %": partial(_result, with_epoch=is_wide),
        "source": _source_change,
        "took": lambda row: _duration(row.elapsed_s) if is_wide else "",
        "age": lambda row: _duration(now - row.started),
    }
    shown_columns = {title: cell for title, cell in columns.items() if any(map(cell, rows))}
    if "source" in shown_columns and not is_wide:
        del shown_columns["age"]  # which the folder's name says too
    cells = [[cell(row) for cell in shown_columns.values()] for row in rows]
    display.table(str(folder), list(shown_columns), cells)
    if total > len(rows):
        display.result(f"{len(rows):,} of {counted(total, 'run')}; --limit 0 shows all")
    for row in islice((row for row in rows if row.reason), REASONS_SHOWN):
        begin = f"{row.path.name}: {row.state_in_words}: "
        reason = row.reason.rpartition("gate missed: ")[2] if row.state_in_words == "gate missed" else row.reason
        display.result(begin + shortened(reason, max(display.width - len(begin), LEAST_REASON)))
    for line in _how_to_go_on(rows):
        display.result(line)


def _result(row: Row, *, with_epoch: bool) -> str:
    """What the latest epoch of a run without an end has, or the best one: accuracy, its interval, of which data."""
    if row.accuracy is None:
        return ""
    ends = [row.metrics.get(f"accuracy_{end}") for end in ("low", "high")]
    interval = " ({:.0f}–{:.0f})".format(*(100 * end for end in ends if end is not None)) if None not in ends else ""
    epoch = f", epoch {row.epoch}" if row.epoch is not None and with_epoch else ""
    return f"{100 * row.accuracy:.1f}{interval} {row.split}{epoch}"


def _source_change(row: Row) -> str:
    change = row.metrics.get("source_change")
    return "" if change is None else f"{100 * change:+.1f}"


def _duration(seconds: float | None) -> str:
    """In its largest unit: 45 s, 12 min, 3 h, 9 d."""
    if seconds is None:
        return ""
    seconds = max(seconds, 0.0)
    for unit, size, below in (("s", 1, 100), ("min", 60, 100), ("h", 3600, 48)):
        if seconds < below * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds / 86400:,.0f} d"


def _how_to_go_on(rows: Sequence[Row]) -> Iterator[str]:
    if stopped := [row for row in rows if row.state == "interrupted" and row.verb in RESUMABLE]:
        which = f"the latest of {len(stopped)} that were" if len(stopped) > 1 else "the one that was"
        command = f"transferctl {stopped[0].verb} --resume {_quoted(stopped[0].path)}"
        yield f"to go on with {which} interrupted: {command}"
    if pair := _worth_comparing(rows):
        named = " ".join(_quoted(row.path) for row in pair)
        yield f"to {'compare two' if len(pair) > 1 else 'look at one'}: transferctl report {named}"


def _worth_comparing(rows: Sequence[Row]) -> list[Row]:
    """The first that is finished, and the next of another verb or spec; the runs inside a baseline, which have another
    seed alone, are parts of one."""
    names = {row.name for row in rows}
    finished = [
        row
        for row in rows
        if row.state == "finished"
        and row.verb in ("extract", "finetune")
        and re.sub(r"-seed\d+$", "", row.name) not in names - {row.name}
    ]
    others = (row for row in finished[1:] if row.verb != finished[0].verb or _spec(row) != _spec(finished[0]))
    return [*finished[:1], *islice(others, 1)]


def _spec(row: Row) -> str:
    try:
        return jsontext.read_text(row.path / "spec.yaml")
    except (OSError, ValueError):
        return ""


def _quoted(path: Path) -> str:
    return shlex.quote(printable(str(path)))


def _as_json(row: Row) -> dict[str, Any]:
    started = datetime.fromtimestamp(row.started).astimezone().isoformat(timespec="seconds")
    return {
        "run": str(row.path), "name": row.name, "verb": row.verb, "state": row.state, "started": started,
        "elapsed_s": row.elapsed_s, "split": row.split, "metrics": dict(row.metrics), "epoch": row.epoch,
        "exit_code": row.exit_code, "reason": row.reason,
    }  # fmt: skip
