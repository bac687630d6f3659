"""What is put under faults: short runs of each verb that trains, on tiny images; and what of a run is compared."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from torchvision import models

LINKS = ("best", "last", "start")
COMPARED = ("metrics.jsonl", "predictions.csv", "classes.json", "spec.yaml")
VOLATILE = {"run", "elapsed_s"}  # of the summary: where a run is, and how long it took
UNCOMPARED_FILES = {"log.txt", "lock"}  # whose presence or content tells how a run came about
GREEK = ("μέλισσες", "μυρμήγκια")

SPEC = """
name: {name}
device: cpu
precision: fp32
backbone: {{name: shufflenet_v2_x0_5, weights: {{path: start.safetensors, classes: classes.txt}}}}
preprocess: {{resize: 32, crop: 32}}
target: {{train: {target}, val: {target}-val}}
{source}
epochs: {epochs}
batch_size: 4
workers: {workers}
optimizer: {{lr: 0.05}}
checkpoint: {{every: 2 steps}}
"""
JOINT = """
source: {train: source, val: source-val, batch_size: 4}
lambda: 1.0
penalties: {l2sp: 0.01}
ema: 0.5
early_stopping: 2
pretrain: {epochs: 2, batch_size: 4, optimizer: {lr: 0.05}}
"""


@dataclass(frozen=True)
class Subject:
    """A command to put under faults. spec: the YAML file; what it trains on lies beside it."""

    name: str
    verb: str
    spec: Path

    def arguments(self, root: Path) -> list[object]:
        return [self.verb, self.spec, "--runs-dir", root / "runs", "--json"]


def subjects(folder: Path) -> dict[str, Subject]:
    """Those of a second, and `long`, of some seconds, with workers. Makes images, weights and specs in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, classes, per_class in (
        ("target", ("ants", "bees"), 8), ("target-val", ("ants", "bees"), 4), ("source", ("cats", "dogs"), 8),
        ("source-val", ("cats", "dogs"), 4), ("large", ("ants", "bees"), 48), ("large-val", ("ants", "bees"), 8),
        ("greek", GREEK, 4), ("greek-val", GREEK, 2),
    ):  # fmt: skip
        _images(folder / name, classes, per_class)
    torch.manual_seed(0)
    save_file(models.shufflenet_v2_x0_5(num_classes=2).state_dict(), folder / "start.safetensors")
    (folder / "classes.txt").write_text("cats\ndogs\n")
    plain = {"target": "target", "source": "", "epochs": 3, "workers": 0}
    made = {
        "finetune": ("finetune", plain | {"source": JOINT}),
        "extract": ("extract", plain | {"epochs": 5}),
        "pretrain": ("pretrain", plain | {"source": JOINT}),
        "long": ("finetune", {"target": "large", "source": JOINT, "epochs": 6, "workers": 2}),
        "greek": ("finetune", plain | {"target": "greek", "source": ""}),
    }
    for name, (_, settings) in made.items():
        (folder / f"{name}.yaml").write_text(SPEC.format(name=name, **settings), encoding="utf-8")
    return {name: Subject(name, verb, folder / f"{name}.yaml") for name, (verb, _) in made.items()}


def _images(folder: Path, classes: tuple[str, ...], per_class: int) -> None:
    """Noise around a colour of the class's own."""
    for number, name in enumerate(classes):
        (folder / name).mkdir(parents=True)
        for i in range(per_class):
            noise = np.random.default_rng([number, i, per_class]).integers(0, 120, (32, 32, 3))
            colour = np.array([60, 100, 20]) * (number + 1)
            Image.fromarray((colour + noise).clip(0, 255).astype(np.uint8)).save(folder / name / f"{i}.png")


def fingerprint(run: Path) -> dict[str, str]:
    """SHA-256 of all that must not depend on how often a run was stopped; `files`: what lies in its folder."""
    hashes = {name: _sha256((run / name).read_bytes()) for name in COMPARED if (run / name).exists()}
    for link in LINKS:
        weights = run / "checkpoints" / link / "model.safetensors"
        if weights.exists():
            hashes[f"{link}/model.safetensors"] = _sha256(weights.read_bytes())
    hashes["summary.json"] = _sha256(json.dumps(_lasting(json.loads((run / "summary.json").read_text()))).encode())
    hashes["files"] = "\n".join(sorted(_files(run)))
    return hashes


def differences(found: dict[str, str], expected: dict[str, str]) -> list[str]:
    """Names of what differs."""
    return sorted(name for name in found.keys() | expected.keys() if found.get(name) != expected.get(name))


def broken_checkpoints(run: Path) -> list[str]:
    """What a link points at, and is not whole: not there, or not what its manifest says."""
    broken = []
    for link in (run / "checkpoints" / name for name in LINKS):
        if not link.is_symlink():
            continue
        try:
            files = json.loads((link / "manifest.json").read_text())["files"]
            broken += [f"{link.name}/{n}" for n, f in files.items() if _sha256((link / n).read_bytes()) != f["sha256"]]
        except (OSError, ValueError, KeyError) as error:
            broken.append(f"{link.name}: {error!r}")
    return broken


def _lasting(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _lasting(inner) for key, inner in value.items() if key not in VOLATILE}
    return [_lasting(inner) for inner in value] if isinstance(value, list) else value


def _files(run: Path) -> Iterator[str]:
    for path in run.rglob("*"):
        if path.name not in UNCOMPARED_FILES:
            yield f"{path.relative_to(run)}{f' -> {path.readlink()}' if path.is_symlink() else ''}"


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
