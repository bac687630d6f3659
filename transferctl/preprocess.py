"""From an upright RGB image to the network's input, and the random changes of training.

Evaluation: resize the short side, centre-crop. Training: random resized crop, mirror, RandAugment. Both stay uint8;
the model scales to 0–1 and normalises on its device (`normalise`), which is the same arithmetic as
torchvision's presets at a quarter of the bytes.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image
    from torch import Tensor

    from transferctl.spec import PreprocessSettings
    from transferctl.trainsettings import AugmentSettings

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

MAGNITUDES = 31  # of RandAugment: 0 to 30, as its paper has them
LONGEST_RESIZED_WHOLE = 16  # long side over short; beyond any panorama, and still a small image once resized


@dataclass(frozen=True)
class Preprocessing:
    """resize: short side, pixels; crop: side of the centre crop, pixels; mean, std: of values in 0–1."""

    resize: int
    crop: int
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    interpolation: str = "bilinear"

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Preprocessing:
        return cls(**{**values, "mean": tuple(values["mean"]), "std": tuple(values["std"])})

    def __str__(self) -> str:
        return (
            f"resize short side to {self.resize}, centre crop {self.crop}, {self.interpolation}; "
            f"mean {_numbers(self.mean)}, std {_numbers(self.std)}"
        )


def resolve(asked: PreprocessSettings, default: Preprocessing) -> Preprocessing:
    """The spec's values over the weights' own; with one size given, the other keeps the weights' ratio."""
    ratio = default.resize / default.crop
    crop = asked.crop or (round(asked.resize / ratio) if asked.resize else default.crop)
    resize = asked.resize or (round(crop * ratio) if asked.crop else default.resize)
    return replace(
        default,
        resize=max(resize, crop),
        crop=crop,
        mean=asked.mean or default.mean,
        std=asked.std or default.std,
        interpolation=asked.interpolation or default.interpolation,
    )


def evaluation_image(image: Image, preprocessing: Preprocessing) -> Tensor:
    """uint8 [3, crop, crop], the same for the same image always."""
    from torchvision.transforms.v2 import functional as F

    if max(image.size) > LONGEST_RESIZED_WHOLE * min(image.size):
        resized = _middle_resized(image, preprocessing)
    else:
        resized = F.resize(image, [preprocessing.resize], _mode(preprocessing), antialias=True)
    tensor: Tensor = F.pil_to_tensor(F.center_crop(resized, [preprocessing.crop, preprocessing.crop]))
    return tensor


def _middle_resized(image: Image, preprocessing: Preprocessing) -> Image:
    """The resized image, of whose long side only what the centre crop keeps is ever computed.

    A PNG of 1×50,000 pixels has a few hundred bytes and, resized whole, many gigabytes.
    The grid and the filter are those of resizing whole. PIL rounds to 8 bits between its two passes, whose
    order it chooses by the image's shape, so a value may come out one of 255 levels away.
    """
    from PIL.Image import Resampling

    upright = image.height >= image.width
    short, long = min(image.size), max(image.size)
    whole = int(preprocessing.resize * long / short)  # torchvision's rounding
    kept = min(preprocessing.crop, whole)
    first = round((whole - kept) / 2)
    scale = long / whole  # source pixels to a resized one
    start, end = first * scale, (first + kept) * scale
    margin = 1 + math.ceil(2 * max(scale, 1))  # what the bicubic filter, the wider one, reaches
    low, high = max(0, math.floor(start) - margin), min(long, math.ceil(end) + margin)
    resample = Resampling[preprocessing.interpolation.upper()]
    if upright:
        middle = image.crop((0, low, short, high))
        return middle.resize((preprocessing.resize, kept), resample, (0, start - low, short, end - low))
    middle = image.crop((low, 0, high, short))
    return middle.resize((kept, preprocessing.resize), resample, (start - low, 0, end - low, short))


def training_image(
    image: Image, preprocessing: Preprocessing, augment: AugmentSettings, key: tuple[int, ...]
) -> Tensor:
    """uint8 [3, crop, crop]; the random choices depend on `key` (seed, epoch, sample) alone. In the order of
    torchvision's own training recipes, which also turn and shear with the interpolation of resizing."""
    from torchvision.transforms import v2

    mode, randaugment = _mode(preprocessing), augment.randaugment
    transform = v2.Compose(
        [
            v2.RandomResizedCrop(preprocessing.crop, augment.crop_scale, interpolation=mode, antialias=True),
            v2.RandomHorizontalFlip(0.5 if augment.flip else 0.0),
            *([v2.RandAugment(randaugment.operations, randaugment.magnitude, MAGNITUDES, mode)] if randaugment else []),
            v2.PILToTensor(),
        ]
    )
    with keyed_randomness(*key):
        return transform(image)  # type: ignore[no-any-return]


def normalise(images: Tensor, preprocessing: Preprocessing) -> Tensor:
    """uint8 [N, 3, H, W] -> float32 (x/255 − mean)/std, on the images' device."""
    import torch

    mean = torch.tensor(preprocessing.mean, device=images.device).view(1, 3, 1, 1)
    std = torch.tensor(preprocessing.std, device=images.device).view(1, 3, 1, 1)
    return (images.float() / 255 - mean) / std


@contextmanager
def keyed_randomness(*key: int | str, device: torch.device | None = None) -> Iterator[None]:
    """torch's CPU generator seeded by `key` inside, as it was outside: torchvision's transforms, torch's
    initialisers and dropout draw from that generator and take no other. `device`: a GPU to seed as well."""
    import torch

    before = torch.get_rng_state()
    digest = hashlib.sha256("\0".join(map(str, key)).encode()).digest()
    seed = int.from_bytes(digest[:8], "little") >> 1
    torch.default_generator.manual_seed(seed)
    if device is not None and device.type == "cuda":
        torch.cuda.manual_seed_all(seed)
    if device is not None and device.type == "mps":
        torch.mps.manual_seed(seed)
    try:
        yield
    finally:
        torch.set_rng_state(before)


def _mode(preprocessing: Preprocessing) -> Any:
    from torchvision.transforms import InterpolationMode

    return InterpolationMode(preprocessing.interpolation)


def _numbers(values: tuple[float, ...]) -> str:
    return "/".join(f"{value:.4g}" for value in values)
