"""eval: the stored class map and preprocessing, on data that is what it says it is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

Invoke = Callable[..., tuple[int, dict[str, Any]]]


@pytest.fixture
def held_out(spec: Path, tmp_path: Path, invoke: Invoke) -> tuple[str, dict[str, Any]]:
    """A run whose validation data was held out of its training folder, and its summary."""
    code, answer = invoke("extract", spec, "--set", "target.val=0.3", "--runs-dir", tmp_path / "runs")
    assert code == 0
    return answer["run"], answer


def test_a_hold_out_of_a_changed_folder_is_refused(held_out: Any, tmp_path: Path, invoke: Invoke) -> None:
    run, summary = held_out
    code, answer = invoke("eval", run, "--runs-dir", tmp_path / "runs")
    assert (code, answer["accuracy"]) == (0, summary["best"]["val"]["accuracy"])
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / "train" / "ants" / "-first.png")
    code, answer = invoke("eval", run, "--runs-dir", tmp_path / "runs")
    assert code == 3
    assert "may have been trained on" in answer["error"]


def test_data_that_moved_as_a_whole_is_the_same(held_out: Any, tmp_path: Path, invoke: Invoke) -> None:
    run, summary = held_out
    (tmp_path / "train").rename(tmp_path / "elsewhere")
    (tmp_path / "runs").rename(tmp_path / "archive")
    moved = tmp_path / "archive" / Path(run).name
    where = f"target.train={tmp_path / 'elsewhere'}"
    code, answer = invoke("eval", moved, "--set", where, "--runs-dir", tmp_path / "runs")
    assert (code, answer["accuracy"]) == (0, summary["best"]["val"]["accuracy"])


@pytest.mark.parametrize("setting", ["preprocess.crop=16", "seed=1", "head.dropout=0.5", "epochs=9"])
def test_what_the_checkpoint_carries_cannot_be_overridden(
    setting: str, held_out: Any, tmp_path: Path, invoke: Invoke
) -> None:
    code, answer = invoke("eval", held_out[0], "--set", setting, "--runs-dir", tmp_path / "runs")
    assert code == 2
    assert answer["error"].startswith(f"--set {setting}: eval takes this from the checkpoint")


def test_a_gate_on_an_unknown_metric_is_refused_before_the_evaluation(
    held_out: Any, tmp_path: Path, invoke: Invoke
) -> None:
    code, answer = invoke("eval", held_out[0], "--fail-if", "acuracy<0.9", "--runs-dir", tmp_path / "evals")
    assert code == 2
    assert "there is no metric 'acuracy' here; did you mean accuracy?" in answer["error"]
    assert not (tmp_path / "evals").exists()


def test_the_summary_says_what_was_scored(held_out: Any, spec: Path, tmp_path: Path, invoke: Invoke) -> None:
    _, answer = invoke("eval", held_out[0], "--data", tmp_path / "val", "--runs-dir", tmp_path / "runs")
    assert (answer["data"], answer["split"], answer["n"]) == (str(tmp_path / "val"), "data", 15)
    assert (answer["status"], answer["exit_code"]) == ("finished", 0)


def test_an_unknown_class_in_other_data_exits_3_naming_the_flag(held_out: Any, tmp_path: Path, invoke: Invoke) -> None:
    (tmp_path / "val" / "wasps").rename(tmp_path / "val" / "hornets")
    code, answer = invoke("eval", held_out[0], "--data", tmp_path / "val", "--runs-dir", tmp_path / "runs")
    assert code == 3
    assert answer["error"].startswith(f"--data {tmp_path / 'val'}: classes that training data does not have: hornets")
