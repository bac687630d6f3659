"""eval: the stored class map and preprocessing, on data that is what it says it is."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from transferctl import conditions, evaluate, scoring
from transferctl.cli import app
from transferctl.data import Split
from transferctl.images import ImageFiles
from transferctl.results import Predictions, write_predictions

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


def test_memory_that_runs_out_is_said(held_out: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    transfer = scoring.Batch.to

    def scarce(batch: Any, device: Any) -> Any:
        if len(batch.labels) > 2:
            raise torch.OutOfMemoryError
        return transfer(batch, device)

    monkeypatch.setattr(scoring.Batch, "to", scarce)
    result = CliRunner().invoke(app, ["eval", held_out[0], "--runs-dir", str(tmp_path / "runs")])
    assert result.exit_code == 0 and "warning: out of memory: " in result.stderr


def test_the_summary_says_what_was_scored(held_out: Any, spec: Path, tmp_path: Path, invoke: Invoke) -> None:
    _, answer = invoke("eval", held_out[0], "--data", tmp_path / "val", "--runs-dir", tmp_path / "runs")
    assert (answer["data"], answer["split"], answer["n"]) == (str(tmp_path / "val"), "data", 15)
    assert (answer["status"], answer["exit_code"]) == ("finished", 0)


def test_an_unknown_class_in_other_data_exits_3_naming_the_flag(held_out: Any, tmp_path: Path, invoke: Invoke) -> None:
    (tmp_path / "val" / "wasps").rename(tmp_path / "val" / "hornets")
    code, answer = invoke("eval", held_out[0], "--data", tmp_path / "val", "--runs-dir", tmp_path / "runs")
    assert code == 3
    assert answer["error"].startswith(f"--data {tmp_path / 'val'}: classes that training data does not have: hornets")


def rows_of(run: Path | str) -> list[dict[str, str]]:
    with (Path(run) / "predictions.csv").open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_predictions_are_the_argmax_and_its_softmax_whatever_the_batches(tmp_path: Path) -> None:
    logits = np.random.default_rng(0).normal(0, 3, (7, 4)).astype(np.float32)
    predictions = Predictions()
    for batch in np.split(logits, [3, 6]):
        predictions(torch.from_numpy(batch), torch.zeros(len(batch), dtype=torch.int64))
    labels = np.array([0, 1, 2, 3, 0, 1, 2])
    split = Split("val", ImageFiles([f"{i}.png" for i in range(7)], labels, "abcd"), np.arange(7), labels)
    folder: Any = SimpleNamespace(path=tmp_path)
    write_predictions(folder, "abcd", [(split, predictions)])
    weights = np.exp(logits.astype(np.float64))
    expected = weights.max(1) / weights.sum(1)
    rows = rows_of(tmp_path)
    assert [row["predicted"] for row in rows] == ["abcd"[i] for i in logits.argmax(1)]
    assert [row["label"] for row in rows] == ["abcd"[i] for i in labels]
    assert [float(row["probability"]) for row in rows] == pytest.approx(expected, abs=1e-6)
    assert [path.name for path in tmp_path.iterdir()] == ["predictions.csv"]


def test_images_below_a_folder_that_is_no_text_are_named_with_escapes(
    spec: Path, tmp_path: Path, invoke: Invoke, monkeypatch: pytest.MonkeyPatch
) -> None:
    odd = tmp_path / os.fsdecode(b"caf\xe9")
    odd.mkdir()
    for name in ("train", "val"):
        (tmp_path / name).rename(odd / name)
    monkeypatch.chdir(odd)
    code, trained = invoke("extract", spec, "--set", "epochs=1", "--runs-dir", tmp_path / "runs")
    assert code == 0
    for arguments in ([], ["--data", odd / "val"]):
        code, scored = invoke("eval", trained["run"], *arguments, "--runs-dir", tmp_path / "runs")
        assert (code, scored["n"]) == (0, 15)
        for run in (trained["run"], scored["run"]):
            paths = [row["path"] for row in rows_of(run)]
            assert len(set(paths)) == 15
            assert all(path.startswith(f"{tmp_path}/caf\\udce9/val/") for path in paths)


@pytest.fixture
def split_manifest(spec: Path, tmp_path: Path) -> Path:
    """Five images of each class: two of split test, three of split fresh."""
    rows = ["path,label,split"]
    for name in ("ants", "bees", "wasps"):
        rows += [f"train/{name}/{i}.png,{name},{'test' if i < 2 else 'fresh'}" for i in range(5)]
    (tmp_path / "m.csv").write_text("\n".join(rows))
    return tmp_path / "m.csv"


def test_split_beside_data_chooses_the_rows_of_a_manifest(
    held_out: Any, split_manifest: Path, tmp_path: Path, invoke: Invoke
) -> None:
    for split, n in (("test", 6), ("fresh", 9)):
        arguments = ("--data", split_manifest, "--split", split, "--runs-dir", tmp_path / "evals")
        code, answer = invoke("eval", held_out[0], *arguments)
        assert (code, answer["n"]) == (0, n)
        assert (answer["data"], answer["split"]) == (str(split_manifest), split)
        assert {row["split"] for row in rows_of(answer["run"])} == {split}
        assert list(json.loads((Path(answer["run"]) / "environment.json").read_text())["data"]) == [f"target.{split}"]


def test_the_rows_of_a_manifest_with_splits_are_never_guessed(
    held_out: Any, split_manifest: Path, tmp_path: Path, invoke: Invoke
) -> None:
    for arguments, message in (
        ([], "has a split column; add --split and one of fresh, test"),
        (["--split", "val"], "has no rows of split 'val'; it has fresh, test"),
    ):
        code, answer = invoke("eval", held_out[0], "--data", split_manifest, *arguments, "--runs-dir", tmp_path / "e")
        assert (code, answer["error"]) == (2, f"--data {split_manifest}: {message}")
    assert not (tmp_path / "e").exists()


def test_split_beside_data_that_has_no_splits_is_refused(
    held_out: Any, split_manifest: Path, tmp_path: Path, invoke: Invoke
) -> None:
    plain = tmp_path / "plain.csv"
    plain.write_text("path,label\nval/ants/0.png,ants\n")
    for path, what in ((tmp_path / "val", "a folder"), (plain, "a manifest without a split column")):
        code, answer = invoke("eval", held_out[0], "--data", path, "--split", "val")
        assert code == 2
        assert answer["error"] == f"--split val: --data is {what}, all of which is scored; leave out --split"


def test_a_manifest_that_is_no_csv_is_told_as_such_whatever_the_split(
    held_out: Any, tmp_path: Path, invoke: Invoke
) -> None:
    (tmp_path / "m.csv").write_bytes(b"path,label,split\n\xff,ants,val\n")
    code, answer = invoke("eval", held_out[0], "--data", tmp_path / "m.csv", "--split", "val")
    assert code == 3
    assert "is not UTF-8" in answer["error"]


@pytest.mark.parametrize(
    ("path", "code", "message"),
    [
        ("", 2, "must be a path, not ''"),
        ("~nobody-here/x", 2, "there is no such user's home folder: '~nobody-here/x'"),
        ("x" * 300, 2, "cannot look for this path: File name too long"),
        ("missing", 3, "there is no such folder"),
        ("missing.csv", 3, "there is no such file"),
    ],
)
def test_data_that_is_no_path_or_is_not_there_is_told_at_its_flag(
    path: str, code: int, message: str, held_out: Any, invoke: Invoke
) -> None:
    found, answer = invoke("eval", held_out[0], "--data", path)
    assert (found, answer["error"]) == (code, f"--data {path}: {message}")


def test_a_missed_gate_is_how_the_run_ended_in_its_folder_too(held_out: Any, tmp_path: Path, invoke: Invoke) -> None:
    code, answer = invoke("eval", held_out[0], "--fail-if", "accuracy<=1", "--runs-dir", tmp_path / "evals")
    assert (code, answer["status"], answer["exit_code"]) == (8, "failed", 8)
    assert answer["gates_missed"] == [f"accuracy<=1 (it is {answer['accuracy']:.4f})"]
    assert answer["error"] == f"{held_out[0]}: gate missed: {answer['gates_missed'][0]}"
    assert json.loads((Path(answer["run"]) / "summary.json").read_text()) == answer
    assert len(rows_of(answer["run"])) == answer["n"]


def test_the_run_folder_is_the_last_line_of_stdout_also_where_a_gate_is_missed(held_out: Any, tmp_path: Path) -> None:
    for gate, code in (("accuracy<=1", 8), ("accuracy<0", 0)):
        runs = tmp_path / f"evals-{code}"
        result = CliRunner().invoke(app, ["eval", held_out[0], "--fail-if", gate, "--runs-dir", str(runs)])
        assert result.exit_code == code
        assert result.stdout.splitlines()[-1] == str(next(runs.iterdir()))


@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan")])
@pytest.mark.parametrize("gate", ["loss<0.1", "loss<=0.1", "loss>0.1", "loss>=0.1"])
def test_a_number_that_is_not_finite_passes_no_gate(gate: str, value: float) -> None:
    assert conditions.parse(gate).holds({"loss": value})


def test_the_last_epoch_is_told_in_scalars_and_the_best_in_full(held_out: Any) -> None:
    _, summary = held_out
    assert len(summary["best"]["val"]["confusion"]) == 3
    assert all(isinstance(value, int | float) for value in summary["last"]["val"].values())
    assert {"n", "loss", "accuracy"} <= set(summary["last"]["val"])
    assert json.loads((Path(summary["run"]) / "summary.json").read_text()) == summary


@pytest.mark.parametrize("gate", ["accuracy<90", "macro_f1>-1"])
def test_a_gate_in_percent_is_refused(gate: str, held_out: Any, tmp_path: Path, invoke: Invoke) -> None:
    code, answer = invoke("eval", held_out[0], "--fail-if", gate, "--runs-dir", tmp_path / "evals")
    assert code == 2
    assert "is a fraction, from 0 to 1" in answer["error"]


def test_training_images_in_what_is_scored_are_said(held_out: Any, tmp_path: Path) -> None:
    arguments = ["eval", held_out[0], "--runs-dir", str(tmp_path / "runs")]
    other = CliRunner().invoke(app, [*arguments, "--data", str(tmp_path / "val")])
    own = CliRunner().invoke(app, [*arguments, "--data", str(tmp_path / "train")])
    held = CliRunner().invoke(app, arguments)
    n = sum(1 for _ in (tmp_path / "train").glob("*/*")) - held_out[1]["best"]["val"]["n"]
    assert f"{n} of these 36 samples are training data of the run" in own.stderr
    assert "training data of the run" not in other.stderr + held.stderr


# -- against another run ------------------------------------------------------------------------------


@pytest.fixture
def another(held_out: Any, spec: Path, tmp_path: Path, invoke: Invoke) -> str:
    """A worse run on the same data: one epoch, hardly a step."""
    settings = ["--set", "target.val=0.3", "--set", "epochs=1", "--set", "optimizer.lr=1e-6"]
    code, answer = invoke("extract", spec, *settings, "--runs-dir", tmp_path / "runs")
    assert code == 0
    return str(answer["run"])


def test_two_runs_are_compared_on_the_same_samples(held_out: Any, another: str, tmp_path: Path, invoke: Invoke) -> None:
    run, summary = held_out
    where = ["--runs-dir", tmp_path / "runs"]
    code, answer = invoke("eval", run, "--against", another, *where)
    assert code == 0
    _, alone = invoke("eval", another, *where)
    mine, theirs = summary["best"]["val"], answer["against"]
    assert theirs["run"] == another and theirs["accuracy"] == alone["accuracy"]
    assert answer["accuracy_difference"] == pytest.approx(mine["accuracy"] - theirs["accuracy"])
    assert answer["loss_difference"] == pytest.approx(mine["loss"] - theirs["loss"])
    assert answer["accuracy_difference_low"] <= answer["accuracy_difference"] <= answer["accuracy_difference_high"]
    assert answer["gained"] - answer["lost"] == round(answer["accuracy_difference"] * answer["n"])
    assert 0 < answer["mcnemar_p"] <= 1


def test_a_gate_may_name_the_difference(held_out: Any, another: str, tmp_path: Path, invoke: Invoke) -> None:
    where = ["--runs-dir", tmp_path / "runs"]
    gates_ = ["--fail-if", "accuracy_difference_low<0.5", "--fail-if", "mcnemar_p>=0", "--fail-if", "accuracy<0"]
    code, answer = invoke("eval", held_out[0], "--against", another, *gates_, *where)
    assert code == 8 and len(answer["gates_missed"]) == 2
    code, answer = invoke("eval", held_out[0], "--fail-if", "accuracy_difference<0", *where)
    assert code == 2 and "add --against RUN" in answer["error"]


def test_a_run_with_another_order_of_classes_is_compared_by_name(
    held_out: Any, another: str, tmp_path: Path, invoke: Invoke
) -> None:
    """Its head's rows and its class map turned round are the same model."""
    from safetensors.torch import load_file, save_file

    folder = Path(another) / "checkpoints" / "best"
    weights, manifest = load_file(folder / "model.safetensors"), json.loads((folder / "manifest.json").read_text())
    where = ["--runs-dir", tmp_path / "runs"]
    _, before = invoke("eval", held_out[0], "--against", another, *where)
    for name in [name for name in weights if name.startswith("heads.target.")]:
        weights[name] = weights[name].flip(0).contiguous()
    manifest["heads"]["target"]["classes"].reverse()
    save_file(weights, folder / "model.safetensors")
    content = (folder / "model.safetensors").read_bytes()
    manifest["files"]["model.safetensors"] = _described(manifest["files"]["model.safetensors"], content)
    (folder / "manifest.json").write_text(json.dumps(manifest))
    (Path(another) / "environment.json").unlink()  # what it held out, labelled in the old order
    code, after = invoke("eval", held_out[0], "--against", another, *where)
    assert code == 0
    same = ("accuracy_difference", "gained", "lost", "mcnemar_p")
    assert {name: after[name] for name in same} == {name: before[name] for name in same}


