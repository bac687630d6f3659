"""The run folder: a name of its own, metrics as they come, a summary of how it ended, whatever happens."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from transferctl import runs
from transferctl.display import Display
from transferctl.errors import DivergedError, ResourceError, Terminated


def _start(tmp_path: Path) -> Any:
    return runs.start(tmp_path / "runs", "extract", "pets", "name: pets\n", Display(as_json=True))


def _summary(run: runs.Run) -> dict[str, Any]:
    values: dict[str, Any] = json.loads((run.path / "summary.json").read_text())
    return values


def test_runs_that_start_within_one_second_have_folders_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Clock(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> Clock:
            return cls(2026, 11, 24, 1, 57, 3)

    monkeypatch.setattr(runs, "datetime", Clock)
    with _start(tmp_path) as one, _start(tmp_path) as two, _start(tmp_path) as three:
        pass
    name = "20261124-015703-extract-pets"
    assert [run.path.name for run in (one, two, three)] == [name, f"{name}-2", f"{name}-3"]


def test_a_line_of_metrics_is_in_the_file_at_once_and_no_number_is_not_json(tmp_path: Path) -> None:
    with _start(tmp_path) as run:
        run.log_metrics(step=1, loss=float("nan"), split="train")
        (line,) = (run.path / "metrics.jsonl").read_text().splitlines()
        assert json.loads(line) == {"step": 1, "loss": None, "split": "train"}
        assert _summary(run)["status"] == "running"
    assert _summary(run)["status"] == "finished"


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (DivergedError("loss is nan"), "failed", 6),
        (KeyboardInterrupt(), "interrupted", 130),
        (Terminated(), "interrupted", 143),
        (OSError(28, "No space left on device"), "failed", 5),
        (RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed."), "failed", 5),
        (ZeroDivisionError("division by zero"), "failed", 1),
    ],
)
def test_the_summary_says_how_a_run_ended(error: BaseException, status: str, code: int, tmp_path: Path) -> None:
    with pytest.raises(type(error)), _start(tmp_path) as run:
        run.summary["best"] = {"epoch": 3}
        raise error
    found = _summary(run)
    assert (found["status"], found["exit_code"], found["best"]) == (status, code, {"epoch": 3})
    assert found["error"]
    assert found["schema_version"] == runs.SCHEMA_VERSION


def test_an_interrupted_write_leaves_the_old_file_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs.write_atomically(tmp_path / "a.json", "old")

    def refuse(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(runs.os, "fsync", refuse)
    with pytest.raises(OSError):
        runs.write_atomically(tmp_path / "a.json", "new")
    assert (tmp_path / "a.json").read_text() == "old"


def test_a_runs_folder_that_cannot_be_made_is_one_error(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("")
    with pytest.raises(ResourceError, match=r"runs: cannot write"), _start(tmp_path):
        pass


def test_the_environment_names_what_a_result_depends_on(tmp_path: Path) -> None:
    found = runs.environment(7, "cpu", {"target.train": "abc"})
    assert found["seed"] == 7 and found["data"] == {"target.train": "abc"} and found["threads"] >= 1
    assert found["packages"]["torch"] and found["packages"]["transferctl"]
