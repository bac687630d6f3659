"""Shared material: tiny image folders, a tiny spec, the command line, the real photographs where they are at hand."""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

if "PYTEST_XDIST_WORKER" in os.environ:  # the test processes share the cores: threads of each would fight
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from transferctl import device
from transferctl.cli import app

TINY_SPEC = """
name: tiny
backbone: {name: resnet18, weights: none}
preprocess: {resize: 36, crop: 32}
target: {train: train, val: val}
epochs: 3
batch_size: 8
workers: 0
optimizer: {lr: 0.05}
"""


@pytest.fixture(scope="session", autouse=True)
def _caches(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """No test touches the user's own cache, not even one whose fixture outlives the test."""
    folder = tmp_path_factory.mktemp("caches")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRANSFERCTL_CACHE", str(folder / "shared"))
        yield folder


@pytest.fixture(scope="session", autouse=True)
def _fp32_everywhere() -> Iterator[None]:
    """`precision: auto` is fp32, so that what tests expect does not depend on the processor they run on."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(device, "_computes_in_bf16", lambda device: False)
        yield


@pytest.fixture(scope="session", autouse=True)
def _no_reports() -> Iterator[None]:
    """Runs end without their page, which takes longer than the runs of most tests; those of the page ask for it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRANSFERCTL_REPORT", "none")
        yield


@pytest.fixture(autouse=True)
def cache_folder(_caches: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The cache of this test alone; it is not there until something is kept in it."""
    folder = _caches / uuid.uuid4().hex
    monkeypatch.setenv("TRANSFERCTL_CACHE", str(folder))
    return folder


@pytest.fixture
def real_data() -> Path:
    """The folder of real photographs and weights; its tests skip where it is absent."""
    folder = os.environ.get("TRANSFERCTL_REAL_DATA")
    if not folder or not Path(folder).is_dir():
        pytest.skip("TRANSFERCTL_REAL_DATA does not name the folder of real photographs")
    return Path(folder)


@pytest.fixture
def image_folder(tmp_path: Path) -> Callable[..., Path]:
    """image_folder("train", ants=8, bees=8): noise around a colour of the class's own, so it can be learnt."""

    def make(name: str, **counts: int) -> Path:
        root = tmp_path / name
        for class_name, count in counts.items():
            colour = np.array([sum(class_name.encode()) * k % 200 for k in (1, 3, 7)])
            (root / class_name).mkdir(parents=True)
            for i in range(count):
                noise = np.random.default_rng([i, sum(name.encode())]).integers(0, 56, (40, 48, 3))
                Image.fromarray((colour + noise).astype(np.uint8)).save(root / class_name / f"{i}.png")
        return root

    return make


@pytest.fixture
def spec(tmp_path: Path, image_folder: Callable[..., Path]) -> Path:
    """A spec that trains in a second, with its folders `train` and `val` beside it."""
    image_folder("train", ants=12, bees=13, wasps=11)
    image_folder("val", ants=6, bees=5, wasps=4)
    (tmp_path / "tiny.yaml").write_text(TINY_SPEC)
    return tmp_path / "tiny.yaml"


@pytest.fixture(scope="session")
def call() -> Callable[..., dict[str, Any]]:
    """call("extract", spec): the one JSON object of a command that succeeds."""

    def run(*arguments: object) -> dict[str, Any]:
        result = CliRunner().invoke(app, [*map(str, arguments), "--json"])
        assert result.exit_code == 0, result.output
        answer: dict[str, Any] = json.loads(result.stdout)
        return answer

    return run


@pytest.fixture
def invoke() -> Callable[..., tuple[int, dict[str, Any]]]:
    """invoke("extract", spec): exit code and the one JSON object on stdout."""

    def run(*arguments: object) -> tuple[int, dict[str, Any]]:
        result = CliRunner().invoke(app, [*map(str, arguments), "--json"])
        assert "Traceback" not in result.output
        return result.exit_code, json.loads(result.stdout)

    return run