def _described(before: Any, content: bytes) -> Any:
    """How a manifest names a file of this content."""
    import hashlib

    digest = hashlib.sha256(content).hexdigest()
    return before | {"sha256": digest, "bytes": len(content)} if isinstance(before, dict) else digest


def test_runs_that_predict_other_classes_are_not_compared(
    held_out: Any, spec: Path, image_folder: Any, tmp_path: Path, invoke: Invoke
) -> None:
    image_folder("others", ants=6, moths=6)
    where = ["--runs-dir", tmp_path / "runs"]
    code, other = invoke("extract", spec, "--set", "target={train: others, val: 0.5}", *where)
    assert code == 0, other
    code, answer = invoke("eval", held_out[0], "--against", other["run"], *where)
    assert code == 2
    assert "--against" in answer["error"] and "it alone has moths" in answer["error"]


def test_a_run_that_held_out_other_samples_is_not_compared_on_these(
    held_out: Any, spec: Path, tmp_path: Path, invoke: Invoke
) -> None:
    where = ["--runs-dir", tmp_path / "runs"]
    _, other = invoke("extract", spec, "--set", "target.val=0.3", "--set", "seed=5", *where)
    code, answer = invoke("eval", held_out[0], "--against", other["run"], *where)
    assert code == 3
    assert "may have been trained on" in answer["error"]


