"""What bad input is made of: one sound spec, data, weights and run, each of which an entry of the catalogue spoils."""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

ARCHITECTURE = "squeezenet1_1"  # the smallest, 5 MB
SPEC = f"backbone: {{name: {ARCHITECTURE}, weights: none}}\npreprocess: {{resize: 32, crop: 32}}\nworkers: 0\ndevice: cpu\n"
MEND = "mend or remove them, or write on_bad_sample: skip"
DIGITS = SPEC + "target: {train: {dataset: digits, classes: ['0', '1'], per_class: 4}, val: 0.5}\n"


def checking(folder: Path, text: str | bytes, *flags: str) -> list[str]:
    """The command that checks this spec."""
    (folder / "spec.yaml").write_bytes(text if isinstance(text, bytes) else text.encode())
    return ["check", str(folder / "spec.yaml"), *flags]


def checking_data(folder: Path, target: str = "{train: data, val: 0.5}") -> list[str]:
    """The command that checks data, by default what lies in `data`."""
    return checking(folder, f"{SPEC}target: {target}\n")


def checking_weights(folder: Path, weights: str) -> list[str]:
    spec = DIGITS.replace("weights: none", f"weights: {weights}")
    return checking(folder, spec)


def images(root: Path, *classes: str, count: int = 4) -> Path:
    """A folder of small images for each class, no two alike."""
    import numpy as np
    from PIL import Image

    for name in classes:
        (root / name).mkdir(parents=True)
        for i in range(count):
            noise = np.random.default_rng([i, *name.encode("utf-8", "surrogateescape")]).integers(0, 255, (8, 8, 3))
            Image.fromarray(noise.astype(np.uint8)).save(root / name / f"{i}.png")
    return root


def state() -> dict[str, Any]:
    """Random weights of ARCHITECTURE with a head of five outputs."""
    from transferctl.backbones import torchvision

    found: dict[str, Any] = dict(torchvision._network(ARCHITECTURE, 5, 32).state_dict())
    return found


def sound_run(folder: Path) -> Path:
    """A run as `extract` leaves it, of two digits; nothing was trained."""
    return Path(shutil.copytree(template(), folder / "run", symlinks=True))


@cache
def _kept() -> tempfile.TemporaryDirectory[str]:
    """Until this process ends."""
    return tempfile.TemporaryDirectory(prefix="transferctl-sound-run-")


@cache
def template() -> Path:
    from transferctl import checkpoint, yamlfile
    from transferctl.backbones import torchvision
    from transferctl.model import TransferModel, state_for_checkpoint
    from transferctl.preprocess import Preprocessing

    run = Path(_kept().name)
    (run / "given.yaml").write_text(DIGITS)
    (run / "spec.yaml").write_text(yamlfile.dump(yamlfile.load(run / "given.yaml").spec))
    backbone, _ = torchvision.build(ARCHITECTURE, image_size=32)
    model = TransferModel("torchvision", backbone, Preprocessing(32, 32), "classification")
    model.add_new_head("target", ["0", "1"], hidden=(), dropout=0.0, seed=0)
    manifest = model.describe() | {"epoch": 1, "val": {"accuracy": 0.5, "loss": 0.7}}
    files = {checkpoint.WEIGHTS_FILE: state_for_checkpoint(model)}
    checkpoint.save(run, checkpoint.name_of(1), files, manifest | {"step": 1}, ("best", "last"))
    (run / "summary.json").write_text(json.dumps({"verb": "extract", "status": "finished"}))
    return run


def scoring(run: Path, *flags: str) -> list[str]:
    """The command that evaluates a run."""
    return ["eval", str(run), "--split", "train", *flags]


def with_manifest(folder: Path, **changes: Any) -> list[str]:
    """The command that evaluates a run whose checkpoint's manifest says this instead."""
    run = sound_run(folder)
    path = run / "checkpoints" / "best" / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return scoring(run)


def with_weights(folder: Path, content: bytes) -> list[str]:
    """The command that evaluates a run whose weights are these bytes, with the SHA-256 that they have."""
    run = sound_run(folder)
    best = run / "checkpoints" / "best"
    (best / "model.safetensors").write_bytes(content)
    manifest = json.loads((best / "manifest.json").read_text())
    manifest["files"]["model.safetensors"] = {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
    (best / "manifest.json").write_text(json.dumps(manifest))
    return scoring(run)


def safetensors(header: Mapping[str, Any] | bytes, data: bytes = b"", length: int | None = None) -> bytes:
    """A file with this header, whose length is said to be `length`."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data
