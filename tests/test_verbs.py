"""The verbs end to end, through the real command line, on small images and a small network."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

from transferctl import yamlfile
from transferctl.cli import app
from transferctl.tasks import classification

Invoke = Callable[..., tuple[int, dict[str, Any]]]


def run_of(answer: dict[str, Any]) -> Path:
    return Path(answer["run"])


def test_extract_then_finetune_then_eval(spec: Path, tmp_path: Path, invoke: Invoke) -> None:
    runs = tmp_path / "runs"
    code, extracted = invoke("extract", spec, "--runs-dir", runs, "--set", "epochs=20")
    assert code == 0
    assert extracted["best"]["val"]["accuracy"] >= 0.8
    files = {path.name for path in run_of(extracted).iterdir()}
    assert files >= {
        "spec.yaml", "environment.json", "metrics.jsonl", "summary.json", "classes.json", "log.txt",
        "predictions.csv", "checkpoints",
    }  # fmt: skip
    assert json.loads((run_of(extracted) / "classes.json").read_text())["target"] == ["ants", "bees", "wasps"]

    code, tuned = invoke("finetune", spec, "--runs-dir", runs, "--from", run_of(extracted), "--set", "frozen=layer3")
    assert code == 0
    assert tuned["last"]["epoch"] == 3

    code, scored = invoke("eval", run_of(tuned), "--runs-dir", runs)
    assert code == 0
    assert scored["accuracy"] == tuned["best"]["val"]["accuracy"]
    assert scored["loss"] == pytest.approx(tuned["best"]["val"]["loss"], abs=1e-9)


def test_extract_leaves_the_backbone_as_it_was(spec: Path, tmp_path: Path, invoke: Invoke) -> None:
    states = []
    for epochs in (1, 5):
        _, answer = invoke("extract", spec, "--runs-dir", tmp_path / "runs", "--set", f"epochs={epochs}")
        states.append(load_file(run_of(answer) / "checkpoints" / "last" / "model.safetensors"))
    for name in states[0]:
        assert torch.equal(states[0][name], states[1][name]) == name.startswith("backbone.")


def test_a_finished_runs_spec_run_again_gives_the_same_weights(spec: Path, tmp_path: Path, invoke: Invoke) -> None:
    _, first = invoke("finetune", spec, "--runs-dir", tmp_path / "a", "--set", "epochs=2")
    _, again = invoke("finetune", run_of(first) / "spec.yaml", "--runs-dir", tmp_path / "b")
    one, two = (load_file(run_of(r) / "checkpoints" / "last" / "model.safetensors") for r in (first, again))
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_the_number_of_workers_changes_nothing(spec: Path, tmp_path: Path, invoke: Invoke) -> None:
    states = []
    for workers in (0, 2):
        arguments = ("--set", "epochs=1", "--set", f"workers={workers}", "--runs-dir", tmp_path / "runs")
        arguments += ("--set", "augment={randaugment: 9, mixup: 0.2, cutmix: 1}", "--set", "target.balance=sampling")
        _, answer = invoke("finetune", spec, *arguments)
        states.append(load_file(run_of(answer) / "checkpoints" / "last" / "model.safetensors"))
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_eval_through_a_manifest_with_folders_in_another_order_gives_the_identical_score(
    spec: Path, tmp_path: Path, invoke: Invoke
) -> None:
    _, trained = invoke("extract", spec, "--runs-dir", tmp_path / "runs")
    renamed = {"ants": "z", "bees": "m", "wasps": "a"}
    rows = ["path,label"]
    for name, other in renamed.items():
        (tmp_path / "val" / name).rename(tmp_path / "val" / other)
        rows += [f"val/{other}/{path.name},{name}" for path in sorted((tmp_path / "val" / other).iterdir())]
    (tmp_path / "renamed.csv").write_text("\n".join(rows))
    code, scored = invoke("eval", run_of(trained), "--data", tmp_path / "renamed.csv", "--runs-dir", tmp_path / "runs")
    assert code == 0
    best = trained["best"]["val"]
    assert {key: scored[key] for key in ("accuracy", "confusion")} == {
        key: best[key] for key in ("accuracy", "confusion")
    }


def test_a_missed_gate_exits_8_with_the_numbers_and_a_met_gate_exits_0(
    spec: Path, tmp_path: Path, invoke: Invoke
) -> None:
    _, trained = invoke("extract", spec, "--runs-dir", tmp_path / "runs")
    code, answer = invoke("eval", run_of(trained), "--fail-if", "accuracy<=1", "--runs-dir", tmp_path / "runs")
    assert (code, answer["exit_code"]) == (8, 8)
    assert answer["n"] == 15
    code, _ = invoke("eval", run_of(trained), "--fail-if", "accuracy<0", "--runs-dir", tmp_path / "runs")
    assert code == 0
    code, _ = invoke("eval", run_of(trained), "--fail-if", "accurcy<0.5", "--runs-dir", tmp_path / "runs")
    assert code == 2


def test_every_broken_image_is_named_and_skip_leaves_them_out(spec: Path, tmp_path: Path, invoke: Invoke) -> None:
    (tmp_path / "train" / "ants" / "empty.jpg").touch()
    (tmp_path / "train" / "bees" / "text.jpg").write_text("not an image")
    code, answer = invoke("finetune", spec, "--runs-dir", tmp_path / "runs")
    assert code == 3
    assert "empty.jpg is empty" in answer["error"]
    assert "text.jpg is not a readable image" in answer["error"]
    code, answer = invoke("check", spec)
    assert code == 3
    arguments = ["extract", str(spec), "--runs-dir", str(tmp_path / "runs"), "--set", "on_bad_sample=skip"]
    skipped = CliRunner().invoke(app, arguments)
    assert skipped.exit_code == 0
    for name in ("empty.jpg", "text.jpg"):
        assert sum("skipped: " in line and name in line for line in skipped.stderr.splitlines()) == 1
    assert "train: 2 of 38 samples skipped" in skipped.stderr


def test_diverging_training_exits_6_and_leaves_no_best(spec: Path, tmp_path: Path, invoke: Invoke) -> None:
    code, answer = invoke("finetune", spec, "--runs-dir", tmp_path / "runs", "--set", "optimizer.lr=1e6")
    assert code == 6
    assert "step" in answer["error"]
    assert not list((tmp_path / "runs").glob("*/checkpoints/best"))


@pytest.mark.parametrize("verb", ["finetune", "extract"])
def test_a_validation_loss_that_is_no_number_is_never_the_best(
    verb: str, spec: Path, tmp_path: Path, invoke: Invoke, monkeypatch: pytest.MonkeyPatch
) -> None:
    compute = classification.ClassificationMeter.compute
    broken = {"loss": float("nan"), "accuracy": 1.0}
    monkeypatch.setattr(classification.ClassificationMeter, "compute", lambda self: compute(self) | broken)
    code, answer = invoke(verb, spec, "--runs-dir", tmp_path / "runs")
    assert code == 6
    assert "epoch 1, step 5: the validation loss is nan" in answer["error"]
    assert not list((tmp_path / "runs").glob("*/checkpoints/best"))


def test_check_counts_what_is_trained_and_finds_identical_images_across_splits(
    spec: Path, tmp_path: Path, invoke: Invoke
) -> None:
    copied = (tmp_path / "train" / "ants" / "0.png").read_bytes()
    (tmp_path / "val" / "ants" / "copy.png").write_bytes(copied)
    code, plan = invoke("check", spec, "--set", "frozen=layer3")
    assert code == 0
    assert plan["trained_parameters"] == 8_393_728 + 512 * 3 + 3
    assert len(plan["duplicates_across_splits"]) == 1


def test_pretrained_run_is_weights_and_keeps_its_head_as_source_head(
    spec: Path, tmp_path: Path, invoke: Invoke
) -> None:
    source = (
        "source={train: {dataset: digits, classes: [0, 1], per_class: 20}, val: {dataset: digits, classes: [0, 1]}}"
    )
    runs = tmp_path / "runs"
    code, stage0 = invoke("pretrain", spec, "--set", source, "--set", "pretrain.epochs=2", "--runs-dir", runs)
    assert code == 0
    code, answer = invoke("extract", spec, "--set", f"backbone.weights={run_of(stage0)}", "--runs-dir", runs)
    assert code == 0
    assert json.loads((run_of(answer) / "classes.json").read_text())["source"] == ["0", "1"]
    before = load_file(run_of(stage0) / "checkpoints" / "best" / "model.safetensors")
    after = load_file(run_of(answer) / "checkpoints" / "best" / "model.safetensors")
    shared = [name for name in before if not name.startswith("heads.target")]
    assert all(torch.equal(before[name], after[name]) for name in shared)


def test_joint_fine_tuning_logs_both_losses(spec: Path, tmp_path: Path, invoke: Invoke) -> None:
    source = (
        "source={train: {dataset: digits, classes: [0, 1], per_class: 20}, val: {dataset: digits, classes: [0, 1]}}"
    )
    code, answer = invoke("finetune", spec, "--set", source, "--set", "lambda=0.5", "--runs-dir", tmp_path / "runs")
    assert code == 0
    lines = [json.loads(line) for line in (run_of(answer) / "metrics.jsonl").read_text().splitlines()]
    train = [line for line in lines if line["split"] == "train"]
    assert len(train) == 3
    for line in train:
        assert line["loss"] == pytest.approx(line["loss_source"] + 0.5 * line["loss_target"], rel=1e-5)


def test_predictions_name_every_validation_and_test_image(spec: Path, tmp_path: Path, invoke: Invoke) -> None:
    shutil.copytree(tmp_path / "val", tmp_path / "test")
    shutil.rmtree(tmp_path / "test" / "wasps")
    _, answer = invoke("extract", spec, "--set", "target.test=test", "--runs-dir", tmp_path / "runs")
    with (run_of(answer) / "predictions.csv").open() as file:
        rows = list(csv.DictReader(file))
    for split, n, scores in (("val", 15, answer["best"]["val"]), ("test", 11, answer["test"])):
        own = [row for row in rows if row["split"] == split]
        assert len({row["path"] for row in own}) == n == scores["n"]
        assert sum(row["label"] == row["predicted"] for row in own) / n == pytest.approx(scores["accuracy"])


def test_a_broken_test_image_is_found_before_any_training(spec: Path, tmp_path: Path, invoke: Invoke) -> None:
    for folder in ("val", "test"):
        (tmp_path / folder / "ants").mkdir(parents=True, exist_ok=True)
        (tmp_path / folder / "ants" / "broken.png").write_bytes(b"no image")
    code, answer = invoke("finetune", spec, "--set", "target.test=test", "--runs-dir", tmp_path / "runs")
    assert code == 3
    assert answer["error"].count("broken.png is not a readable image") == 2
    assert not (tmp_path / "runs").exists()


@pytest.fixture
def extracted(spec: Path, tmp_path: Path, invoke: Invoke) -> Path:
    code, answer = invoke("extract", spec, "--set", "head.hidden=[8]", "--runs-dir", tmp_path / "runs")
    assert code == 0
    return run_of(answer)


def test_the_spec_of_a_run_that_went_on_from_another_repeats_it(
    spec: Path, extracted: Path, tmp_path: Path, invoke: Invoke
) -> None:
    _, first = invoke("finetune", spec, "--from", extracted, "--set", "epochs=1", "--runs-dir", tmp_path / "runs")
    code, again = invoke("finetune", run_of(first) / "spec.yaml", "--runs-dir", tmp_path / "again")
    assert code == 0
    assert Path(again["start"]).parent.parent == extracted
    one, two = (load_file(run_of(r) / "checkpoints" / "last" / "model.safetensors") for r in (first, again))
    assert "heads.target.layers.4.weight" in one
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_a_spec_with_another_head_than_the_run_it_starts_from_is_refused(
    spec: Path, extracted: Path, tmp_path: Path, invoke: Invoke
) -> None:
    arguments = ("--from", extracted, "--set", "head.hidden=[9]", "--runs-dir", tmp_path / "other")
    code, answer = invoke("finetune", spec, *arguments)
    assert code == 2
    assert "head.hidden: is (9,), but the head of the run that it starts from has (8,)" in answer["error"]


def test_a_run_that_went_on_keeps_its_pretrained_batchnorm_statistics(
    spec: Path, extracted: Path, tmp_path: Path, invoke: Invoke
) -> None:
    """backbone.weights: none is not where it starts, so `auto` is not what random weights would need."""
    _, tuned = invoke("finetune", spec, "--from", extracted, "--set", "epochs=1", "--runs-dir", tmp_path / "runs")
    before, after = (load_file(path / "checkpoints/best/model.safetensors") for path in (extracted, run_of(tuned)))
    names = [name for name in before if name.endswith("running_mean")]
    assert names and all(torch.equal(before[name], after[name]) for name in names)
    assert not torch.equal(before["backbone.conv1.weight"], after["backbone.conv1.weight"])


def test_a_hold_out_of_another_seed_than_the_run_it_starts_from_is_refused(
    spec: Path, tmp_path: Path, invoke: Invoke
) -> None:
    """Its head was trained on some of the images that would select the best epoch now."""
    settings = ("--set", "target.val=0.3", "--runs-dir", tmp_path / "runs")
    _, start = invoke("extract", spec, *settings)
    code, answer = invoke("finetune", spec, "--from", start["run"], "--set", "seed=5", *settings)
    assert code == 3
    assert f"target.val: is not what {start['run']} held out" in answer["error"]
    code, _ = invoke("finetune", spec, "--from", start["run"], "--set", "epochs=1", *settings)
    assert code == 0


@pytest.mark.parametrize("verb", ["extract", "finetune"])
def test_weights_that_were_fine_tuned_on_what_is_held_out_now_are_refused(
    verb: str, spec: Path, tmp_path: Path, invoke: Invoke
) -> None:
    settings = ("--set", "target.val=0.3", "--set", "epochs=1", "--set", "optimizer.lr=1e-4", "--runs-dir", tmp_path)
    _, tuned = invoke("finetune", spec, *settings)
    weights = ("--set", f"backbone.weights={tuned['run']}")
    code, answer = invoke(verb, spec, *weights, *settings, "--set", "seed=5")
    assert code == 3
    assert f"target.val: is not what {tuned['run']} held out" in answer["error"]
    code, _ = invoke(verb, spec, *weights, *settings)
    assert code == 0


@pytest.mark.parametrize("verb", ["extract", "finetune"])
def test_broken_images_of_all_splits_are_named_at_once(verb: str, spec: Path, tmp_path: Path, invoke: Invoke) -> None:
    broken = [tmp_path / split / "bees" / f"{i}.png" for split, i in (("train", 0), ("train", 7), ("val", 1))]
    for path in broken:
        path.write_bytes(b"")
    code, answer = invoke(verb, spec, "--runs-dir", tmp_path / "runs")
    assert code == 3
    assert answer["error"].splitlines() == [
        "3 unreadable samples; mend or remove them, or write on_bad_sample: skip",
        *(f"  {path} is empty (0 bytes)" for path in broken),
    ]


def test_the_comparison_with_scratch_repeats_everything_by_seed(spec: Path, tmp_path: Path) -> None:
    settings = ["--set", "baseline={epochs: 1, repeats: 2}", "--set", "target.train={path: train, per_class: 6}"]
    settings += ["--runs-dir", str(tmp_path / "runs")]
    result = CliRunner().invoke(app, ["extract", str(spec), *settings])
    assert result.exit_code == 0, result.output
    other, main = (json.loads(path.read_text()) for path in sorted(tmp_path.glob("runs/*/summary.json"), reverse=True))
    if "baseline" in other:
        other, main = main, other
    assert [run["name"] for run in (main, other)] == ["tiny", "tiny-seed1"]  # `*-extract-tiny` is the run asked for
    rows = main["baseline"]["runs"]
    assert [row["seed"] for row in rows] == [0, 1]
    assert [row["transfer"] for row in rows] == [run["best"]["val"]["accuracy"] for run in (main, other)]
    assert main["baseline"]["scratch"]["mean"] == pytest.approx(sum(row["scratch"] for row in rows) / 2)
    assert [len(set(path.read_text().splitlines())) for path in tmp_path.glob("runs/*/predictions.csv")] == [16, 16]
    assert result.stdout.count("Validation, epoch") == 1
    assert "val accuracy, %, on the same 18 training images; 2 seeds" in result.stdout
    assert result.stdout.splitlines()[-1] == main["run"]


def test_preprocessing_of_the_spec_holds_over_that_of_the_run_it_starts_from(
    spec: Path, extracted: Path, tmp_path: Path, invoke: Invoke
) -> None:
    arguments = ("--from", extracted, "--set", "epochs=1", "--runs-dir", tmp_path / "other")
    crops = []
    for preprocess in ("{resize: 48, crop: 40}", "{}"):
        _, answer = invoke("finetune", spec, *arguments, "--set", f"preprocess={preprocess}")
        manifest = run_of(answer) / "checkpoints" / "last" / "manifest.json"
        crops.append(json.loads(manifest.read_text())["preprocessing"]["crop"])
    assert crops == [40, 32]


def test_settings_that_a_verb_does_not_read_are_said(spec: Path, tmp_path: Path) -> None:
    settings = ["--set", "penalties.l2sp=0.1", "--set", "frozen=layer2", "--runs-dir", str(tmp_path / "runs")]
    result = CliRunner().invoke(app, ["extract", str(spec), *settings])
    assert (
        "extract (the backbone is frozen, features are computed once) does not use: frozen, penalties" in result.stderr
    )


def test_the_log_begins_with_what_was_said_before_the_run_folder_existed(
    spec: Path, tmp_path: Path, invoke: Invoke
) -> None:
    _, answer = invoke("extract", spec, "--set", "device=cpu", "--runs-dir", tmp_path / "runs")
    log = (run_of(answer) / "log.txt").read_text()
    for part in ("target: 3 classes", "device: cpu", "preprocessing: resize", "epoch 3/3", "macro F1"):
        assert part in log


def test_the_quick_start_in_short(tmp_path: Path, invoke: Invoke) -> None:
    """Stage 0, then extraction, then both again with the next seed, and from scratch beside them."""
    config = Path(__file__).parent.parent / "configs" / "quickstart.yaml"
    settings = ["pretrain.epochs=1", "baseline.epochs=1", "baseline.repeats=2", "epochs=2", "preprocess={crop: 32}"]
    code, answer = invoke(
        "extract", config, *(word for text in settings for word in ("--set", text)), "--runs-dir", tmp_path
    )
    assert code == 0
    verbs = [path.name.split("-")[2] for path in sorted(tmp_path.iterdir())]
    assert sorted(verbs) == ["extract", "extract", "pretrain", "pretrain"]
    starts = [json.loads(path.read_text())["start"] for path in tmp_path.glob("*-extract-*/summary.json")]
    assert {Path(start).parent.parent for start in starts} == set(tmp_path.glob("*-pretrain-*"))
    assert yamlfile.load(run_of(answer) / "spec.yaml").spec.backbone.weights == "source"  # run again, it repeats all
    assert json.loads((run_of(answer) / "classes.json").read_text()) == {
        "source": ["0", "1", "2", "3", "4"],
        "target": ["5", "6", "7", "8", "9"],
    }
    assert (answer["baseline"]["scored_on"], answer["baseline"]["train_samples"]) == ("test", 50)
    assert [row["seed"] for row in answer["baseline"]["runs"]] == [0, 1]
    assert answer["baseline"]["runs"][0]["transfer"] == answer["test"]["accuracy"]


@pytest.mark.parametrize("verb", ["extract", "finetune"])
def test_dropout_and_stochastic_depth_are_keyed_by_the_seed(
    verb: str, spec: Path, tmp_path: Path, invoke: Invoke
) -> None:
    settings = ["backbone.name=efficientnet_b0", "head.dropout=0.5", "epochs=2", "workers=0"]
    runs = []
    for change in ([], ["workers=2"], ["seed=1"]):
        torch.manual_seed(len(runs))  # what torch's generator held before must not matter
        words = [word for text in [*settings, *change] for word in ("--set", text)]
        _, answer = invoke(verb, spec, *words, "--runs-dir", tmp_path / "runs")
        runs.append(load_file(run_of(answer) / "checkpoints" / "last" / "model.safetensors"))
    same, other = ([torch.equal(runs[0][name], run[name]) for name in runs[0]] for run in runs[1:])
    assert all(same) and not all(other)


def test_an_odd_sample_is_no_batch_of_its_own(spec: Path, tmp_path: Path, invoke: Invoke) -> None:
    """37 images in pairs: BatchNorm cannot take one place of one image."""
    settings = ("--set", "batch_size=2", "--set", "epochs=1", "--set", "target.train=odd", "--runs-dir", tmp_path / "r")
    (tmp_path / "train").rename(tmp_path / "odd")
    shutil.copy(tmp_path / "odd" / "ants" / "0.png", tmp_path / "odd" / "ants" / "99.png")
    code, answer = invoke("finetune", spec, *settings)
    assert (code, answer["last"]["step"]) == (0, 18)


def test_joint_fine_tuning_scores_what_is_left_of_the_source(spec: Path, tmp_path: Path, invoke: Invoke) -> None:
    source = "source={train: {dataset: digits, classes: [0, 1], per_class: 8}, val: {dataset: digits, classes: [0, 1]}}"
    _, answer = invoke("finetune", spec, "--set", source, "--set", "epochs=1", "--runs-dir", tmp_path / "runs")
    lines = [json.loads(line) for line in (run_of(answer) / "metrics.jsonl").read_text().splitlines()]
    (kept,) = [line for line in lines if line["split"] == "source_val"]
    assert kept["accuracy"] == answer["source"]["after"]["accuracy"]
    assert "before" not in answer["source"]  # the source head was new


def test_the_summary_counts_what_was_skipped(spec: Path, tmp_path: Path, invoke: Invoke) -> None:
    for split, name in (("train", "ants"), ("val", "bees")):
        (tmp_path / split / name / "0.png").write_bytes(b"")
    settings = ("--set", "on_bad_sample=skip", "--set", "epochs=1", "--runs-dir", tmp_path / "runs")
    for verb in ("extract", "finetune"):
        code, answer = invoke(verb, spec, *settings)
        assert (code, answer["skipped"]) == (0, 2)


def test_batches_of_one_sample_are_refused_where_batchnorm_trains(spec: Path, tmp_path: Path, invoke: Invoke) -> None:
    settings = ("--set", "batch_size=1", "--set", "epochs=1", "--runs-dir", tmp_path / "runs")
    code, answer = invoke("finetune", spec, *settings)
    assert code == 2
    assert answer["error"].startswith("--set batch_size=1: batch_size: is 1, and BatchNorm")
    code, _ = invoke("finetune", spec, *settings, "--set", "frozen=all")
    assert code == 0


def test_a_network_whose_state_has_a_version_is_put_back_to_its_best_epoch(
    spec: Path, tmp_path: Path, invoke: Invoke
) -> None:
    """torchvision's mnasnet refuses a plain mapping of its own tensors."""
    code, answer = invoke("extract", spec, "--runs-dir", tmp_path, "--set", "backbone.name=mnasnet0_5")
    assert code == 0
    code, scored = invoke("eval", answer["run"], "--runs-dir", tmp_path)
    assert (code, scored["accuracy"]) == (0, answer["best"]["val"]["accuracy"])