@pytest.mark.parametrize("options", [["--against", "nowhere"], ["--top-k", "3"]])
def test_what_cannot_be_scored_beside_it_is_refused_first(
    options: list[str], held_out: Any, tmp_path: Path, invoke: Invoke
) -> None:
    code, _ = invoke("eval", held_out[0], *options, "--runs-dir", tmp_path / "evals")
    assert code == (4 if options[0] == "--against" else 2)
    assert not (tmp_path / "evals").exists()


# -- calibration --------------------------------------------------------------------------------------


def test_the_temperature_of_validation_data_is_kept_and_used(held_out: Any, tmp_path: Path, invoke: Invoke) -> None:
    run, summary = held_out
    kept = json.loads((Path(run) / "calibration.json").read_text())
    val = summary["best"]["val"]
    assert kept["temperature"] == val["temperature"] and kept["n"] == val["n"]
    assert val["calibrated_loss"] <= val["loss"]
    _, answer = invoke("eval", run, "--data", tmp_path / "val", "--runs-dir", tmp_path / "runs")
    assert answer["temperature"] == kept["temperature"] and "calibrated_ece" in answer


def test_another_checkpoint_than_the_calibrated_one_has_no_temperature(
    held_out: Any, tmp_path: Path, invoke: Invoke
) -> None:
    run, _ = held_out
    (Path(run) / "calibration.json").write_text(json.dumps({"checkpoint": "step-9", "temperature": 2.0}))
    _, answer = invoke("eval", run, "--runs-dir", tmp_path / "runs")
    assert "temperature" not in answer and "calibrated_ece" not in answer
    code, answer = invoke("eval", run, "--fail-if", "calibrated_ece>0.1", "--runs-dir", tmp_path / "runs")
    assert code == 2 and "validation data could not say one" in answer["error"]


