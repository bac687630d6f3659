"""What was forgotten: the change and its interval by their definitions, and `eval --source` after fine-tuning."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from typer.testing import CliRunner

from transferctl import conditions, forgetting, gates, paired
from transferctl.cli import app
from transferctl.errors import SpecError
from transferctl.paired import Outcomes

Invoke = Callable[..., tuple[int, dict[str, Any]]]


def outcomes(n: int, seed: int) -> tuple[Outcomes, Outcomes]:
    """Before and after, alike as two scores of the same samples are: 70 % keep their outcome."""
    random = np.random.default_rng(seed)
    right, losses = random.random(n) < 0.6, random.gamma(1.0, 1.0, n)
    drawn_again = random.random(n) < 0.3
    after = np.where(drawn_again, random.random(n) < 0.4, right)
    return Outcomes(right, losses), Outcomes(after, losses + random.normal(0.2, 0.5, n))


def test_the_change_is_that_of_the_means_with_the_interval_of_a_paired_bootstrap() -> None:
    """By brute force: samples drawn with replacement, each with both its outcomes."""
    before, after = outcomes(300, 0)
    found, random = paired.difference(before, after, "change"), np.random.default_rng(7)
    drawn = random.integers(300, size=(20_000, 300))
    for name, one, other in (
        ("accuracy", before.right.astype(float), after.right.astype(float)),
        ("loss", before.losses, after.losses),
    ):
        assert found[f"{name}_change"] == pytest.approx(other.mean() - one.mean(), abs=1e-12)
        low, high = np.quantile(other[drawn].mean(1) - one[drawn].mean(1), [0.025, 0.975])
        width = high - low
        assert found[f"{name}_change_low"] == pytest.approx(low, abs=0.06 * width)
        assert found[f"{name}_change_high"] == pytest.approx(high, abs=0.06 * width)


def test_the_interval_of_many_samples_is_that_of_the_normal_approximation() -> None:
    """Δ ± 1.96·s/√n, s the standard deviation of the samples' own differences."""
    before, after = outcomes(4_000, 1)
    found = paired.difference(before, after, "change")
    for name, differences in (
        ("accuracy", after.right.astype(float) - before.right),
        ("loss", after.losses - before.losses),
    ):
        half = 1.959964 * differences.std() / np.sqrt(4_000)
        for end, sign in (("low", -1), ("high", 1)):
            assert found[f"{name}_change_{end}"] == pytest.approx(differences.mean() + sign * half, abs=0.12 * half)


def test_no_change_is_0_with_an_interval_without_width() -> None:
    before, _ = outcomes(50, 2)
    assert set(paired.difference(before, before, "change").values()) == {0.0}


def test_pairing_tells_a_small_change_that_two_separate_intervals_hide() -> None:
    before, _ = outcomes(1_000, 3)
    lost = np.flatnonzero(before.right)[:20]
    right = before.right.copy()
    right[lost] = False
    found = paired.difference(before, Outcomes(right, before.losses), "change")
    assert found["accuracy_change"] == pytest.approx(-0.02)
    assert found["accuracy_change_high"] < 0
    assert 1.96 * np.sqrt(2 * 0.6 * 0.4 / 1_000) > 0.02  # of the difference of two independent scores


def test_outcomes_are_the_argmax_and_each_samples_cross_entropy() -> None:
    logits, labels = torch.randn(7, 3, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 2, 0, 1, 2, 0])
    recorder = paired.Recorder()
    for rows in (slice(0, 4), slice(4, 7)):
        recorder(logits[rows], labels[rows])
    found = recorder.outcomes()
    expected = [-F.log_softmax(row.double(), 0)[label].item() for row, label in zip(logits, labels, strict=True)]
    assert found.losses == pytest.approx(expected)
    assert found.right.tolist() == [int(row.argmax()) == label for row, label in zip(logits, labels, strict=True)]


# -- eval --source

SPEC = """
name: forget
backbone: {name: resnet18, weights: source}
preprocess: {resize: 32, crop: 32}
source:
  train: {dataset: digits, split: train, classes: [0, 1, 2], per_class: 12}
  val: {dataset: digits, split: val, classes: [0, 1, 2], per_class: 20}
pretrain: {epochs: 2, batch_size: 8, augment: none, optimizer: {name: sgd, lr: 0.01}}
target:
  train: {dataset: digits, split: train, classes: [5, 6], per_class: 12}
  val: {dataset: digits, split: val, classes: [5, 6], per_class: 15}
epochs: 1
batch_size: 8
workers: 0
augment: none
batchnorm: train
optimizer: {lr: 0.02}
"""


