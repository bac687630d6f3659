"""check: the plan, every problem in one pass, and the exit code that training would have."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from transferctl.cli import app

Invoke = Callable[..., tuple[int, dict[str, Any]]]


def test_all_kinds_of_data_problems_come_in_one_pass(spec: Path, tmp_path: Path, invoke: Invoke) -> None:
    (tmp_path / "train" / "ants" / "empty.jpg").touch()
    (tmp_path / "val" / "hornets").mkdir()
    shutil.copy(tmp_path / "train" / "bees" / "0.png", tmp_path / "val" / "hornets" / "copy.png")
    (tmp_path / "source" / "only").mkdir(parents=True)
    (tmp_path / "source" / "only" / "text.png").write_text("no image")
    code, answer = invoke("check", spec, "--set", "source={train: source}", "--set", "frozen=layer9")
    assert code == 3
    for part in (
        "target.val: classes that training data does not have: hornets",
        "source.train: has one class (only)",
        "empty.jpg is empty",
        "has no stage 'layer9'",
    ):
        assert part in answer["error"]
    assert [Path(one).name for pair in answer["duplicates_across_splits"] for one in pair] == ["0.png", "copy.png"]
    assert {Path(text.split(" ")[0]).name for text in answer["unreadable"]} == {"empty.jpg", "text.png"}


def test_broken_source_images_are_found_too(spec: Path, tmp_path: Path, image_folder: Any, invoke: Invoke) -> None:
    image_folder("source", x=4, y=4)
    (tmp_path / "source" / "x" / "0.png").write_bytes(b"")
    code, answer = invoke("check", spec, "--set", "source={train: source, val: 0.5}")
    assert code == 3
    assert str(tmp_path / "source" / "x" / "0.png") in answer["error"]


@pytest.mark.parametrize("verb", ["check", "extract", "finetune"])
def test_skip_that_leaves_a_class_without_images_exits_3(verb: str, spec: Path, tmp_path: Path, invoke: Invoke) -> None:
    for path in (tmp_path / "train" / "wasps").iterdir():
        path.write_bytes(b"")
    runs = [] if verb == "check" else ["--runs-dir", tmp_path / "runs"]
    code, answer = invoke(verb, spec, "--set", "on_bad_sample=skip", *runs)
    assert code == 3
    assert "no readable training sample is left of wasps" in answer["error"]


def test_a_fault_of_the_spec_alone_keeps_its_exit_code(spec: Path, invoke: Invoke) -> None:
    code, answer = invoke("check", spec, "--set", "frozen=layer9")
    assert code == 2
    assert answer["error"].startswith("--set frozen=layer9: frozen: resnet18 has no stage 'layer9'")


def test_the_plan_says_what_is_trained_on_what_and_why(spec: Path) -> None:
    result = CliRunner().invoke(app, ["check", str(spec), "--set", "frozen=layer3"], env={"COLUMNS": "160"})
    assert result.exit_code == 0
    lines = [" ".join(line.split()) for line in result.stdout.splitlines()]
    for line in (
        "ants 12 6",
        "layer3 2,099,712 0 statistics fixed",
        "layer4 8,393,728 8,393,728 0.05 1–3 batch statistics",
        "head 1,539 1,539 0.05 1–3",
        "preprocessing resize short side to 36, centre crop 32, bilinear; mean 0.485/0.456/0.406, std 0.229/0.224/0.225",
        "finetune trains what the table says: min over θ of L_T",
        "device cpu, fp32 (auto: no GPU found; bf16 is not known to be faster on it)",
    ):
        assert line in lines
    assert not list(spec.parent.glob("runs*"))


def test_a_run_to_start_from_is_looked_at_as_training_would(spec: Path, tmp_path: Path, invoke: Invoke) -> None:
    code, answer = invoke("check", spec, "--set", "from=nowhere")
    assert code == 4
    assert "nowhere: no such run folder" in answer["error"]
    _, run = invoke("extract", spec, "--set", "epochs=1", "--runs-dir", tmp_path / "runs")
    code, _ = invoke("check", spec, "--set", f"from={run['run']}")
    assert code == 0
    code, answer = invoke("check", spec, "--set", f"from={run['run']}", "--set", "head.hidden=[3]")
    assert code == 2


@pytest.mark.parametrize("verb", ["check", "extract"])
def test_an_empty_validation_split_exits_3(verb: str, spec: Path, tmp_path: Path, invoke: Invoke) -> None:
    for path in (tmp_path / "val" / "bees").iterdir():
        path.unlink()
    settings = ["--set", "target.val={path: val, classes: [bees]}"]
    settings += [] if verb == "check" else ["--runs-dir", tmp_path / "runs"]
    code, answer = invoke(verb, spec, *settings)
    assert code == 3
    assert "target.val: no samples are left" in answer["error"]


def test_batchnorm_that_a_pattern_freezes_is_shown_as_such(spec: Path) -> None:
    settings = ["--set", "frozen=['layer1.*.bn1.*', 'layer2.*', 'bn1.*']"]
    result = CliRunner().invoke(app, ["check", str(spec), *settings], env={"COLUMNS": "160"})
    rows = {line.split()[0]: line for line in result.stdout.splitlines() if line.split()}
    for stage, words in {
        "stem": "statistics fixed", "layer1": "partly fixed", "layer2": "statistics fixed", "layer3": "batch statistics"
    }.items():  # fmt: skip
        assert rows[stage].rstrip().endswith(words)