def test_a_gate_on_what_the_data_leaves_undefined_is_missed(
    held_out: Any, image_folder: Any, tmp_path: Path, invoke: Invoke
) -> None:
    """One class alone cannot be ranked against others."""
    image_folder("alone", ants=6)
    gate = ["--fail-if", "auroc<0.1"]
    code, answer = invoke("eval", held_out[0], "--data", tmp_path / "alone", *gate, "--runs-dir", tmp_path / "runs")
    assert code == 8
    assert answer["gates_missed"] == ["auroc<0.1 (it is not defined on this data)"]


@pytest.mark.parametrize(
    ("gate", "message"),
    [("ece>5", "write 0.05 for 5 %"), ("brier>3", "from 0 to 2"), ("calibrated_loss>7", ""), ("macro_f1_low<0.1", "")],
)
def test_a_gate_outside_what_its_metric_can_be_is_refused(
    gate: str, message: str, held_out: Any, tmp_path: Path, invoke: Invoke
) -> None:
    code, answer = invoke("eval", held_out[0], "--fail-if", gate, "--runs-dir", tmp_path / "runs")
    assert code == 2 and message in answer["error"] if message else code in (0, 8)


def test_top_k_is_scored_as_asked(held_out: Any, tmp_path: Path, invoke: Invoke) -> None:
    gate = ["--fail-if", "top2_accuracy_low<0"]
    code, answer = invoke("eval", held_out[0], "--top-k", "2", *gate, "--runs-dir", tmp_path / "runs")
    assert code == 0
    assert answer["accuracy"] <= answer["top2_accuracy"] <= 1 and "top2_accuracy_high" in answer


