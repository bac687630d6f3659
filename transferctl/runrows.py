"""A run folder in one row: its state, when it was started, what it scored. Reads summary.json alone, and of a run
without an end its last metrics; starts without numpy and pydantic. Run folders may come from anyone."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

from transferctl import jsontext, lock
from transferctl.errors import ExitCode
from transferctl.wording import one_line, printable

STATES = ("running", "finished", "interrupted", "failed", "unreadable")
TAIL_BYTES = 16 * 1024
_OF_THE_RUN = ("schema_version", "exit_code", "elapsed_s")  # numbers beside the metrics in a summary of eval
_STAMP = re.compile(r"(\d{8}-\d{6})-")


@dataclass(frozen=True)
class Row:
    """A run. metrics: the scalars of its headline, which are of split `split`; reason: why it failed or cannot be
    read; elapsed_s: of its last process; epoch: the last that a run without an end has scored."""

    path: Path
    state: str
    started: float
    verb: str = ""
    name: str = ""
    split: str = ""
    metrics: Mapping[str, float] = field(default_factory=dict)
    elapsed_s: float | None = None
    epoch: int | None = None
    exit_code: int | None = None
    reason: str = ""

    @property
    def state_in_words(self) -> str:
        """An evaluation whose gate is missed has failed as asked, unlike one that crashed."""
        return "gate missed" if self.state == "failed" and self.exit_code == ExitCode.GATE_MISSED else self.state

    @property
    def accuracy(self) -> float | None:
        return self.metrics.get("accuracy")


def is_run(path: Path) -> bool:
    """By its name, as nearly all; a renamed one has a summary or settings."""
    return bool(_STAMP.match(path.name)) or os.path.lexists(path / "summary.json") or (path / "spec.yaml").is_file()


def started(path: Path) -> float:
    """Seconds since 1970: as the folder's name says, in local time; of a renamed one when its settings were written."""
    if match := _STAMP.match(path.name):
        try:
            return datetime.strptime(match[1], "%Y%m%d-%H%M%S").timestamp()
        except (ValueError, OverflowError, OSError):
            pass
    for known in (path / "spec.yaml", path):
        try:
            return known.lstat().st_mtime
        except OSError:
            continue
    return 0.0


def row_of(path: Path, started: float) -> Row:
    try:
        summary = jsontext.read(path / "summary.json")
        if not isinstance(summary, dict) or summary.get("status") not in STATES[:-1]:
            raise ValueError("it is no summary of a run")
    except FileNotFoundError:
        return Row(path, "unreadable", started, reason="it has no summary.json")
    except (OSError, ValueError) as error:
        what = "is no JSON: " if isinstance(error, json.JSONDecodeError) else ""
        return Row(path, "unreadable", started, reason=f"{what}{one_line(getattr(error, 'strerror', None) or error)}")
    state = state_of(path, summary)
    reason = printable(" ".join(str(summary["error"]).split())) if state == "failed" and "error" in summary else ""
    elapsed = _numbers(summary, "elapsed_s").get("elapsed_s") if summary["status"] != "running" else None
    code = _numbers(summary, "exit_code").get("exit_code")
    split, metrics = _headline(summary)
    epoch = None
    if state != "finished" and not metrics and (score := so_far(path)):
        split, metrics, epoch = score
        split = f"source {split}" if summary.get("verb") == "pretrain" else split
    return Row(
        path, state, started, _word(summary, "verb"), _word(summary, "name"), split, metrics, elapsed, epoch,
        None if code is None else int(code), reason,
    )  # fmt: skip


def state_of(path: Path, summary: Mapping[str, Any]) -> str:
    """One of STATES, by what summary.json says; it goes on saying `running` of a run that was killed, which holds its
    lock no more."""
    told = summary.get("status")
    if told == "running":
        return "running" if lock.is_held(path) else "interrupted"
    return str(told) if told in STATES else "unreadable"


class SoFar(NamedTuple):
    """metrics: of an epoch's validation; split: val, which of `pretrain` is the source's."""

    split: str
    metrics: dict[str, float]
    epoch: int | None


def so_far(path: Path) -> SoFar | None:
    """What a run without an end scored last: the last validation in metrics.jsonl, of which the end alone is read."""
    for line in reversed(_last_lines(path / "metrics.jsonl")):
        try:
            values = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(values, dict) and values.get("split") == "val":
            epoch = values.get("epoch")
            return SoFar("val", _scalars(values), epoch if isinstance(epoch, int) else None)
    return None


def _word(summary: Mapping[str, Any], key: str) -> str:
    return printable(str(summary.get(key, "")))[:100]


def _headline(summary: Mapping[str, Any]) -> tuple[str, dict[str, float]]:
    """What was scored (test where there is one, else validation, else what eval was asked for), and its numbers; with
    the change of the source's accuracy as source_change."""
    source, best = _mapping(summary.get("source")), _mapping(summary.get("best"))
    changes = _numbers(source or summary, "accuracy_change", "accuracy_change_low", "accuracy_change_high")
    change = {name.replace("accuracy", "source"): value for name, value in changes.items()}
    if test := _scalars(summary.get("test")):
        return "test", test | change
    if val := _scalars(best.get("val")):
        return "source val" if summary.get("verb") == "pretrain" else "val", val | change
    told = summary.get("after") or {key: value for key, value in summary.items() if key not in _OF_THE_RUN}
    scored = _scalars(told)
    if "accuracy" in scored:
        of = "source " if "after" in summary else ""
        return of + _word(summary, "split"), scored | change
    return "", change


def _last_lines(path: Path) -> list[bytes]:
    try:
        if not path.is_file():  # a FIFO would block
            return []
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(size - TAIL_BYTES, 0))
            return file.read(TAIL_BYTES).splitlines()
    except OSError:
        return []


def _scalars(values: Any) -> dict[str, float]:
    return _numbers(values, *values) if isinstance(values, dict) else {}


def _numbers(values: Mapping[str, Any], *names: str) -> dict[str, float]:
    return {str(name): float(values[name]) for name in names if _is_number(values.get(name))}


def _is_number(value: Any) -> bool:
    """A finite one, that a float holds; JSON may have NaN, or a thousand digits."""
    try:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:
        return False


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}
