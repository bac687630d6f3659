"""Fine-tuning on cached activations, on frozen stages without a graph, and on the whole network is one training."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

from transferctl import frozen
from transferctl.cache import hashes
from transferctl.cli import app
from transferctl.images import ImageFiles

Call = Callable[..., dict[str, Any]]

SETTINGS = {
    "plain": ["frozen=layer3", "augment=none"],
    "by epoch": ["frozen={1: all, 2: layer3, 3: layer1}", "augment=none"],
    "views": ["frozen=layer2", "augment={views: 2}"],
    "balanced views": ["frozen=layer2", "augment={views: 2}", "target.balance=sampling"],
    "fresh augmentation": ["frozen=layer2"],
    "mixed images": ["frozen=layer2", "augment={mixup: 0.3}"],
    "source cached, target fresh": ["frozen=layer2", "source={train: train, val: val}"],
    "source fresh, target cached": ["frozen=layer2", "augment=none", "source={train: train, val: val, augment: {}}"],
    "source cached, target mixed": [
        "frozen=layer2", "augment={cutmix: 1.0}", "source={train: train, val: val, label_smoothing: 0.1}"
    ],
    "penalties": [
        "frozen=layer2", "augment=none", "source={train: train, val: val}",
        "penalties={l2sp: 0.1, lwf: 0.1, delta: 0.01, ewc: {weight: 1, samples: 20}, cotuning: 0.1}",
    ],
}  # fmt: skip


@pytest.fixture
def pretrained(spec: Path, call: Call) -> Path:
    """A run whose backbone knows the classes."""
    source = ["--set", "source={train: train, val: val}", "--set", "pretrain.epochs=1"]
    run: str = call("pretrain", spec, *source, "--runs-dir", spec.parent / "stage0")["run"]
    return Path(run)


def _finetuned(spec: Path, pretrained: Path, call: Call, *settings: str) -> tuple[dict[str, Any], dict[str, Any]]:
    words = [
        word
        for text in (f"backbone.weights={pretrained}", "epochs=3", "optimizer.lr=0.005", "device=cpu", *settings)
        for word in ("--set", text)
    ]
    answer = call("finetune", spec, *words, "--runs-dir", spec.parent / "runs")
    return answer, load_file(Path(answer["run"]) / "checkpoints" / "last" / "model.safetensors")


@pytest.mark.parametrize("name", SETTINGS)
def test_cached_and_uncached_training_give_the_same_weights(
    name: str, spec: Path, pretrained: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In fp32, where only the order of sums differs: to a twentieth of the way that the weights went, and a hundredth
    of each tensor's norm (biases begin at 0)."""
    cached, weights = _finetuned(spec, pretrained, call, *SETTINGS[name])
    no_room, _ = _finetuned(spec, pretrained, call, *SETTINGS[name], "cache.limit=1")
    monkeypatch.setattr(frozen, "leading", lambda *_: 0)
    whole, expected = _finetuned(spec, pretrained, call, *SETTINGS[name])
    for answer in (cached, no_room):
        assert answer["last"]["val"]["loss"] == pytest.approx(whole["last"]["val"]["loss"], rel=2e-3)
        if "source" in whole:
            assert answer["source"]["after"]["loss"] == pytest.approx(whole["source"]["after"]["loss"], rel=2e-3)
    start = load_file(Path(whole["run"]) / "checkpoints" / "start" / "model.safetensors")
    assert 20 * _distance(weights, expected) <= (moved := _distance(start, expected)) and moved > 0
    for key, tensor in expected.items():
        if tensor.is_floating_point():
            assert float((weights[key] - tensor).norm()) <= 0.01 * float(tensor.norm().clamp_min(1e-2)), key