def test_the_other_run_is_calibrated_by_its_own_temperature(
    held_out: Any, another: str, tmp_path: Path, invoke: Invoke
) -> None:
    step = (Path(another) / "checkpoints" / "best").resolve().name
    (Path(another) / "calibration.json").write_text(json.dumps({"checkpoint": step, "temperature": 3.0}))
    _, answer = invoke("eval", held_out[0], "--against", another, "--runs-dir", tmp_path / "runs")
    assert answer["against"]["temperature"] == 3.0 != answer["temperature"]


def test_training_images_of_either_run_are_said(held_out: Any, another: str, tmp_path: Path, invoke: Invoke) -> None:
    data = ["--data", tmp_path / "train", "--against", another]
    _, answer = invoke("eval", held_out[0], *data, "--runs-dir", tmp_path / "runs")
    said = (Path(answer["run"]) / "log.txt").read_text()
    assert said.count("samples are training data of the run") == 2


def test_what_says_where_to_compute_holds_for_the_other_run_too() -> None:
    settings = ["device=cpu", "target.val=0.1", "precision = fp32", "workers=0", "name=x"]
    assert evaluate.of_any_run(settings) == ["device=cpu", "precision = fp32", "workers=0"]


def test_test_data_are_scored_at_the_temperature_of_validation_data(spec: Path, tmp_path: Path, invoke: Invoke) -> None:
    settings = ["--set", "target.test=val", "--set", "target.val=0.3", "--set", "epochs=1"]
    _, answer = invoke("extract", spec, *settings, "--runs-dir", tmp_path / "runs")
    kept = json.loads((Path(answer["run"]) / "calibration.json").read_text())
    assert answer["test"]["temperature"] == kept["temperature"] and "calibrated_loss" in answer["test"]


def test_a_run_whose_validation_data_are_all_right_is_not_calibrated(
    spec: Path, tmp_path: Path, invoke: Invoke
) -> None:
    settings = ["--set", "epochs=60", "--set", "optimizer.lr=0.2"]
    _, answer = invoke("extract", spec, *settings, "--runs-dir", tmp_path / "runs")
    assert answer["best"]["val"]["accuracy"] == 1
    assert not (Path(answer["run"]) / "calibration.json").exists() and "temperature" not in answer["best"]["val"]
    assert "no temperature: 15 validation samples" in (Path(answer["run"]) / "log.txt").read_text()
