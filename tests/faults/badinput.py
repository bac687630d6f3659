"""Bad input of every kind: what makes it, how it ends, what is said. Alone it prints the table of docs/robustness.md.

python tests/faults/badinput.py
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import baddata
import badimages
import badruns
import badspecs
import badweights
from entries import ENTRIES, Entry

from transferctl import cli

MODULES = (badspecs, baddata, badimages, badweights, badruns)  # each adds to ENTRIES
EPOCHAL = re.compile(r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d ", re.MULTILINE)


@dataclass(frozen=True)
class Ending:
    """How a command ended: its exit code, the object on stdout, stderr."""

    exit_code: int
    answer: dict[str, Any]
    said: str

    @property
    def message(self) -> str:
        """The error; of a command that ended well, its warnings and what it says of the data."""
        plain = EPOCHAL.sub("", self.said)
        return self.answer.get("error") or plain


def run(entry: Entry, folder: Path) -> Ending:
    """The entry's command with --json, in this process, with `folder` as the working folder."""
    words = ["transferctl", *entry.make(folder)]
    words += [] if "--json" in words else ["--json"]
    out, err, code = io.StringIO(), io.StringIO(), 0
    streams = contextlib.redirect_stdout(out), contextlib.redirect_stderr(err)
    with _inside(folder), mock.patch.object(sys, "argv", words), streams[0], streams[1]:
        try:
            cli.main()
        except SystemExit as end:
            code = int(end.code or 0)
    return Ending(code, json.loads(out.getvalue()), err.getvalue())


@contextlib.contextmanager
def _inside(folder: Path) -> Iterator[None]:
    with contextlib.chdir(folder), mock.patch.dict(os.environ, {"TRANSFERCTL_CACHE": str(folder / "cache")}):
        yield


def row(entry: Entry, ending: Ending, folder: Path) -> str:
    """The table's row: kind, exit code, the line of the message that says what the entry is about."""
    lines = ending.message.splitlines()
    line = next((line for line in lines if entry.says[0] in line), lines[0]).strip()
    line = re.sub(rf"{re.escape(str(folder))}/?", "", line).replace("|", r"\|").replace("`", "'")
    shortened = line if len(line) <= 200 else f"{line[:199]}…"
    shown = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in shortened)
    return f"| {entry.group}: {entry.what} | {ending.exit_code} | `{shown}` |"


def table() -> str:
    lines = ["| bad input | exit code | what is said |", "|---|---|---|"]
    for entry in ENTRIES:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            lines.append(row(entry, run(entry, folder), folder))
    return "\n".join(lines)


if __name__ == "__main__":
    print(table())