@pytest.fixture(scope="module")
def tuned(call: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Fine-tuning on two digits of a network that knows three others: what its command prints as JSON."""
    folder = tmp_path_factory.mktemp("forgetting")
    (folder / "spec.yaml").write_text(SPEC)
    settings = ("--set", "source.rehearsal=false", "--runs-dir", folder / "runs")
    return call("finetune", folder / "spec.yaml", *settings)


def test_eval_says_what_was_forgotten_as_fine_tuning_did(tuned: Any, tmp_path: Path, invoke: Invoke) -> None:
    code, answer = invoke("eval", tuned["run"], "--source", "--runs-dir", tmp_path)
    assert code == 0
    assert {name: answer[name] for name in tuned["source"]} == tuned["source"]
    assert answer["accuracy_change"] < 0
    assert {"accuracy", "per_class", "confusion"} <= set(answer)
    assert answer["accuracy"] == answer["after"]["accuracy"]
    first, second = (json.loads(line) for line in (Path(answer["run"]) / "metrics.jsonl").read_text().splitlines())
    assert (first["checkpoint"], second["checkpoint"]) == ("start", "best")
    assert {first["split"], second["split"]} == {"source_val"}
    assert (first["accuracy"], second["accuracy"]) == (answer["before"]["accuracy"], answer["after"]["accuracy"])
    assert second["accuracy_change"] == answer["accuracy_change"]
    with (Path(answer["run"]) / "predictions.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {row["label"] for row in rows} == {"0", "1", "2"}
    assert sum(row["label"] == row["predicted"] for row in rows) / len(rows) == answer["accuracy"]


def test_the_terminal_shows_before_after_and_change(tuned: Any, tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["eval", tuned["run"], "--source", "--runs-dir", str(tmp_path)])
    assert result.exit_code == 0
    assert "Source, val, n = 60: before and after" in result.stdout
    before, after, change = (
        100 * value
        for value in (
            tuned["source"]["before"]["accuracy"],
            tuned["source"]["after"]["accuracy"],
            tuned["source"]["accuracy_change"],
        )
    )
    (row,) = (line.split() for line in result.stdout.splitlines() if line.strip().startswith("accuracy, %"))
    assert row[2:5] == [f"{before:.1f}", f"{after:.1f}", f"{change:+.1f}"]


def test_a_gate_may_name_the_change(tuned: Any, tmp_path: Path, invoke: Invoke) -> None:
    arguments = ("eval", tuned["run"], "--runs-dir", tmp_path)
    change = tuned["source"]["accuracy_change"]
    code, answer = invoke(*arguments, "--source", "--fail-if", "accuracy_change<0", "--fail-if", "loss_change<-99")
    assert (code, answer["gates_missed"]) == (8, [f"accuracy_change<0 (it is {change:.4f})"])
    code, _ = invoke(*arguments, "--source", "--fail-if", "accuracy_change_low<-1")
    assert code == 0
    code, answer = invoke(*arguments, "--source", "--fail-if", "accuracy_change<-5")
    assert (code, "is a fraction, from -1 to 1; write -0.05 for -5 %" in answer["error"]) == (2, True)
    code, answer = invoke(*arguments, "--fail-if", "accuracy_change<-0.05")
    assert (code, "add --source" in answer["error"]) == (2, True)


def test_a_gate_in_percent_on_the_change_of_the_loss_is_none() -> None:
    gates.refuse_odd([conditions.parse("loss_change>1.5")], forgetting.CHANGES)
    with pytest.raises(SpecError):
        gates.refuse_odd([conditions.parse("accuracy_change_high<1.5")], forgetting.CHANGES)


def test_other_source_data_goes_to_the_outputs_of_its_names(
    tuned: Any, image_folder: Callable[..., Path], tmp_path: Path, invoke: Invoke
) -> None:
    arguments = ("eval", tuned["run"], "--source", "--runs-dir", tmp_path / "evals")
    code, answer = invoke(*arguments, "--data", image_folder("other", **{"2": 3, "0": 2}))
    assert (code, answer["n"], answer["before"]["n"]) == (0, 5, 5)
    assert [row["support"] for row in answer["per_class"]] == [2, 0, 3]
    code, answer = invoke(*arguments, "--data", image_folder("odd", **{"2": 3, "7": 2}))
    assert code == 3
    assert answer["error"].startswith(f"--data {tmp_path / 'odd'}: the pretrained head has no class 7")
    code, answer = invoke(*arguments, "--data", image_folder("none", ants=2, bees=2))
    assert code == 3
    assert "the source head has none of its classes (ants, bees); it has 0, 1, 2" in answer["error"]


def test_the_sources_training_data_can_be_scored_too(tuned: Any, tmp_path: Path, invoke: Invoke) -> None:
    code, answer = invoke("eval", tuned["run"], "--source", "--split", "train", "--runs-dir", tmp_path)
    assert (code, answer["n"], answer["split"]) == (0, 36, "train")
    code, answer = invoke("eval", tuned["run"], "--source", "--split", "test", "--runs-dir", tmp_path)
    assert (code, answer["error"]) == (2, "--split test: the run's spec has no source.test")


def test_without_source_data_the_fix_is_said(tuned: Any, tmp_path: Path, invoke: Invoke) -> None:
    arguments = ("eval", tuned["run"], "--source", "--runs-dir", tmp_path)
    code, answer = invoke(*arguments, "--set", "source.val=none")
    message = "--source: forgetting is not measured: source.val is none; name data with --data PATH"
    assert (code, answer["error"]) == (2, message)
    bare = tmp_path / "bare"
    shutil.copytree(tuned["run"], bare, symlinks=True)
    text = (bare / "spec.yaml").read_text().split("\nsource:")
    (bare / "spec.yaml").write_text(
        text[0].replace("weights: source", "weights: none") + "\npretrain:" + text[1].split("\npretrain:")[1]
    )
    code, answer = invoke("eval", bare, "--source", "--runs-dir", tmp_path)
    assert (code, answer["error"]) == (2, "--source: the run's spec has no source; name data with --data PATH")


def test_a_run_without_source_head_exits_4(spec: Path, tmp_path: Path, invoke: Invoke) -> None:
    _, answer = invoke("extract", spec, "--set", "epochs=1", "--runs-dir", tmp_path / "runs")
    code, scored = invoke(
        "eval", answer["run"], "--source", "--data", tmp_path / "val", "--runs-dir", tmp_path / "runs"
    )
    assert code == 4
    assert scored["error"].startswith(f"{answer['run']}: has no source head")


def test_without_a_trained_head_at_the_start_there_is_a_score_and_no_change(tuned: Any, tmp_path: Path) -> None:
    """A head that was new, and a run that keeps no start."""
    for name, said in (("new", "the source head was new"), ("older", "the run keeps no `start` checkpoint")):
        run = tmp_path / name
        shutil.copytree(tuned["run"], run, symlinks=True)
        manifest = run / "checkpoints" / "start" / "manifest.json"
        manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"untrained_heads": ["source", "target"]}))
        if name == "older":
            (run / "checkpoints" / "start").unlink()
        arguments = ["eval", str(run), "--source", "--json", "--runs-dir", str(tmp_path / "evals")]
        result = CliRunner().invoke(app, arguments)
        answer = json.loads(result.stdout)
        assert result.exit_code == 0 and said in result.stderr
        assert answer["accuracy"] == tuned["source"]["after"]["accuracy"]
        assert "before" not in answer and "accuracy_change" not in answer
        assert CliRunner().invoke(app, [*arguments, "--fail-if", "accuracy_change<0"]).exit_code == 2


def test_training_images_of_the_source_in_what_is_scored_are_said(
    call: Any, image_folder: Callable[..., Path], tmp_path: Path
) -> None:
    (tmp_path / "spec.yaml").write_text(SPEC)
    source = f"source={{train: {image_folder('lions', old=6, young=6)}, val: {image_folder('cats', old=3, young=3)}}}"
    settings = ("--set", source, "--set", "pretrain.epochs=1", "--runs-dir", tmp_path / "runs")
    run = call("pretrain", tmp_path / "spec.yaml", *settings)["run"]
    arguments = ["eval", run, "--source", "--runs-dir", str(tmp_path / "runs")]
    own = CliRunner().invoke(app, [*arguments, "--data", str(tmp_path / "lions")])
    other = CliRunner().invoke(app, [*arguments, "--data", str(tmp_path / "cats")])
    assert "12 of these 12 samples are training data of the run" in own.stderr
    assert other.exit_code == 0 and "training data of the run" not in other.stderr


def test_a_run_that_did_not_look_at_the_source_raises_no_alarm_about_it(
    spec: Path, tmp_path: Path, invoke: Invoke
) -> None:
    settings = [
        "--set",
        "source={train: train, val: val}",
        "--set",
        "backbone.weights=source",
        "--set",
        "pretrain.epochs=1",
    ]
    _, run = invoke("extract", spec, *settings, "--set", "epochs=1", "--runs-dir", tmp_path)
    result = CliRunner().invoke(app, ["eval", run["run"], "--source", "--runs-dir", str(tmp_path)])
    assert result.exit_code == 0
    assert "warning" not in result.stderr
