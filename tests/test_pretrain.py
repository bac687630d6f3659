"""Stage 0 is trained once for the same data and settings, and anew where anything that it depends on differs."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from safetensors.torch import load_file

import transferctl
from transferctl import pretrain, training, yamlfile
from transferctl.display import Display
from transferctl.spec import WeightsFile

Invoke = Callable[..., tuple[int, dict[str, Any]]]

SPEC = """
name: once
backbone: {name: resnet18, weights: source}
preprocess: {resize: 32, crop: 32}
source: {train: {path: SOURCE/train}, val: {path: SOURCE/val}}
pretrain: {epochs: 1, batch_size: 8}
target:
  train: {dataset: digits, split: train, classes: [5, 6], per_class: 6}
  val: {dataset: digits, split: val, classes: [5, 6], per_class: 5}
epochs: 2
workers: 0
"""


class Stage0(NamedTuple):
    """folder: its spec, its images, its runs. run: the one run that trained it."""

    folder: Path
    run: Path


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Stage0:
    folder = tmp_path_factory.mktemp("stage0")
    for split, count in (("train", 5), ("val", 3)):
        for label, name in enumerate(("dark", "light")):
            (folder / split / name).mkdir(parents=True)
            for i in range(count):
                pixels = np.random.default_rng([label, count, i]).integers(0, 100, (36, 36, 3)) + 150 * label
                Image.fromarray(pixels.astype(np.uint8)).save(folder / split / name / f"{i}.png")
    (folder / "spec.yaml").write_text(SPEC.replace("SOURCE", str(folder)))
    spec = pretrain.ensure_source(yamlfile.load(folder / "spec.yaml").spec, folder / "runs", Display())
    return Stage0(folder, weights_of(spec))


def weights_of(spec: Any) -> Path:
    assert isinstance(spec.backbone.weights, WeightsFile)
    return spec.backbone.weights.path


class _Trains(Exception):
    pass


@pytest.fixture
def trains(monkeypatch: pytest.MonkeyPatch) -> Callable[..., bool]:
    """trains(folder, *settings): whether stage 0 of the spec in this folder is trained, not taken from its runs."""

    def refuse(*arguments: object, **options: object) -> None:
        raise _Trains

    def ask(folder: Path, *settings: str, runs: Path | None = None) -> bool:
        monkeypatch.setattr(training, "fit", refuse)
        spec = yamlfile.load(folder / "spec.yaml", settings).spec
        try:
            pretrain.ensure_source(spec, runs or folder / "runs", Display())
        except _Trains:
            return True
        return False

    return ask


@pytest.fixture
def copy(trained: Stage0, tmp_path: Path) -> Path:
    """The same in a place of its own, images and runs included, for a test to change."""
    shutil.copytree(trained.folder, tmp_path / "copy", symlinks=True)
    (tmp_path / "copy" / "spec.yaml").write_text(SPEC.replace("SOURCE", str(tmp_path / "copy")))
    return tmp_path / "copy"


@pytest.mark.parametrize(
    "setting",
    [
        "seed=1",
        "backbone.name=resnet34",
        "preprocess.crop=24",
        "preprocess.mean=[0.5, 0.5, 0.5]",
        "precision=bf16",
        "source.balance=weights",
        "source.val=0.4",
        "source.train.per_class=4",
        "pretrain.epochs=2",
        "pretrain.batch_size=5",
        "pretrain.augment=none",
        "pretrain.optimizer.lr=0.02",
        "pretrain.label_smoothing=0.1",
    ],
)
def test_another_setting_that_it_depends_on_trains_it_anew(
    setting: str, trained: Stage0, trains: Any, tmp_path: Path
) -> None:
    shutil.copytree(trained.folder / "runs", tmp_path / "runs", symlinks=True)
    assert trains(trained.folder, setting, runs=tmp_path / "runs")


@pytest.mark.parametrize(
    "settings",
    [(), ("name=other",), ("workers=1",), ("optimizer.lr=0.5", "epochs=7"), ("target.val.per_class=3",),
     ("source.rehearsal=false",), pytest.param(("device=cpu", "precision=fp32"), marks=pytest.mark.skipif(
         torch.cuda.is_available(), reason="auto is the GPU here"))],
)  # fmt: skip
def test_what_it_does_not_depend_on_leaves_it_as_it_is(settings: Any, trained: Stage0, trains: Any) -> None:
    assert not trains(trained.folder, *settings)


def test_data_and_runs_that_moved_are_the_same(copy: Path, trains: Any) -> None:
    assert not trains(copy)


@pytest.mark.parametrize("split", ["train", "val"])
def test_another_content_of_one_image_trains_it_anew(split: str, copy: Path, trains: Any) -> None:
    path = copy / split / "dark" / "1.png"
    pixels = np.asarray(Image.open(path)).copy()
    pixels[0, 0, 0] ^= 1
    Image.fromarray(pixels).save(path)
    assert trains(copy)


def test_images_in_another_order_or_class_train_it_anew(copy: Path, trains: Any) -> None:
    (copy / "train" / "dark" / "0.png").rename(copy / "train" / "dark" / "9.png")
    assert trains(copy)
    (copy / "train" / "dark" / "9.png").rename(copy / "train" / "dark" / "0.png")
    assert not trains(copy)
    for split in ("train", "val"):
        (copy / split / "light").rename(copy / split / "pale")
    assert trains(copy)


@pytest.mark.parametrize("package", [torch, torchvision, transferctl], ids=lambda package: package.__name__)
def test_another_version_trains_it_anew(package: Any, copy: Path, trains: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(package, "__version__", "0.0.0")
    assert trains(copy)


def test_a_run_that_failed_is_never_taken(copy: Path, trains: Any) -> None:
    (run,) = (copy / "runs").iterdir()
    summary = json.loads((run / "summary.json").read_text())
    for status in ("failed", None):  # one that was interrupted is gone on with, see test_resume.py
        (run / "summary.json").write_text(json.dumps(summary | {"status": status}))
        assert trains(copy)
    (run / "summary.json").write_text("{")
    assert trains(copy)
    (run / "summary.json").unlink()
    assert trains(copy)
    left = [json.loads(path.read_text()) for path in (copy / "runs").glob("*/summary.json")]
    assert len(left) == 4 and all((s["status"], s["stage0"]) == ("failed", summary["stage0"]) for s in left)


def test_a_damaged_checkpoint_is_said_and_trained_anew(
    copy: Path, trains: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    (run,) = (copy / "runs").iterdir()
    older = shutil.copytree(run, copy / "runs" / "20200101-000000-pretrain-once", symlinks=True)
    with (run / "checkpoints" / "best" / "model.safetensors").open("ab") as file:
        file.write(b"\0")
    assert not trains(copy)
    said = capsys.readouterr().err
    assert f"warning: stage 0: {run} is identical, but cannot be used: " in said and "damaged" in said
    assert f"stage 0: {older} is identical (data, architecture, settings, seed); not trained again" in said
    shutil.rmtree(older)
    assert trains(copy)
    assert f"warning: stage 0: {run} is identical" in capsys.readouterr().err


def test_what_follows_has_the_same_bits_as_after_training_it(trained: Stage0, tmp_path: Path, invoke: Invoke) -> None:
    shutil.copytree(trained.folder / "runs", tmp_path / "reused", symlinks=True)
    states = []
    for runs in ("reused", "anew"):
        code, answer = invoke("extract", trained.folder / "spec.yaml", "--runs-dir", tmp_path / runs)
        assert code == 0
        (stage0,) = (tmp_path / runs).glob("*-pretrain-*")
        assert (Path(answer["start"]).parents[1], stage0.name == trained.run.name) == (stage0, runs == "reused")
        states.append(load_file(Path(answer["run"]) / "checkpoints" / "best" / "model.safetensors"))
    assert set(states[0]) == set(states[1])
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_what_the_pretrain_verb_has_trained_serves_too(trained: Stage0, tmp_path: Path, invoke: Invoke) -> None:
    """From random weights, that is: what began with others is another stage 0."""
    spec, expected = trained.folder / "spec.yaml", json.loads((trained.run / "summary.json").read_text())["stage0"]
    for weights, same in (("source", True), ("none", True), (str(trained.run), False)):
        code, answer = invoke("pretrain", spec, "--set", f"backbone.weights={weights}", "--runs-dir", tmp_path)
        assert (code, answer["stage0"] == expected) == (0, same)


def test_broken_source_images_are_all_named_before_anything_is_trained(
    copy: Path, tmp_path: Path, invoke: Invoke
) -> None:
    for path in (copy / "train" / "dark" / "2.png", copy / "val" / "light" / "0.png"):
        path.write_bytes(b"")
    code, answer = invoke("pretrain", copy / "spec.yaml", "--runs-dir", tmp_path / "new")
    assert code == 3
    assert answer["error"].count("is empty (0 bytes)") == 2
    assert not (tmp_path / "new").exists()


def test_another_number_of_threads_trains_it_anew(copy: Path, trains: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """They move the last bits, of which a short training makes whole points."""
    threads = torch.get_num_threads() + 1
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    assert trains(copy)


def test_a_pretrained_head_that_knows_the_source_trains_on(trained: Stage0, tmp_path: Path, invoke: Invoke) -> None:
    """At a rate at which nothing moves, the score is that of the run whose weights it takes."""
    settings = ("--set", f"backbone.weights={trained.run}", "--set", "pretrain.optimizer.lr=1e-30")
    settings += ("--set", "pretrain.epochs=1", "--set", "source.train.classes=[light, dark]")
    code, answer = invoke("pretrain", trained.folder / "spec.yaml", *settings, "--runs-dir", tmp_path)
    assert code == 0
    one, other = (load_file(Path(run) / "checkpoints/best/model.safetensors") for run in (trained.run, answer["run"]))
    names = [name for name in one if name.startswith("heads.source.")]
    assert names and all(torch.equal(one[name], other[name]) for name in names)
