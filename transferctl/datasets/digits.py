"""The handwritten digits that scikit-learn carries: 1,797 grey images of 8×8 pixels, no download.

Alpaydin & Kaynak, "Optical Recognition of Handwritten Digits", UCI 1998 (the test part). The samples stand
in the order of their writers, so the splits are ranges: other people wrote val and test than train.
"""

from __future__ import annotations

import hashlib
from typing import Literal

import numpy as np
from PIL import Image
from pydantic import Field

from transferctl.settings import DataSettings

# first and last sample, in the stored order
SPLITS = {"train": (0, 898), "val": (898, 1347), "test": (1347, 1797)}


class Settings(DataSettings):
    dataset: Literal["digits"] = Field(description="The embedded handwritten digits.")
    split: Literal["train", "val", "test", "all"] | None = Field(
        None, description="First half, third quarter, last quarter, or all; default: by where this stands."
    )


def load(settings: Settings, role: str, seed: int) -> Digits:
    from sklearn.datasets import load_digits

    data = load_digits()
    first, last = SPLITS.get(settings.split or role, (0, len(data.target)))
    return Digits(data.images[first:last], data.target[first:last], first)


class Digits:
    """Images scaled from 0–16 to 0–255."""

    def __init__(self, images: np.ndarray, labels: np.ndarray, first: int):
        self._pixels = np.rint(images * (255 / 16)).astype(np.uint8)
        self._first = first
        self.labels = labels.astype(np.int32)
        self.class_names = tuple(str(digit) for digit in range(10))
        self.notes: tuple[str, ...] = ()
        self.reads_files = False

    def __len__(self) -> int:
        return len(self.labels)

    def name(self, index: int) -> str:
        return f"digits/{self._first + index}"

    def read(self, index: int, at_least: int = 0) -> Image.Image:
        return Image.fromarray(self._pixels[index], "L").convert("RGB")

    def read_hashed(self, index: int, at_least: int = 0) -> tuple[Image.Image, bytes]:
        return self.read(index), bytes.fromhex(self.content_hash(index))

    def content_hash(self, index: int) -> str:
        return hashlib.sha256(self._pixels[index].tobytes()).hexdigest()
