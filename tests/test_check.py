"""check: the plan, every problem in one pass, and the exit code that training would have."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from transferctl import findings
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
    result = CliRunner().invoke(
        app, ["check", str(spec), "--set", "frozen=layer3", "--set", "device=cpu"], env={"COLUMNS": "160"}
    )
    assert result.exit_code == 0
    lines = [" ".join(line.split()) for line in result.stdout.splitlines()]
    for line in (
        "ants 12 6",
        "layer3 2,099,712 0 statistics fixed",
        "layer4 8,393,728 8,393,728 0.05 1–3 batch statistics",
        "head 1,539 1,539 0.05 1–3",
        "preprocessing resize short side to 36, centre crop 32, bilinear; mean 0.485/0.456/0.406, std 0.229/0.224/0.225",
        "finetune trains what the table says: min over θ of L_T",
        "device cpu, fp32 (as the spec says; bf16 is not known to be faster on it)",
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


def test_an_uneven_training_split_is_warned_of_with_its_fix(spec: Path, tmp_path: Path, image_folder: Any) -> None:
    image_folder("uneven", ants=45, bees=4)
    settings = ["--set", f"target.train={tmp_path / 'uneven'}", "--set", "target.val=0.25"]

    def warnings(*more: str) -> str:
        result = CliRunner().invoke(app, ["check", str(spec), *settings, *more], env={"COLUMNS": "200"})
        assert result.exit_code == 0
        return result.stderr

    said = (
        "target.train: ants has 34 samples, bees 3 (11 to 1); target.balance: weights lets the classes weigh the same"
    )
    assert said in warnings()
    assert "to 1)" not in warnings("--set", "target.balance=weights")
    for path in sorted((tmp_path / "uneven" / "ants").iterdir())[40:]:
        path.unlink()
    assert "to 1)" not in warnings()  # 30 of ants, 3 of bees: ten times


def test_sizes_and_how_images_are_stored_are_counted(spec: Path, tmp_path: Path, invoke: Invoke) -> None:
    """Beside the 36 RGB PNGs of 48×40 pixels."""
    ants = tmp_path / "train" / "ants"
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (100, 20), dtype=np.uint8))
    noise.save(ants / "grey.jpg")
    Image.merge("RGB", (noise, noise.rotate(180), noise)).quantize(64).save(ants / "palette.gif")
    noise.convert("CMYK").save(ants / "print.tif")
    Image.fromarray(np.arange(0, 60000, 30, dtype=np.uint16).reshape(40, 50)).save(ants / "deep.png")
    Image.new("RGBA", (31, 700), "red").save(ants / "transparent.png")
    code, answer = invoke("check", spec)
    assert code == 0
    found = answer["images"]["target.train"]
    assert found["images"] == 41
    assert found["short_side"] == {"smallest": 20, "median": 40, "largest": 40} and found["longest_side"] == 700
    assert found["below_crop"] == 4  # 20, 20, 20 and 31 pixels under the crop of 32
    assert found["modes"] == {"RGB": 36, "L": 1, "P": 1, "CMYK": 1, "I;16": 1, "RGBA": 1}
    assert found["formats"] == {"PNG": 38, "GIF": 1, "JPEG": 1, "TIFF": 1}
    assert answer["images"]["target.val"]["below_crop"] == 0
    assert answer["not_compared"] == 1  # the red one


def test_names_that_look_wrong_are_listed_and_do_not_fail(spec: Path, tmp_path: Path, invoke: Invoke) -> None:
    train = tmp_path / "train"
    (train / "ants" / "0.png").rename(train / "ants" / "bee_0.png")
    shutil.copytree(train / "wasps", train / "Wasp")
    code, answer = invoke("check", spec)
    assert code == 0
    assert answer["names_of_other_classes"] == [[str(train / "ants" / "bee_0.png"), "ants", "bees"]]
    assert answer["classes_alike"] == [["target", "Wasp", "wasps"]]
    assert answer["label_conflict_pairs"] >= 11  # each wasp is there under both


def test_of_many_findings_the_first_are_listed_and_all_counted(
    spec: Path, tmp_path: Path, invoke: Invoke, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(findings, "LISTED", 4)
    shutil.rmtree(tmp_path / "val")
    shutil.copytree(tmp_path / "train", tmp_path / "val")
    code, answer = invoke("check", spec)
    assert (code, len(answer["duplicates_across_splits"]), answer["duplicate_pairs"]) == (0, 4, 36)
    result = CliRunner().invoke(app, ["check", str(spec)])
    assert "and 26 more; --json lists 4" in result.stderr
    assert "identical across splits: 36; they flatter the score; remove one of each" in result.stderr


def test_data_of_which_nothing_can_be_read_is_still_reported(spec: Path, tmp_path: Path, invoke: Invoke) -> None:
    for path in (tmp_path / "val").rglob("*.png"):
        path.write_bytes(b"no image")
    code, answer = invoke("check", spec)
    assert code == 3
    assert answer["images"]["target.val"] == {"images": 0} and len(answer["unreadable"]) == 15


def test_torchvisions_data_sets_are_looked_at_too(spec: Path, tmp_path: Path, invoke: Invoke) -> None:
    """Its ImageFolder reads by our own decoder, which turns all into RGB: how files were stored is known nevertheless."""
    Image.new("L", (48, 40), 9).save(tmp_path / "train" / "ants" / "grey.png")
    train = f"target.train={{dataset: torchvision, name: ImageFolder, root: {tmp_path / 'train'}}}"
    code, answer = invoke("check", spec, "--set", train)
    assert code == 0
    assert answer["images"]["target.train"]["modes"] == {"RGB": 36, "L": 1}


@pytest.mark.parametrize("workers", [0, 2])
def test_worker_processes_find_the_same(workers: int, spec: Path, tmp_path: Path, invoke: Invoke) -> None:
    shutil.copy(tmp_path / "train" / "ants" / "1.png", tmp_path / "val" / "ants" / "copy.png")
    _, one = invoke("check", spec)
    _, other = invoke("check", spec, "--set", f"workers={workers}")
    assert one == other and one["duplicate_pairs"] == 1
