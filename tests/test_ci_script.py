"""docs/ci.sh: trains, gates, keeps the artefacts, and ends as the gates say."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent.parent / "docs" / "ci.sh"


@pytest.fixture
def ci(spec: Path, tmp_path: Path) -> dict[str, str]:
    """The environment of a job, in which `transferctl` is this one."""
    command = tmp_path / "bin" / "transferctl"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m transferctl "$@"\n')
    command.chmod(0o755)
    root = str(SCRIPT.parent.parent)
    paths = {"PATH": f"{command.parent}:{os.environ['PATH']}", "PYTHONPATH": root, "TRANSFERCTL_REPORT": ""}
    return (
        os.environ
        | paths
        | {"FORMATS": "torchvision", "RUNS": str(tmp_path / "runs"), "ARTEFACTS": str(tmp_path / "artefacts")}
    )


def run(environment: dict[str, str], *words: object) -> subprocess.CompletedProcess[str]:
    command = ["bash", str(SCRIPT), *map(str, words)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def test_gates_decide_the_exit_code_and_everything_is_kept_either_way(
    ci: dict[str, str], spec: Path, tmp_path: Path
) -> None:
    summary = tmp_path / "job.md"
    missed = run(ci | {"GITHUB_STEP_SUMMARY": str(summary)}, spec, "accuracy<=1", "loss<0")
    assert missed.returncode == 8, missed.stderr
    assert "a gate is missed" in missed.stdout and "a gate is missed" in summary.read_text()
    artefacts = tmp_path / "artefacts"
    kept = {path.name for path in artefacts.iterdir()}
    assert "accuracy&lt;=1" in (artefacts / "evaluation-report.html").read_text()
    assert kept >= {
        "report.html",
        "log.txt",
        "summary.json",
        "predictions.csv",
        "check.json",
        "eval.json",
        "export.json",
        "model",
    }
    told = json.loads((artefacts / "eval.json").read_text())
    assert told["gates_missed"] == [f"accuracy<=1 (it is {told['accuracy']:.4f})"]
    assert (artefacts / "model" / "model.pth").is_file()

    (before,) = [path for path in (tmp_path / "runs").iterdir() if "extract" in path.name]
    passed = run(ci | {"AGAINST": str(before)}, spec, "accuracy_difference<0")
    assert passed.returncode == 0, passed.stderr
    assert ": passed" in passed.stdout
    assert json.loads((artefacts / "eval.json").read_text())["against"]["run"] == str(before)


def test_a_job_ends_as_the_training_does(ci: dict[str, str], spec: Path, tmp_path: Path) -> None:
    spec.write_text(spec.read_text() + "epoch: 3\n")
    ended = run(ci, spec, "accuracy<0.5")
    assert ended.returncode == 2
    assert "epoch: is not a setting" in ended.stderr
    assert run(ci).returncode != 0


def test_a_training_that_fails_leaves_its_log(ci: dict[str, str], spec: Path, tmp_path: Path) -> None:
    spec.write_text(spec.read_text().replace("{lr: 0.05}", "{lr: 1e6}"))
    ended = run(ci | {"VERB": "finetune"}, spec, "accuracy<0.5")
    assert ended.returncode == 6, ended.stderr
    assert "training ended with exit code 6" in ended.stdout
    assert "objective:" in (tmp_path / "artefacts" / "log.txt").read_text()
    assert json.loads((tmp_path / "artefacts" / "summary.json").read_text())["exit_code"] == 6
