"""Shared material: tiny image folders, tiny specs, the real photographs where they are at hand."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image


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
