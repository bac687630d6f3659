"""`transferctl init`: the spec that it writes is one that check accepts, whatever the folder and its classes are called."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image
from typer.testing import CliRunner

from transferctl import firstspec, yamlfile
from transferctl.cli import app

Invoke = Callable[..., tuple[int, dict[str, Any]]]
NONE = ("--weights", "none")


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def fill(folder: Path, size: tuple[int, int] = (48, 40), **counts: int) -> Path:
    """Images of noise, all different."""
    for number, (name, count) in enumerate(counts.items()):
        (folder / name).mkdir(parents=True)
        for i in range(count):
            noise = np.random.default_rng([number, i, *str(folder).encode()]).integers(0, 256, (*size[::-1], 3))
            Image.fromarray(noise.astype(np.uint8)).save(folder / name / f"{i}.png")
    return folder


ODD = ["a: b", "x # y", "'q\"", "- dash", "true", "05", "[l]", "{m}", "ünï", "*star", "%", "a, b", "null", "蟻"]


def test_odd_names_of_folders_and_classes_are_quoted(invoke: Invoke, tmp_path: Path) -> None:
    folder = fill(tmp_path / "my photos: #1 'x' ", **dict.fromkeys(ODD, 3))
    code, answer = invoke("init", folder, *NONE)
    assert code == 0 and sorted(answer["classes"]["train"]) == sorted(ODD)
    spec = yamlfile.load(answer["spec"]).spec
    assert str(spec.target.train.path) == str(folder)
    code, plan = invoke("check", answer["spec"])
    assert (code, sorted(plan["classes"])) == (0, sorted(ODD))


@pytest.mark.parametrize("name", ["05", "a.csv", "~", "-x", "no", "ünï", "a'b", "x.yaml"])
def test_a_folder_of_any_name_is_found_again(name: str, invoke: Invoke, tmp_path: Path) -> None:
    fill(tmp_path / name, ants=3, bees=3)
    assert invoke("init", f"./{name}", "--out", "my.yaml", *NONE)[0] == 0
    assert yamlfile.load("my.yaml").spec.target.train.path == tmp_path / name
    assert invoke("check", "my.yaml")[0] == 0


@pytest.mark.parametrize(
    ("names", "splits"),
    [
        (("train", "val", "test"), ["train", "val", "test"]),
        (("Training", "validation"), ["train", "val"]),
        (("train", "testing"), ["train", "val", "test"]),
        (("train",), ["train", "val"]),
    ],
)
def test_splits_are_found_by_the_names_of_their_folders(
    names: tuple[str, ...], splits: list[str], invoke: Invoke, tmp_path: Path
) -> None:
    for name in names:
        fill(tmp_path / "data" / name, ants=5, bees=5)
    code, answer = invoke("init", "data", *NONE)
    assert (code, list(answer["classes"])) == (0, splits)
    target = answer["chosen"]["target"]
    written = {str(value) for key, value in target.items() if key != "balance"}
    assert written == {f"data/{name}" for name in names} | (set() if len(names) == len(splits) else {"0.2"})
    assert invoke("check", "data.yaml")[0] == 0


def test_a_class_may_be_called_train(invoke: Invoke, tmp_path: Path) -> None:
    fill(tmp_path / "traffic", bus=4, car=4, train=4)
    code, answer = invoke("init", "traffic", *NONE)
    assert (code, list(answer["classes"]["train"])) == (0, ["bus", "car", "train"])


@pytest.mark.parametrize("named", ["data", "data/manifest.csv"])
def test_a_manifest_says_classes_and_splits(named: str, invoke: Invoke, tmp_path: Path) -> None:
    folder = fill(tmp_path / "data", all=12)
    rows = [f"all/{i}.png,{'ab'[i % 2]},{'train' if i < 8 else 'val'}" for i in range(12)]
    (folder / "manifest.csv").write_text("\n".join(["path,label,split", *rows]))
    code, answer = invoke("init", named, "--out", "my.yaml", *NONE)
    assert (code, answer["classes"]) == (0, {"train": {"a": 4, "b": 4}, "val": {"a": 2, "b": 2}})
    assert invoke("check", "my.yaml")[0] == 0


def test_what_cannot_be_trained_on_is_told_with_how_to_arrange_it(invoke: Invoke, tmp_path: Path) -> None:
    fill(tmp_path, flat=3, one=0)
    fill(tmp_path / "one", cats=3)
    fill(tmp_path / "outer" / "photos" / "train", a=2, b=2)
    fill(tmp_path / "no-train" / "val", a=2, b=2)
    fill(tmp_path / "twice" / "val", a=2, b=2)
    fill(tmp_path / "twice" / "validation", a=2, b=2)
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    for name, said in {
        "flat": "the 3 images in it are; the images of each class belong into a folder of its own (flat/cat/1.jpg",
        "empty": "holds no images",
        "one": "has one class (cats); a classifier needs at least two",
        "outer": "if train in it are the classes, or the splits, name outer/photos",
        "no-train": "but no folder `train`",
        "twice": "val, validation would all be val",
        "nowhere": "no such folder",
        "file": "is a file",
    }.items():
        code, answer = invoke("init", name, *NONE)
        assert code == 3 and said in answer["error"], (name, answer)
        assert not (tmp_path / f"{name}.yaml").exists()


def test_a_spec_that_is_there_is_kept_unless_forced(invoke: Invoke, tmp_path: Path) -> None:
    fill(tmp_path / "photos", ants=3, bees=3)
    (tmp_path / "mine").write_text("my own")
    (tmp_path / "photos.yaml").symlink_to(tmp_path / "mine")
    code, answer = invoke("init", "photos", *NONE)
    assert code == 2 and "photos.yaml: is there already" in answer["error"]
    assert invoke("init", "photos", "--force", *NONE)[0] == 0
    assert (tmp_path / "mine").read_text() == "my own" and not (tmp_path / "photos.yaml").is_symlink()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--backbone", "resnet81"], "--backbone resnet81: torchvision has no architecture 'resnet81'; did you mean"),
        (["--weights", "nowhere.pth"], "--weights nowhere.pth: no such file or run"),
        (["--weights", "IMAGENET9"], "IMAGENET9"),
        (["--out", "no/where.yaml", *NONE], "there is no folder no"),
        (["--out", ".", *NONE], "is a folder; name a file"),
    ],
)
def test_mistaken_options_exit_2(arguments: list[str], said: str, invoke: Invoke, tmp_path: Path) -> None:
    fill(tmp_path / "photos", ants=3, bees=3)
    code, answer = invoke("init", "photos", *arguments)
    assert code == 2 and said in answer["error"]


def test_unreadable_images_are_counted_and_named_and_left_out(invoke: Invoke, tmp_path: Path) -> None:
    fill(tmp_path / "photos", ants=6, bees=6)
    (tmp_path / "photos" / "ants" / "0.png").write_text("no image")
    code, answer = invoke("init", "photos", *NONE)
    assert code == 0 and answer["unreadable"] == [str(tmp_path / "photos" / "ants" / "0.png")]
    assert answer["chosen"]["on_bad_sample"] == "skip"
    assert "1 image cannot be read" in (tmp_path / "photos.yaml").read_text()
    assert invoke("check", "photos.yaml")[0] == 0


def test_uneven_classes_are_weighed_and_even_ones_are_not(invoke: Invoke, tmp_path: Path) -> None:
    fill(tmp_path / "uneven", ants=40, bees=4)
    fill(tmp_path / "even", ants=8, bees=4)
    chosen = {name: invoke("init", name, *NONE)[1]["chosen"]["target"]["balance"] for name in ("uneven", "even")}
    assert chosen == {"uneven": "weights", "even": "none"}
    assert "ants has 32, bees 3 (10.7 to 1)" in (tmp_path / "uneven.yaml").read_text()


@pytest.mark.parametrize(("size", "crop"), [((32, 32), 64), ((90, 80), 160), ((130, 300), None)])
def test_small_images_are_enlarged_twice_and_not_to_the_size_of_the_weights(
    size: tuple[int, int], crop: int | None, invoke: Invoke, tmp_path: Path
) -> None:
    fill(tmp_path / "photos", size, ants=3, bees=3)
    chosen = invoke("init", "photos", *NONE)[1]["chosen"]
    assert chosen.get("preprocess") == (None if crop is None else {"resize": crop, "crop": crop})
    assert f"smallest {size[0]}×{size[1]} pixels" in (tmp_path / "photos.yaml").read_text()


def test_more_images_let_more_layers_learn() -> None:
    resnet = ("stem", "layer1", "layer2", "layer3", "layer4")
    assert [firstspec._frozen(n, resnet) for n in (200, 5000, 50_000)] == ["layer2", "layer1", "none"]


@pytest.mark.parametrize(
    ("backbone", "frozen"), [("vit_b_16", "encoder.layers.encoder_layer_5"), ("regnet_y_400mf", "trunk_output.block2")]
)
def test_another_backbone_has_stages_of_its_own(backbone: str, frozen: str, invoke: Invoke, tmp_path: Path) -> None:
    fill(tmp_path / "photos", (300, 300), ants=3, bees=3)
    code, answer = invoke("init", "photos", "--backbone", backbone, *NONE)
    assert (code, answer["chosen"]["frozen"]) == (0, frozen)


def test_a_runs_backbone_and_sizes_are_those_of_its_checkpoint(invoke: Invoke, tmp_path: Path) -> None:
    fill(tmp_path / "photos", ants=4, bees=4)
    sizes = ["--set", "preprocess={resize: 73, crop: 64}", "--set", "epochs=1", "--set", "head={solver: sgd}"]
    assert invoke("init", "photos", "--backbone", "resnet34", *NONE)[0] == 0
    code, run = invoke("extract", "photos.yaml", *sizes)
    assert code == 0, run
    code, answer = invoke("init", "photos", "--out", "next.yaml", "--weights", run["run"])
    assert (code, answer["chosen"]["backbone"]["name"], answer["chosen"]["frozen"]) == (0, "resnet34", "layer2")
    assert "preprocess" not in answer["chosen"]
    text = (tmp_path / "next.yaml").read_text()
    assert "trained at a short side of 73 and a centre of 64 pixels" in " ".join(text.split()).replace(" # ", " ")
    code, plan = invoke("check", "next.yaml")
    assert code == 0, plan
    code, answer = invoke("init", "photos", "--out", "x.yaml", "--weights", run["run"], "--backbone", "resnet18")
    assert code == 2 and "--backbone resnet18: the run of --weights holds a resnet34" in answer["error"]


def test_every_setting_has_a_comment_above_or_beside_it(invoke: Invoke, tmp_path: Path) -> None:
    fill(tmp_path / "photos", ants=3, bees=3)
    invoke("init", "photos", *NONE)
    lines = (tmp_path / "photos.yaml").read_text().splitlines()
    assert lines[0] == "# transferctl extract photos.yaml"
    assert max(map(len, lines)) <= 120
    for before, line in pairwise(lines):
        if line and not line.lstrip().startswith("#"):
            assert "#" in line or before.lstrip().startswith("#"), line


def test_the_commands_that_it_prints_lead_from_the_folder_to_predictions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRANSFERCTL_REPORT", "")
    fill(tmp_path / "my photos", (32, 32), ants=8, bees=8)
    fill(tmp_path / "NEW_IMAGES", (32, 32), unknown=3)
    result = CliRunner().invoke(app, ["init", "my photos", *NONE])
    commands = [line.split(". ", 1)[1] for line in result.stdout.splitlines() if re.match(r"\d\. ", line)]
    verbs = ["check", "extract", "finetune", "eval", "report", "predict"]
    assert [shlex.split(command)[1] for command in commands] == verbs
    for command in commands * 2:  # the second time, two runs match each pattern
        words = shlex.split(command)[1:]
        more = {"finetune": ["--set", "epochs=1"], "report": []}.get(words[0], ["--set", "workers=0"])
        done = CliRunner().invoke(app, [*words, *more])
        assert done.exit_code == 0, done.output
        if words[0] == "report":
            page = Path(done.stdout.splitlines()[-1])
            assert page.read_text(encoding="utf-8").startswith("<!")
    _, second = sorted(tmp_path.glob("runs/*-finetune-*"))
    assert page == second.relative_to(tmp_path) / "report.html"
    assert f"runs/*-finetune-my-photos: {second.relative_to(tmp_path)}, the latest of 2 that match" in done.stderr
    assert [row.split(",")[1] in ("ants", "bees") for row in done.stdout.splitlines()[1:]] == [True] * 3
    assert yaml.safe_load((tmp_path / "my photos.yaml").read_text())["epochs"] == 10


@pytest.mark.real
def test_the_photographs_of_ants_and_bees(real_data: Path, invoke: Invoke, tmp_path: Path) -> None:
    weights = real_data / "resnet18-tinyimagenet.pth"
    code, answer = invoke("init", real_data / "ants-bees", "--weights", weights)
    assert (code, answer["classes"]) == (0, {"train": {"ants": 124, "bees": 121}, "val": {"ants": 70, "bees": 83}})
    text = (tmp_path / "ants-bees.yaml").read_text()
    assert "398 images, 2 classes (ants 194, bees 204)" in text and "smallest 193×130 pixels" in text
    code, run = invoke("extract", "ants-bees.yaml", "--set", "preprocess={resize: 73, crop: 64}")
    assert code == 0 and run["best"]["val"]["accuracy"] > 0.72  # scikit-learn on the same features: 79.7 %