def _distance(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    keys = [key for key, tensor in other.items() if tensor.is_floating_point() and key in one]
    return float(sum((one[key] - other[key]).double().square().sum() for key in keys)) ** 0.5


def test_in_bf16_they_agree_to_its_rounding(
    spec: Path, pretrained: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Activations are cached in the precision in which they are computed, so caching itself rounds nothing."""
    settings = ("precision=bf16", "frozen=layer3", "augment=none")
    cached, weights = _finetuned(spec, pretrained, call, *settings)
    no_room, same = _finetuned(spec, pretrained, call, *settings, "cache.limit=1")
    monkeypatch.setattr(frozen, "leading", lambda *_: 0)
    whole, expected = _finetuned(spec, pretrained, call, *settings)
    for key, tensor in expected.items():
        if "layer4" in key and tensor.is_floating_point() and tensor.ndim > 1:
            moved = float((tensor - same[key]).norm() / tensor.norm())
            assert moved < 0.02 and float((weights[key] - same[key]).norm() / tensor.norm()) < 0.01, key
    assert cached["last"]["val"]["loss"] == pytest.approx(no_room["last"]["val"]["loss"], abs=0.02)
    assert cached["last"]["val"]["loss"] == pytest.approx(whole["last"]["val"]["loss"], abs=0.1)


def test_images_that_come_again_are_decoded_once(
    spec: Path, pretrained: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded: list[str] = []
    read, read_hashed = ImageFiles.read, ImageFiles.read_hashed

    def watched(self: ImageFiles, index: int, *how: Any) -> Any:
        decoded.append(self.name(index))
        return read(self, index, *how)

    def watched_and_hashed(self: ImageFiles, index: int, *how: Any) -> Any:
        decoded.append(self.name(index))
        return read_hashed(self, index, *how)

    monkeypatch.setattr(ImageFiles, "read", watched)
    monkeypatch.setattr(ImageFiles, "read_hashed", watched_and_hashed)
    tuned, _ = _finetuned(spec, pretrained, call, "frozen=layer3", "augment=none")
    assert len(decoded) == len(set(decoded)) == 36 + 15
    decoded.clear()
    known = ("source={train: train, val: val}", "penalties={ewc: {weight: 1, samples: 20}, cotuning: 0.1}")
    _finetuned(spec, pretrained, call, "frozen=layer3", "augment=none", "optimizer.lr=0.001", *known)
    call("eval", tuned["run"], "--runs-dir", spec.parent / "runs")
    assert decoded == []


def test_extract_again_decodes_nothing_and_finds_the_same(
    spec: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = call("extract", spec, "--runs-dir", spec.parent / "runs")

    def refuse(*_: Any) -> Any:
        pytest.fail("decoded again")

    monkeypatch.setattr(ImageFiles, "read", refuse)
    monkeypatch.setattr(ImageFiles, "read_hashed", refuse)
    again = call("extract", spec, "--runs-dir", spec.parent / "runs")
    assert again["best"] == first["best"]
    other = call("extract", spec, "--set", "optimizer.lr=0.001", "--set", "seed=0", "--runs-dir", spec.parent / "runs")
    assert other["best"] != first["best"]


def test_nothing_below_the_lowest_thawed_stage_has_a_graph(
    spec: Path, pretrained: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[bool] = []
    run = frozen.FrozenStages.__call__

    def watched(self: Any, inputs: torch.Tensor) -> torch.Tensor:
        activations = run(self, inputs)
        seen.append(activations.requires_grad)
        return activations

    monkeypatch.setattr(frozen.FrozenStages, "__call__", watched)
    _finetuned(spec, pretrained, call, "frozen=layer2")
    assert seen and not any(seen)


def test_verify_reads_files_whose_size_and_times_are_as_they_were(
    spec: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a file system that tells no times."""
    monkeypatch.setattr(hashes, "_stamp", lambda path: path.encode())
    monkeypatch.setattr(hashes, "_is_settled", lambda *_: True)
    old, other = (spec.parent / "train" / name / "0.png" for name in ("ants", "bees"))
    before = call("extract", spec, "--runs-dir", spec.parent / "runs")
    old.write_bytes(other.read_bytes())
    deceived = call("extract", spec, "--runs-dir", spec.parent / "runs")
    verified = call("extract", spec, "--verify", "--runs-dir", spec.parent / "runs")
    assert before["best"] == deceived["best"] != verified["best"]


def test_check_says_what_is_computed_once_and_what_it_takes(spec: Path, call: Call) -> None:
    arguments = ["--set", "frozen=layer2", "--set", "source={train: train, val: val}", "--set", "backbone.weights=none"]
    work = {row["data"]: row for row in call("check", spec, *arguments)["frozen_work"]}
    assert {name: row["frozen stages"] for name, row in work.items()} == {
        "target.val": "once", "target.train": "in every epoch, no graph", "source.val": "once", "source.train": "once"
    }  # fmt: skip
    assert work["source.train"]["images"] == "36"
    assert work["source.train"]["bytes an image"] == "8.2 kB"  # 128 × 4 × 4, fp32
    assert work["source.train"]["kept"] == "294.9 kB in the cache"
    views = {row["data"]: row for row in call("check", spec, *arguments, "--set", "augment={views: 3}")["frozen_work"]}
    assert views["target.train"]["images"] == "108"
    full = call("check", spec, *arguments, "--set", "cache.limit=1000")["frozen_work"]
    assert full[0]["kept"].startswith("no room for")
    one = call("check", spec, *arguments, "--set", "cache.limit=400000")["frozen_work"]
    kept = {row["data"]: row["kept"] for row in one}
    assert kept["source.val"].endswith("in the cache") and kept["source.train"].startswith("no room"), "all together"
    unkept = call("check", spec, *arguments, "--set", "cache=none")["frozen_work"]
    assert unkept[0]["kept"].endswith("until the run ends")
    assert call("check", spec)["frozen_work"] == []


def test_what_has_nothing_to_compute_ahead_says_so(spec: Path) -> None:
    def said(*settings: str) -> str:
        words = [word for text in settings for word in ("--set", text)]
        result = CliRunner().invoke(app, ["finetune", str(spec), *words, "--runs-dir", str(spec.parent / "runs")])
        assert result.exit_code == 0
        return " ".join(result.output.split())

    assert "finetune does not use: cache, compile" in said("epochs=1", "frozen=none", "cache=none", "compile=never")
    thawing = said("epochs=2", "frozen={1: layer4, 2: none}", "cache=none")
    assert "no leading stage stays frozen in all epochs, so nothing is computed ahead" in thawing
    kept = said("epochs=1", "frozen=layer4", "augment=none", "cache=none")
    assert "activations after layer4 are computed once and kept in" in kept and "until the run ends" in kept
