"""eval --interpolate: the models between start and best, by hand; one of them as a model of its own."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

from transferctl import interpolation
from transferctl.cli import app
from transferctl.errors import SpecError

Invoke = Callable[..., tuple[int, dict[str, Any]]]

SPEC = """
name: between
backbone: {name: resnet18, weights: source}
preprocess: {resize: 32, crop: 32}
source:
  train: {dataset: digits, split: train, classes: [0, 1, 2], per_class: 12}
  val: {dataset: digits, split: val, classes: [0, 1, 2], per_class: 10}
  rehearsal: false
pretrain: {epochs: 2, batch_size: 8, augment: none, optimizer: {name: sgd, lr: 0.01}}
target: {train: {dataset: digits, split: train, classes: [5, 6], per_class: 20}, val: 0.4}
epochs: 1
batch_size: 8
workers: 0
augment: none
batchnorm: train
optimizer: {lr: 0.02}
"""


class Trained(NamedTuple):
    """extracted: where fine-tuning started, its target head trained; tuned: where it came to. JSON of each."""

    spec: Path
    extracted: dict[str, Any]
    tuned: dict[str, Any]


@pytest.fixture(scope="module")
def trained(call: Any, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    folder = tmp_path_factory.mktemp("interpolate")
    (folder / "spec.yaml").write_text(SPEC)
    extracted = call("extract", folder / "spec.yaml", "--runs-dir", folder / "runs")
    arguments = ("--from", extracted["run"], "--runs-dir", folder / "runs")
    return Trained(folder / "spec.yaml", extracted, call("finetune", folder / "spec.yaml", *arguments))


def state_of(run: str | Path, which: str) -> dict[str, torch.Tensor]:
    return load_file(Path(run) / "checkpoints" / which / "model.safetensors")


@pytest.mark.parametrize(
    ("text", "points"),
    [
        ("0:1:0.1", [0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1]),
        ("0:1:0.3", [0, 0.3, 0.6, 0.9, 1]),
        ("0.2:0.2:1", [0.2]),
        ("0.5", [0.5]),
        ("1, 0,0.25", [1, 0, 0.25]),
        ("0:1:0.01", [i / 100 for i in range(101)]),
    ],
)
def test_alphas_are_the_decimal_numbers_that_were_written(text: str, points: list[float]) -> None:
    assert interpolation.alphas(text) == points


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "write start:stop:step"),
        ("a:b:c", "write start:stop:step"),
        ("0:1", "write start:stop:step"),
        ("0:1:0.1:2", "write start:stop:step"),
        ("0,,1", "write start:stop:step"),
        ("nan", "write start:stop:step"),
        ("1e99999999999999999999", "write start:stop:step"),
        ("1.5", "α must be from 0"),
        ("-0.1,0", "α must be from 0"),
        ("0:2:0.1", "must have 0 ≤ start ≤ stop ≤ 1"),
        ("1:0:0.1", "must have 0 ≤ start ≤ stop ≤ 1"),
        ("0:1:0", "a step above 0"),
        ("0:1:-0.1", "a step above 0"),
        ("0:1:0.0099", "more than 101 points"),
        ("0:1:1e-999999", "more than 101 points"),
        (",".join(["0"] * 102), "more than 101 points"),
    ],
)
def test_odd_alphas_are_told_at_the_flag(text: str, message: str) -> None:
    with pytest.raises(SpecError) as caught:
        interpolation.alphas(text)
    assert str(caught.value).startswith(f"--interpolate {text}: ")
    assert message in str(caught.value)


def test_between_is_the_weighted_mean_of_what_has_fractions_and_best_for_the_rest() -> None:
    start = {"backbone.w": torch.tensor([1.0, -2.0]), "backbone.n": torch.tensor(3), "heads.target.b": torch.ones(2)}
    best = {"backbone.w": torch.tensor([5.0, 2.0]), "backbone.n": torch.tensor(9), "heads.target.b": torch.zeros(2)}
    found = interpolation.between(start, best, 0.25, [])
    assert found["backbone.w"].tolist() == [2.0, -1.0]
    assert found["backbone.n"].item() == 9
    assert found["heads.target.b"].tolist() == [0.75, 0.75]
    assert interpolation.between(start, best, 0.25, ["target"])["heads.target.b"].tolist() == [0.0, 0.0]


def test_equal_weights_stay_as_they_are_to_the_bit() -> None:
    """(1 − α)·w + α·w is not w in floating point; what is cached of frozen stages would not be found."""
    weights = {"backbone.w": torch.randn(1000, generator=torch.Generator().manual_seed(0))}
    between = interpolation.between(weights, {name: w.clone() for name, w in weights.items()}, 0.1, ())
    assert torch.equal(between["backbone.w"], weights["backbone.w"])


def test_the_ends_have_the_scores_of_start_and_best(trained: Trained, tmp_path: Path, invoke: Invoke) -> None:
    """As the runs that made them reported: start is the extraction that fine-tuning went on from."""
    code, answer = invoke("eval", trained.tuned["run"], "--interpolate", "0:1:0.5", "--runs-dir", tmp_path)
    assert code == 0
    first, _, last = answer["interpolation"]
    source, best = trained.tuned["source"], trained.tuned["best"]["val"]
    assert first["target"]["accuracy"] == trained.extracted["best"]["val"]["accuracy"]
    assert last["target"]["accuracy"] == best["accuracy"]
    assert last["target"]["loss"] == pytest.approx(best["loss"], abs=1e-9)
    assert (first["source"]["accuracy"], last["source"]["accuracy"]) == tuple(
        source[k]["accuracy"] for k in ("before", "after")
    )
    assert first["source"]["loss"] == pytest.approx(source["before"]["loss"], abs=1e-9)
    assert first["target"]["loss"] != last["target"]["loss"] and first["source"]["loss"] != last["source"]["loss"]
    lines = [json.loads(line) for line in (Path(answer["run"]) / "metrics.jsonl").read_text().splitlines()]
    assert [(line["alpha"], line["split"]) for line in lines] == [
        (alpha, split) for alpha in (0, 0.5, 1) for split in ("val", "source_val")
    ]
    assert not (Path(answer["run"]) / "checkpoints").exists()


def test_the_plot_has_a_label_a_point_and_the_same_bytes_each_time(call: Any, trained: Trained, tmp_path: Path) -> None:
    drawn = []
    for folder, settings in (("a", []), ("b", []), ("c", ["--set", "source.val=none"])):
        arguments = (
            "eval",
            trained.tuned["run"],
            "--interpolate",
            "0,0.5,1",
            *settings,
            "--runs-dir",
            tmp_path / folder,
        )
        drawn.append((Path(call(*arguments)["run"]) / "interpolation.svg").read_text(encoding="utf-8"))
    assert drawn[0] == drawn[1]
    for text, x_label in ((drawn[0], ">source accuracy, %<"), (drawn[2], ">α<")):
        assert all(f">α = {alpha}<" in text for alpha in ("0", "0.5", "1"))
        assert x_label in text and ">target accuracy, %<" in text
        assert len(text) < 50_000 and "<dc:date>" not in text


def test_one_table_shows_every_alpha(trained: Trained, tmp_path: Path) -> None:
    result = CliRunner().invoke(
        app, ["eval", trained.tuned["run"], "--interpolate", "0,1", "--runs-dir", str(tmp_path)]
    )
    assert result.exit_code == 0
    rows = [line.split() for line in result.stdout.splitlines() if line.strip()[:2] in ("0 ", "1 ")]
    targets = [answer["best"]["val"]["accuracy"] for answer in (trained.extracted, trained.tuned)]
    sources = [trained.tuned["source"][key]["accuracy"] for key in ("before", "after")]
    assert [(row[0], row[1], row[3]) for row in rows] == [
        (alpha, f"{100 * target:.1f}", f"{100 * source:.1f}")
        for alpha, target, source in zip("01", targets, sources, strict=True)
    ]


@pytest.fixture(scope="module")
def halfway(call: Any, trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    runs = tmp_path_factory.mktemp("halfway")
    return call("eval", trained.tuned["run"], "--interpolate", "0.5", "--runs-dir", runs)


def test_one_alpha_alone_is_saved_and_is_the_mean_of_the_two_files(trained: Trained, halfway: Any) -> None:
    start, best = (state_of(trained.tuned["run"], which) for which in ("start", "best"))
    for which in ("best", "last"):
        found = state_of(halfway["run"], which)
        assert set(found) == set(best)
        for name, tensor in found.items():
            if tensor.is_floating_point():
                expected = (start[name].double() + best[name].double()) / 2
                torch.testing.assert_close(tensor.double(), expected, atol=1e-7, rtol=1e-6)
            else:
                assert torch.equal(tensor, best[name])
    assert any(not torch.equal(start[name], best[name]) for name in best if name.endswith("running_mean"))


def test_an_interpolated_run_serves_eval_weights_and_from(
    trained: Trained, halfway: Any, tmp_path: Path, invoke: Invoke
) -> None:
    code, scored = invoke("eval", halfway["run"], "--fail-if", "accuracy<0", "--runs-dir", tmp_path)
    assert (code, scored["accuracy"], scored["loss"]) == (0, halfway["accuracy"], halfway["loss"])
    assert halfway["interpolation"][0]["target"]["accuracy"] == halfway["accuracy"]
    for arguments in (["--set", f"backbone.weights={halfway['run']}"], ["--from", halfway["run"]]):
        code, tuned = invoke("finetune", trained.spec, *arguments, "--runs-dir", tmp_path)
        assert code == 0 and str(Path(halfway["run"]).name) in tuned["start"]
        start, expected = state_of(tuned["run"], "start"), state_of(halfway["run"], "best")
        assert torch.equal(start["backbone.conv1.weight"], expected["backbone.conv1.weight"])
        assert torch.equal(start["heads.source.layers.1.weight"], expected["heads.source.layers.1.weight"])
        code, answer = invoke("finetune", trained.spec, *arguments, "--set", "seed=5", "--runs-dir", tmp_path)
        assert (code, "is not what" in answer["error"]) == (3, True)  # another hold-out than the one it knows


def test_a_head_that_was_new_at_the_start_is_the_fine_tuned_one(trained: Trained, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(trained.tuned["run"], run, symlinks=True)
    manifest = run / "checkpoints" / "start" / "manifest.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"untrained_heads": ["target"]}))
    result = CliRunner().invoke(app, ["eval", str(run), "--interpolate", "0", "--json", "--runs-dir", str(tmp_path)])
    assert "the target head was new at the start: at every α it is the fine-tuned one" in result.stderr
    found, start, best = (
        state_of(json.loads(result.stdout)["run"], "best"),
        state_of(run, "start"),
        state_of(run, "best"),
    )
    for name, tensor in found.items():
        expected = best if name.startswith("heads.target") or not tensor.is_floating_point() else start
        assert torch.equal(tensor, expected[name])


def test_gates_take_one_alpha(trained: Trained, tmp_path: Path, invoke: Invoke) -> None:
    arguments = ("eval", trained.tuned["run"], "--runs-dir", tmp_path, "--fail-if", "accuracy<=1")
    code, answer = invoke(*arguments, "--interpolate", "1")
    assert (code, answer["accuracy"]) == (8, trained.tuned["best"]["val"]["accuracy"])
    code, answer = invoke(*arguments, "--interpolate", "0,1")
    assert code == 2
    assert (
        answer["error"] == "--fail-if accuracy<=1: a gate beside --interpolate needs one α, such as --interpolate 0.5"
    )


@pytest.mark.parametrize(("beside", "message"), [
    (["--source"], "--source: --interpolate scores the source too"),
    (["--checkpoint", "last"], "--checkpoint last: --interpolate goes from the start"),
])  # fmt: skip
def test_options_that_mean_nothing_beside_it_are_refused(
    beside: list[str], message: str, trained: Trained, invoke: Invoke
) -> None:
    code, answer = invoke("eval", trained.tuned["run"], "--interpolate", "0.5", *beside)
    assert code == 2
    assert answer["error"].startswith(message)


def test_a_run_without_a_start_exits_4_with_the_fix(trained: Trained, tmp_path: Path, invoke: Invoke) -> None:
    code, answer = invoke("eval", trained.extracted["run"], "--interpolate", "0:1:0.1", "--runs-dir", tmp_path)
    assert code == 4
    assert answer["error"].startswith(f"{trained.extracted['run']}: has no `start` checkpoint")
    assert "fine-tune again" in answer["error"]
    assert not list(tmp_path.iterdir())


def test_one_alpha_says_what_was_forgotten_and_may_be_gated_on_it(
    call: Any, trained: Trained, tmp_path: Path, invoke: Invoke
) -> None:
    arguments = ("eval", trained.tuned["run"], "--interpolate", "0.5", "--runs-dir", tmp_path)
    answer = call(*arguments)
    report = answer["source"]
    assert report["before"]["accuracy"] == trained.tuned["source"]["before"]["accuracy"]
    assert report["after"] == answer["interpolation"][0]["source"]
    code, missed = invoke(*arguments, "--fail-if", "accuracy_change<=1")
    assert code == 8 and "accuracy_change<=1 (it is" in missed["error"]
    again = call("eval", answer["run"], "--source", "--runs-dir", tmp_path)
    assert again["accuracy_change"] == report["accuracy_change"]
