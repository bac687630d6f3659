"""torchvision's own image classification data sets, by class name: CIFAR10, Flowers102, OxfordIIITPet …"""

from __future__ import annotations

import hashlib
import inspect
from typing import Any, Literal

import numpy as np
from PIL import Image
from pydantic import Field

from transferctl.contracts import BadSample
from transferctl.errors import DataError, SpecError
from transferctl.images import MAX_PIXELS, shown
from transferctl.settings import DataSettings, InputPath, Text


class Settings(DataSettings):
    dataset: Literal["torchvision"] = Field(description="A data set of torchvision.")
    name: Text = Field(description="Its class: CIFAR10, Flowers102, OxfordIIITPet, Food101 …")
    root: InputPath = Field(description="The folder that torchvision keeps it in.")
    split: Text | None = Field(
        None, description="torchvision's own name of the split; default: train, val or test, by where this stands."
    )
    download: bool = Field(False, description="Let torchvision fetch it (it checks the hashes).")


def load(settings: Settings, role: str, seed: int) -> TorchvisionData:
    """Open the data set. Raises SpecError for a name or split that torchvision lacks, DataError for its files."""
    from torchvision import datasets

    kinds = {name: kind for name, kind in vars(datasets).items() if _is_dataset(kind)}
    if settings.name not in kinds:
        import difflib

        near = difflib.get_close_matches(settings.name, kinds, 1, 0.5)
        hint = f"; did you mean {near[0]}?" if near else f"; known: {', '.join(sorted(kinds))}"
        raise SpecError.at("target", f"torchvision has no data set {settings.name!r}{hint}")
    arguments = _arguments(kinds[settings.name], settings, role)
    try:
        return TorchvisionData(kinds[settings.name](**arguments), settings)
    except (RuntimeError, OSError, ValueError, TypeError) as error:
        advice = "" if settings.download else f"; put its files into {settings.root}, or write download: true"
        raise DataError(f"{settings.root}: torchvision's {settings.name}: {_one_line(error)}{advice}") from None


def _is_dataset(kind: Any) -> bool:
    from torchvision.datasets import VisionDataset

    return inspect.isclass(kind) and issubclass(kind, VisionDataset) and kind is not VisionDataset


def _arguments(kind: Any, settings: Settings, role: str) -> dict[str, Any]:
    """torchvision names splits in three ways: train=True, split="test", or not at all."""
    parameters = inspect.signature(kind).parameters
    arguments: dict[str, Any] = {}
    if "root" in parameters:
        arguments["root"] = str(settings.root)
    if "download" in parameters:
        arguments["download"] = settings.download
    split = settings.split or role
    if "train" in parameters:
        if split not in ("train", "test", "val"):
            raise SpecError.at("target", f"torchvision's {settings.name} has the splits train and test, not {split!r}")
        arguments["train"] = split == "train"
    elif "split" in parameters:
        arguments["split"] = split
    return arguments


class TorchvisionData:
    """Labels come from the data set's own list where it has one, so that listing decodes nothing."""

    def __init__(self, data: Any, settings: Settings):
        self._data = data
        self._label = f"{settings.name}/{settings.split or ''}".rstrip("/")
        targets = _targets(data)
        names = _class_names(data, targets)
        used = sorted({names[target] for target in targets})
        positions = {name: i for i, name in enumerate(used)}
        self.labels = np.array([positions[names[target]] for target in targets], dtype=np.int32)
        self.class_names = tuple(used)
        duplicates = len(set(names.values())) < len(names)
        self.notes: tuple[str, ...] = ("classes of equal name are merged",) if duplicates else ()

    def __len__(self) -> int:
        return len(self.labels)

    def name(self, index: int) -> str:
        return f"{self._label}/{index}"

    def read(self, index: int) -> Image.Image:
        try:
            image = self._data[index][0]
        except Exception as error:  # torchvision's readers raise whatever their decoders do
            raise BadSample(f"cannot be read: {_one_line(error)}") from None
        if not isinstance(image, Image.Image):
            raise BadSample(f"is {type(image).__name__}, not an image")
        if image.width * image.height > MAX_PIXELS:
            raise BadSample(f"is {image.width}×{image.height} pixels, more than the {MAX_PIXELS:,} that are read")
        return image.convert("RGB")

    def content_hash(self, index: int) -> str:
        image = self.read(index)
        return hashlib.sha256(repr(image.size).encode() + image.tobytes()).hexdigest()


def _targets(data: Any) -> list[Any]:
    for attribute in ("targets", "labels", "_labels", "y"):
        values = getattr(data, attribute, None)
        if values is not None and len(values) == len(data):
            return [value.item() if hasattr(value, "item") else value for value in values]
    samples = getattr(data, "_samples", None) or getattr(data, "samples", None)
    if samples is not None and len(samples) == len(data):
        return [sample[1] for sample in samples]
    return [int(data[i][1]) for i in range(len(data))]


def _class_names(data: Any, targets: list[Any]) -> dict[Any, str]:
    names = getattr(data, "classes", None) or getattr(data, "categories", None)
    if names is not None and all(isinstance(target, int) and 0 <= target < len(names) for target in targets):
        return {i: name if isinstance(name, str) else "/".join(name) for i, name in enumerate(names)}
    kinds = {type(target) for target in targets}
    if not kinds <= {int, str}:
        raise ValueError(f"is not for classification (labels of type {shown(sorted(k.__name__ for k in kinds))})")
    return {target: str(target) for target in targets}


def _one_line(error: object) -> str:
    return " ".join(str(error).split())[:300]
