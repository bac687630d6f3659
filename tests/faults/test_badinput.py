"""Bad input of every kind ends with its documented exit code and one story that names the file and the fix."""

from __future__ import annotations

import json
import re
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from badinput import Ending, run
from entries import ENTRIES, Entry

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="some of the links lead into /proc and /dev")
PAGE = Path(__file__).parents[2] / "docs" / "robustness.md"


@pytest.fixture(autouse=True)
def _handlers() -> Iterator[None]:
    """The commands install their own handlers; the test process keeps those it had."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGPIPE)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.id)
def test_bad_input_ends_with_its_code_and_says_what_and_where(entry: Entry, tmp_path: Path) -> None:
    ending = run(entry, tmp_path)
    assert ending.exit_code == entry.exit_code, ending.said
    for words in entry.says:
        assert words in ending.message, ending.message
    assert "Traceback" not in ending.said and "bug in transferctl" not in ending.said
    assert not list(tmp_path.rglob("canary")), "something in the input was run"
    _assert_told_once(ending)
    _assert_no_run_is_finished(tmp_path / "runs", ending)


def _assert_told_once(ending: Ending) -> None:
    """In the object as on stderr, where nothing moves the cursor or begins a line that is not ours."""
    assert ending.answer["exit_code"] == ending.exit_code
    assert ending.answer["status"] == ("failed" if ending.exit_code else "finished")
    assert all(character.isprintable() for character in ending.said.replace("\n", ""))
    told = [line for line in ending.said.splitlines() if re.match(r"\S+ \S+ error: ", line)]
    assert len(told) == (ending.answer["error"].count("\n") + 1 if ending.exit_code else 0)


def _assert_no_run_is_finished(runs: Path, ending: Ending) -> None:
    for summary in runs.glob("*/summary.json"):
        status = json.loads(summary.read_text(encoding="utf-8"))["status"]
        assert (status == "finished") == (ending.exit_code == 0)


def test_the_catalogue_has_at_least_sixty_kinds_each_once() -> None:
    assert len({entry.id for entry in ENTRIES}) == len(ENTRIES) >= 60
    assert len({entry.what for entry in ENTRIES}) >= 60


def test_the_page_has_a_row_for_each_entry_with_its_exit_code() -> None:
    rows = re.findall(r"^\| ([\w-]+: .*?) \| (\d+) \|", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    assert rows == [(f"{entry.group}: {entry.what}", str(entry.exit_code)) for entry in ENTRIES]
