"""The jobs of speed.py, and how transferctl and the others are told to do them: the same files, weights and settings."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

BATCH_SIZE = 32
SCRIPT = Path(__file__).parent / "contenders.py"


@dataclass(frozen=True)
class Job:
    """part: training images that a training is measured on; a fifth as many are validated on."""

    name: str
    verb: str
    frozen: str
    augment: bool
    lr: float
    part: int
    bar: str


JOBS = (
    Job("extract", "extract", "all", False, 0.01, 640, "20× (a), 2.2× (c), 0.95× (b)"),
    Job("layer3", "finetune", "layer3", False, 0.02, 640, "4× (a)"),
    Job("layer3-augmented", "finetune", "layer3", True, 0.02, 640, "2× (a)"),
    Job("full", "finetune", "none", True, 0.02, 384, "1.9× (a)"),
)
CONTENDERS = {
    "plain": "(a) tutorial's loop, fp32",
    "tuned": "(b) channels_last, bf16",
    "one-pass": "(b) one pass, channels_last, bf16",
    "sklearn": "(c) one pass, fp32 + scikit-learn",
}


@dataclass(frozen=True)
class Sizes:
    """n: training images; a fifth as many are validated on. divisor: how many times smaller parts are."""

    arch: str
    weights: Path
    resize: int
    crop: int
    n: int
    epochs: int
    divisor: int = 1


def contenders_of(job: Job) -> list[str]:
    return [name for name in CONTENDERS if job.frozen == "all" or name in ("plain", "tuned")]


def spec_of(job: Job, sizes: Sizes, train: Path, val: Path, epochs: int, lr: float, seed: int) -> dict[str, Any]:
    spec: dict[str, Any] = {
        "name": job.name,
        "seed": seed,
        "backbone": {"name": sizes.arch, "weights": f"{sizes.weights}"},
        "preprocess": {"resize": sizes.resize, "crop": sizes.crop},
        "target": {"train": f"{train}", "val": f"{val}"},
        "epochs": epochs,
        "batch_size": BATCH_SIZE,
        "optimizer": {"name": "sgd", "lr": lr, "momentum": 0.9},
        "schedule": "cosine",
    }
    if job.verb == "finetune":
        spec |= {"frozen": job.frozen, "batchnorm": {"thawed": "train", "frozen": "frozen"}}
        spec |= {"augment": {"crop_scale": [0.35, 1.0], "flip": True} if job.augment else "none"}
    return spec


def command_of(contender: str, job: Job, sizes: Sizes, train: Path, val: Path, epochs: int, seed: int) -> list[object]:
    command: list[object] = [sys.executable, SCRIPT, contender, "--train", train, "--val", val]
    command += ["--weights", sizes.weights, "--arch", sizes.arch, "--frozen", job.frozen, "--epochs", epochs]
    command += ["--resize", sizes.resize, "--crop", sizes.crop, "--batch-size", BATCH_SIZE, "--lr", job.lr]
    return [*command, "--seed", seed, *(["--augment"] if job.augment else [])]
