"""On real photographs with really pretrained weights, against an independent linear probe."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torchvision import models
from torchvision.transforms import v2

pytestmark = pytest.mark.real


def _spec(tmp_path: Path, data: Path) -> Path:
    path = tmp_path / "ants-bees.yaml"
    path.write_text(f"""
backbone:
  name: resnet18
  weights: {{path: {data}/resnet18-tinyimagenet.pth, classes: {data}/tiny-imagenet-classes.json}}
preprocess: {{resize: 146, crop: 128}}
target:
  train: {{path: {data}/ants-bees/train, exclude: [imageNotFound.gif]}}
  test: {data}/ants-bees/val
epochs: 100
""")
    return path


def _independent_features(data: Path, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Plain torchvision and PIL; nothing of transferctl."""
    from PIL import Image

    net = models.resnet18(num_classes=200)
    net.load_state_dict(torch.load(data / "resnet18-tinyimagenet.pth", weights_only=True))
    net.fc = torch.nn.Identity()
    net.eval()
    transform = v2.Compose([
        v2.Resize(146), v2.CenterCrop(128), v2.PILToTensor(), v2.ToDtype(torch.float32, scale=True),
        v2.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    ])  # fmt: skip
    rows, labels = [], []
    for label, name in enumerate(("ants", "bees")):
        for path in sorted((data / "ants-bees" / split / name).glob("*.jpg")):
            with torch.inference_mode():
                rows.append(net(transform(Image.open(path).convert("RGB"))[None])[0].numpy())
            labels.append(label)
    return np.array(rows), np.array(labels)


@pytest.fixture(scope="module")
def extracted(call: Any, tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path, int], dict[str, Any]]:
    """extracted(data, seed): the summary of an extract run, made once a seed."""
    folder = tmp_path_factory.mktemp("extracted")

    @cache
    def run(data: Path, seed: int) -> dict[str, Any]:
        return call("extract", _spec(folder, data), "--set", f"seed={seed}", "--runs-dir", folder)

    return run


SEEDS = (0, 1, 2)


def test_extract_is_within_a_point_of_scikit_learns_logistic_regression(extracted: Any, real_data: Path) -> None:
    """The best of four regularisations on the very test images: an upper estimate of a linear probe."""
    train, train_labels = _independent_features(real_data, "train")
    test, test_labels = _independent_features(real_data, "val")
    best = max(
        make_pipeline(StandardScaler(), LogisticRegression(C=c, max_iter=2000))
        .fit(train, train_labels)
        .score(test, test_labels)
        for c in (0.001, 0.01, 0.1, 1.0)
    )
    ours = [extracted(real_data, seed)["test"]["accuracy"] for seed in SEEDS]
    assert np.mean(ours) >= best - 0.01, (ours, best)


def test_fine_tuning_does_not_end_two_points_below_extraction(
    call: Any, extracted: Any, tmp_path: Path, real_data: Path
) -> None:
    """Selected on a held-out part of train, scored on the 153 photographs, three seeds."""
    before, after = [], []
    settings = ("--set", "frozen=layer3", "--set", "epochs=3", "--set", "optimizer.lr=0.001", "--runs-dir", tmp_path)
    for seed in SEEDS:
        start = extracted(real_data, seed)
        spec = _spec(tmp_path, real_data)
        tuned = call("finetune", spec, "--from", start["run"], "--set", f"seed={seed}", *settings)
        before.append(start["test"]["accuracy"])
        after.append(tuned["test"]["accuracy"])
    assert np.mean(after) >= np.mean(before) - 0.02, (before, after)
    assert before != after


def test_folders_renamed_into_another_order_score_the_same_through_a_manifest(
    call: Any, extracted: Any, tmp_path: Path, real_data: Path
) -> None:
    run = extracted(real_data, 0)
    rows = ["path,label"]
    for name, other in (("ants", "z-second"), ("bees", "a-first")):
        shutil.copytree(real_data / "ants-bees" / "val" / name, tmp_path / "val" / other)
        rows += [f"val/{other}/{path.name},{name}" for path in (tmp_path / "val" / other).iterdir()]
    (tmp_path / "val.csv").write_text("\n".join(rows))
    scored = call("eval", run["run"], "--data", tmp_path / "val.csv", "--runs-dir", tmp_path)
    assert scored["n"] == 153
    assert (scored["accuracy"], scored["per_class"]) == (run["test"]["accuracy"], run["test"]["per_class"])
    assert scored["loss"] == pytest.approx(run["test"]["loss"], abs=1e-6)


def test_check_finds_the_placeholder_among_the_ants_only_where_it_is_not_excluded(
    call: Any, tmp_path: Path, real_data: Path
) -> None:
    spec = _spec(tmp_path, real_data)
    excluded = call("check", spec)
    assert any("imageNotFound.gif" in note and "left out" in note for note in excluded["notes"])
    train = f"target.train={real_data}/ants-bees/train"
    assert any("1 GIF: the first frame is used" in note for note in call("check", spec, "--set", train)["notes"])


def test_rehearsal_keeps_of_the_source_what_plain_fine_tuning_forgets(
    call: Any, tmp_path: Path, real_data: Path
) -> None:
    """Tiny ImageNet's 200 classes, 2,000 validation images, while 10 classes of CIFAR-10 are learnt for five epochs."""
    (tmp_path / "cifar10.yaml").write_text(f"""
backbone:
  name: resnet18
  weights: {{path: {real_data}/resnet18-tinyimagenet.pth, classes: {real_data}/tiny-imagenet-classes.json}}
preprocess: {{resize: 64, crop: 64}}
target: {{train: {real_data}/cifar10-mini/train, val: 0.2}}
source: {{train: {real_data}/tiny-imagenet-mini/train, val: {real_data}/tiny-imagenet-mini/val, label_smoothing: 0.1}}
epochs: 5
keep: last
""")
    changes = {}
    for rehearsal in ("true", "false"):
        settings = ("--set", f"source.rehearsal={rehearsal}", "--runs-dir", tmp_path / "runs")
        answer = call("finetune", tmp_path / "cifar10.yaml", *settings)
        assert answer["source"]["before"]["accuracy"] == pytest.approx(0.473, abs=0.003)  # what its weights.json says
        changes[rehearsal] = answer["source"]
    assert changes["false"]["accuracy_change_high"] < 0
    assert changes["true"]["accuracy_change"] > changes["false"]["accuracy_change"] + 0.03
