"""On real photographs with really pretrained weights, against an independent linear probe."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torchvision import models
from torchvision.transforms import v2
from typer.testing import CliRunner

from transferctl.cli import app

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


def test_extract_is_within_a_point_of_scikit_learns_logistic_regression(tmp_path: Path, real_data: Path) -> None:
    runner = CliRunner()
    result = runner.invoke(app, ["extract", str(_spec(tmp_path, real_data)), "--runs-dir", str(tmp_path), "--json"])
    assert result.exit_code == 0, result.output
    ours = json.loads(result.stdout)["test"]["accuracy"]
    train, train_labels = _independent_features(real_data, "train")
    test, test_labels = _independent_features(real_data, "val")
    best = max(
        make_pipeline(StandardScaler(), LogisticRegression(C=c, max_iter=2000))
        .fit(train, train_labels)
        .score(test, test_labels)
        for c in (0.001, 0.01, 0.1, 1.0)
    )
    assert ours >= best - 0.01
