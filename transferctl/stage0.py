"""Which stage 0 is which: a fingerprint over all that its result depends on, and earlier runs that have it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy
import PIL
import torch

import transferctl
from transferctl import checkpoint, jsontext, lock, scratch
from transferctl.device import Compute
from transferctl.display import Display
from transferctl.errors import CheckpointError, ExitCode
from transferctl.leantorchvision import torchvision
from transferctl.loaders import Audit
from transferctl.model import TransferModel
from transferctl.spec import Spec


def fingerprint(spec: Spec, model: TransferModel, audits: Sequence[Audit], compute: Compute) -> str:
    """SHA-256 over the network with its first weights, preprocessing, settings, seed, arithmetic, versions, and every
    sample's content, label and place in its data set (which keys its augmentation), in order.

    audits: of source train and val, with digests. Threads and processor are in it: they move the last bits, and a
    short training makes points of them.
    """
    assert spec.source is not None
    parts = {
        "description": model.describe(),
        "backbone": model.backbone.fingerprint(),
        "pretrain": spec.pretrain.model_dump(mode="json"),
        "balance": spec.source.balance,
        "seed": spec.seed,
        "arithmetic": [_processor(compute), compute.bf16, torch.get_num_threads()],
        "versions": [module.__version__ for module in (torch, torchvision, numpy, PIL, transferctl)],
    }
    digest = hashlib.sha256(json.dumps(parts, sort_keys=True).encode())
    for audit in audits:
        split = audit.split
        digest.update(f"\0{split.name} {len(split)}\0".encode())
        for column, dtype in ((split.indices, "<i8"), (split.labels, "<i8"), (audit.digests, "u1")):
            for part in scratch.pieces(len(column)):
                digest.update(column[part].astype(dtype).tobytes())
    return digest.hexdigest()


def _processor(compute: Compute) -> str:
    if compute.device.type == "cuda":
        return torch.cuda.get_device_name(compute.device)
    return f"{compute.device.type} {torch.backends.cpu.get_cpu_capability()}"


def find(runs_dir: Path, wanted: str, display: Display) -> Path | None:
    """The newest finished `pretrain` run with this fingerprint whose best checkpoint is whole; others are said."""
    for run in sorted(_finished(runs_dir, wanted), key=lambda path: path.name, reverse=True):
        try:
            checkpoint.load(run)
        except CheckpointError as error:
            display.warn(f"stage 0: {run} is identical, but cannot be used: {error}")
            continue
        return run
    return None


def find_stopped(runs_dir: Path, wanted: str) -> Path | None:
    """The newest run with this fingerprint that was stopped, and that no process goes on with."""
    for path in sorted(runs_dir.glob("*-pretrain-*/environment.json"), reverse=True):
        try:
            is_it = jsontext.read(path).get("stage0") == wanted
            summary = jsontext.read(path.parent / "summary.json")
            stopped = summary["status"] in ("running", "interrupted") or summary["exit_code"] == ExitCode.RESOURCES
        except (OSError, ValueError, TypeError, KeyError, AttributeError):
            continue
        if is_it and stopped and not lock.is_held(path.parent):
            return path.parent
    return None


def _finished(runs_dir: Path, wanted: str) -> Iterator[Path]:
    for path in runs_dir.glob("*/summary.json"):
        try:
            text = jsontext.read_text(path)
            summary = dict(jsontext.loads(text)) if wanted in text else {}
        except (OSError, ValueError, TypeError):
            continue
        if summary | {"verb": "pretrain", "status": "finished", "stage0": wanted} == summary:
            yield path.parent
