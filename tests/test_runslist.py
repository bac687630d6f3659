"""`transferctl runs`: what became of each run, also of those that others left, killed or damaged."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from transferctl import cli, lock, resuming, runs, runslist
from transferctl.cli import app
from transferctl.display import Display
from transferctl.errors import DivergedError, Terminated

Invoke = Callable[..., tuple[int, dict[str, Any]]]
VAL = {"n": 49, "loss": 0.4, "accuracy": 0.84, "accuracy_low": 0.77, "accuracy_high": 0.91, "confusion": [[1]]}


def put(folder: Path, run: str, /, **summary: Any) -> Path:
    """A run folder as verbs leave them."""
    (folder / run).mkdir(parents=True)
    whole = {"schema_version": 1, "verb": "extract", "name": "pets", "status": "finished", "elapsed_s": 60.0} | summary
    (folder / run / "summary.json").write_text(json.dumps(whole))
    return folder / run


@pytest.fixture
def many(tmp_path: Path) -> Path:
    """Three that are finished, of rising age."""
    best = {"epoch": 3, "val": VAL}
    put(tmp_path, "20260103-000000-extract-pets", best=best, elapsed_s=5.0)
    put(tmp_path, "20260102-000000-finetune-pets", verb="finetune", best=best, test=VAL | {"accuracy": 0.9},
        source={"accuracy_change": -0.036})  # fmt: skip
    put(tmp_path, "20260101-000000-eval-ants", verb="eval", name="ants", split="test", **VAL | {"accuracy": 0.7})
    return tmp_path


def names(answer: dict[str, Any]) -> list[str]:
    return [Path(row["run"]).name[16:] for row in answer["runs"]]


def states(answer: dict[str, Any]) -> dict[str, str]:
    return {Path(row["run"]).name[16:]: row["state"] for row in answer["runs"]}


def shown(*arguments: object, width: int = 120) -> str:
    result = CliRunner().invoke(app, ["runs", *map(str, arguments)], env={"COLUMNS": str(width)})
    assert result.exit_code == 0, result.output
    return result.stdout


def test_a_row_has_the_state_the_headline_with_its_interval_and_what_was_forgotten(many: Path, invoke: Invoke) -> None:
    code, answer = invoke("runs", many)
    assert code == 0 and names(answer) == ["extract-pets", "finetune-pets", "eval-ants"]
    extract, finetune, evaluated = answer["runs"]
    assert (extract["split"], extract["metrics"]["accuracy"], extract["elapsed_s"]) == ("val", 0.84, 5.0)
    assert (finetune["split"], finetune["metrics"]["accuracy"]) == ("test", 0.9)
    assert finetune["metrics"]["source_change"] == -0.036
    assert (evaluated["split"], evaluated["metrics"]["accuracy"]) == ("test", 0.7)
    assert extract["started"].startswith("2026-01-03T00:00:00")
    line = next(line for line in shown(many).splitlines() if "finetune-pets" in line)
    assert "90.0 (77–91) test" in line and "-3.6" in line and "60 s" in line


@pytest.mark.parametrize("width", [80, 120])
def test_rows_of_ordinary_runs_take_one_line_each(width: int, many: Path) -> None:
    lines = shown(many, width=width).splitlines()
    rows = [line for line in lines if line.startswith("  2026")]
    assert len(rows) == 3 and all("-pets " in row or "-ants " in row for row in rows)
    assert max(map(len, lines[:6])) <= width


def test_running_is_a_run_that_a_living_process_holds(tmp_path: Path, invoke: Invoke) -> None:
    held = put(tmp_path, "20260101-000000-extract-held", status="running")
    killed = put(tmp_path, "20260101-000000-extract-killed", status="running")
    for run in (held, killed):
        lines = [{"split": "val", "epoch": e, "step": e, "accuracy": e / 10} for e in (1, 2)]
        (run / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines) + '{"split": "val", "ac')
    (killed / "lock").write_text('{"pid": 1, "host": "elsewhere"}')
    with lock.locked(held):
        _, answer = invoke("runs", tmp_path)
    assert states(answer) == {"extract-held": "running", "extract-killed": "interrupted"}
    assert [(row["epoch"], row["metrics"]["accuracy"]) for row in answer["runs"]] == [(2, 0.2), (2, 0.2)]


def test_runs_that_end_badly_say_how(tmp_path: Path, invoke: Invoke) -> None:
    for error in (Terminated(), DivergedError("L_T is nan at step 7\x1b[2J")):
        with pytest.raises(type(error)), runs.start(tmp_path, "extract", "pets", "", Display(as_json=True)):
            raise error
    _, answer = invoke("runs", tmp_path, "--sort", "state")
    assert [row["state"] for row in answer["runs"]] == ["interrupted", "failed"]
    output = shown(tmp_path)
    assert "failed: L_T is nan at step 7" in output and "\x1b" not in output
    stopped = answer["runs"][0]["run"]
    assert f"to go on with the one that was interrupted: transferctl extract --resume {stopped}" in output


HOSTILE = {
    "not-json": b'{"verb": "ex',
    "a-list": b"[1, 2]",
    "nothing": b"",
    "no-text": b"\xff\xfe\x00",
    "deep": b"[" * 100_000,
    "no-status": b'{"verb": "extract"}',
    "odd-status": b'{"status": ["finished"]}',
}
LIES = {
    "nan": b'{"status": "finished", "verb": "extract", "best": {"val": {"accuracy": NaN, "accuracy_low": 1e999}}}',
    "wrong-types": b'{"status": "finished", "verb": {"a": 1}, "name": 3, "best": [1], "test": "x", "source": 7, "elapsed_s": "y"}',
    "long-number": b'{"status": "finished", "test": {"accuracy": 1' + b"0" * 4000 + b"}}",
    "bool": b'{"status": "failed", "error": {"a": "\\u001b"}, "test": {"accuracy": true}, "elapsed_s": -1}',
}


def test_damaged_and_hostile_folders_are_rows_and_no_crash(tmp_path: Path, invoke: Invoke) -> None:
    for name, content in {**HOSTILE, **LIES}.items():
        (put(tmp_path, f"20260101-000000-{name}") / "summary.json").write_bytes(content)
    fifo = put(tmp_path, "20260101-000000-fifo") / "summary.json"
    fifo.unlink()
    os.mkfifo(fifo)
    (tmp_path / "20260101-000000-no-summary").mkdir()
    (tmp_path / "20269999-999999-no-date").mkdir()
    (tmp_path / "holiday-photos").mkdir()
    (tmp_path / ".hidden").mkdir()
    (tmp_path / "20260101-000000-a-file").touch()
    code, answer = invoke("runs", tmp_path)
    found = states(answer)
    unreadable = {name for name, state in found.items() if state == "unreadable"}
    assert code == 0 and unreadable == {*HOSTILE, "fifo", "no-summary", "no-date"}
    assert all(row["reason"] for row in answer["runs"] if row["state"] == "unreadable")
    assert set(found) - unreadable == set(LIES)
    for sort in runslist.SORTS:
        assert len(shown(tmp_path, "--sort", sort).splitlines()) > len(found)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--verb", "finetune"], ["finetune-pets"]),
        (["--name", "pets"], ["extract-pets", "finetune-pets"]),
        (["--name", "2026010[12]*"], ["finetune-pets", "eval-ants"]),
        (["--where", "accuracy>=0.84"], ["extract-pets", "finetune-pets"]),
        (["--where", "accuracy > 0.8", "--where", "elapsed_s<10"], ["extract-pets"]),
        (["--where", "source_change<0"], ["finetune-pets"]),
        (["--sort", "accuracy"], ["finetune-pets", "extract-pets", "eval-ants"]),
        (["--sort", "name"], ["eval-ants", "finetune-pets", "extract-pets"]),
        (["--sort", "elapsed"], ["finetune-pets", "eval-ants", "extract-pets"]),
        (["--limit", "1"], ["extract-pets"]),
        (["--sort", "accuracy", "--limit", "2"], ["finetune-pets", "extract-pets"]),
        (["--state", "failed"], []),
    ],
)
def test_rows_are_filtered_and_sorted(options: list[str], expected: list[str], many: Path, invoke: Invoke) -> None:
    code, answer = invoke("runs", many, *options)
    assert (code, names(answer)) == (0, expected)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--where", "acuracy>1"], "--where acuracy>1: no run here has acuracy; there are accuracy"),
        (["--where", "accuracy"], "write a metric"),
        (["--where", "accuracy>80"], "--where accuracy>80: accuracy is a fraction, from 0 to 1; write 0.8 for 80 %"),
        (["--verb", "fintune"], "--verb fintune: must be one of pretrain, extract"),
        (["--where", "accuracy>1e"], "write a metric"),
        (["--sort", "size"], "--sort size: must be one of age"),
        (["--state", "done"], "--state done: must be one of running"),
    ],
)
def test_mistaken_options_exit_2(options: list[str], said: str, many: Path, invoke: Invoke) -> None:
    code, answer = invoke("runs", many, *options)
    assert code == 2 and said in answer["error"]


def test_a_folder_that_holds_no_runs_says_what_to_do(tmp_path: Path, invoke: Invoke, many: Path) -> None:
    code, answer = invoke("runs", tmp_path / "nowhere")
    assert code == 2 and "no such folder" in answer["error"]
    code, answer = invoke("runs", many / "20260103-000000-extract-pets")
    assert code == 2 and f"is a run; name the folder that holds it: transferctl runs {many}" in answer["error"]
    (tmp_path / "empty").mkdir()
    assert "no runs yet; transferctl extract SPEC makes one" in shown(tmp_path / "empty")
    assert "none of 3 runs is like this" in shown(many, "--verb", "pretrain")


def test_two_runs_to_compare_are_named(many: Path) -> None:
    assert f"transferctl report {many}/20260103-000000-extract-pets {many}/20260102-000000-finetune-pets" in shown(many)


def test_the_runs_inside_a_baseline_are_not_what_is_compared(tmp_path: Path) -> None:
    for number, name in enumerate(("pets", "pets-seed1", "pets-seed2")):
        put(tmp_path, f"2026010{number + 1}-000000-extract-{name}", name=name)
    assert f"to look at one: transferctl report {tmp_path}/20260101-000000-extract-pets" in shown(tmp_path)
    again = put(tmp_path, "20260105-000000-extract-pets")
    assert "to look at one" in shown(tmp_path)  # the same spec
    (again / "spec.yaml").write_text("seed: 3")
    assert f"to compare two: transferctl report {again} {tmp_path}/20260101-000000-extract-pets" in shown(tmp_path)


def test_a_missed_gate_is_told_apart_from_a_crash(tmp_path: Path, invoke: Invoke) -> None:
    missed = "runs/x: gate missed: accuracy<0.9 (it is 0.8400)"
    put(tmp_path, "20260101-000000-eval-pets", verb="eval", status="failed", exit_code=8, error=missed)
    _, answer = invoke("runs", tmp_path, "--state", "failed")
    assert [(row["state"], row["exit_code"]) for row in answer["runs"]] == [("failed", 8)]
    assert "eval-pets   gate missed" in (output := shown(tmp_path))
    assert "eval-pets: gate missed: accuracy<0.9 (it is 0.8400)" in output


@pytest.mark.parametrize("width", [80, 120])
def test_a_long_reason_is_a_line_cut_at_a_word_with_its_advice(width: int, tmp_path: Path, invoke: Invoke) -> None:
    error = f"photos/{'ants ' * 600}.png: is broken;\nmend it, or skip it"
    put(tmp_path, "20260101-000000-extract-pets", status="failed", exit_code=3, error=error)
    line = next(line for line in shown(tmp_path, width=width).splitlines() if "extract-pets: failed" in line)
    assert line.endswith("ants …; mend it, or skip it") and len(line) <= max(width, 38 + runslist.LEAST_REASON)
    assert invoke("runs", tmp_path)[1]["runs"][0]["reason"] == " ".join(error.split())


def test_a_killed_stage_0_shows_the_sources_accuracy(tmp_path: Path, invoke: Invoke) -> None:
    run = put(tmp_path, "20260101-000000-pretrain-pets", verb="pretrain", status="running")
    (run / "metrics.jsonl").write_text('{"split": "val", "epoch": 2, "accuracy": 0.5}\n')
    (row,) = invoke("runs", tmp_path)[1]["runs"]
    assert (row["state"], row["split"], row["epoch"], row["metrics"]["accuracy"]) == (
        "interrupted",
        "source val",
        2,
        0.5,
    )


# -- a run by a pattern ---------------------------------------------------------------------------------


def test_a_pattern_in_quotes_is_the_latest_run_that_matches(many: Path, invoke: Invoke, capsys: Any) -> None:
    put(many, "20260104-000000-extract-pets")
    (many / "20260105-000000-extract-pets").mkdir()  # no run
    code, answer = invoke("compare", many / "*-extract-pets", many / "*-finetune-pets")
    names = [f"{many}/20260104-000000-extract-pets", f"{many}/20260102-000000-finetune-pets"]
    assert code == 0 and [one["run"] for one in answer["runs"]] == names, answer
    for verb in (["eval"], ["export"], ["extract", "--resume"], ["eval", many / "*-eval-ants", "--against"]):
        code, answer = invoke(*verb, many / "*-nothing")
        assert code in (2, 4) and (verb[-1] == "--against" or "*-nothing" in answer["error"]), answer


def test_a_pattern_that_a_shell_expanded_is_told(
    many: Path, invoke: Invoke, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    two = [str(path) for path in sorted(many.iterdir())[:2]]
    monkeypatch.setattr("sys.argv", ["transferctl", "export", *two])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 2
    assert "extra argument" in (said := capsys.readouterr().err) and "put it in quotes for the latest" in said
    code, answer = invoke("finetune", "--resume", *two)
    assert code == 2 and f"{two[1]}: is a run, not a spec; the pattern matched several runs" in answer["error"]
    code, answer = invoke("predict", *two, "photos", "--out", many / "x.csv")
    assert code == 2 and f"{two[1]}: is a run, not images; the pattern matched several runs" in answer["error"]


def test_thousands_of_runs_are_answered_at_once_and_no_more_are_read_than_shown(
    tmp_path: Path, invoke: Invoke, monkeypatch: pytest.MonkeyPatch
) -> None:
    for i in range(3000):
        put(tmp_path, f"20260101-{i // 3600:02d}{i // 60 % 60:02d}{i % 60:02d}-extract-run{i}", test=VAL)
    began = time.monotonic()
    _, answer = invoke("runs", tmp_path, "--sort", "accuracy")
    assert time.monotonic() - began < 3 and len(answer["runs"]) == 3000
    read = []
    from_disk = runslist.runrows.row_of
    monkeypatch.setattr(runslist.runrows, "row_of", lambda *a: read.append(a) or from_disk(*a))
    assert "50 of 3,000 runs" in shown(tmp_path)
    assert len(read) == 50


def test_what_can_be_resumed_is_what_resuming_says() -> None:
    assert runslist.RESUMABLE == resuming.RESUMABLE
