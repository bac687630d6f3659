"""From an upright RGB image to the network's input, and the random changes of training.

Evaluation: resize the short side, centre-crop. Training: random resized crop, mirror, RandAugment. Both stay uint8;
the model scales to 0–1 and normalises on its device (`normalise`), which is the same arithmetic as
torchvision's presets at a quarter of the bytes.
"""

from __future__ import annotations

import hashlib
import math
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image, Resampling
    from torch import Tensor

    from transferctl.spec import PreprocessSettings
    from transferctl.trainsettings import AugmentSettings, RandAugmentSettings

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

MAGNITUDES = 31  # of RandAugment: 0 to 30, as its paper has them
CROP_SHAPES = (3 / 4, 4 / 3)  # width over height of random crops, the least and the most
PIXELS_VERSION = 1  # of all here that makes an image's numbers: to be raised when they change, as the cache keys on it
LONGEST_RESIZED_WHOLE = 16  # long side over short; beyond any panorama, and still a small image once resized


@dataclass(frozen=True)
class Preprocessing:
    """resize: short side, pixels; crop: side of the centre crop, pixels; mean, std: of values in 0–1; decode: whole, or
    reduced, see `short_side_needed`."""

    resize: int
    crop: int
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    interpolation: str = "bilinear"
    decode: str = "reduced"

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Preprocessing:
        return cls(**{**values, "mean": tuple(values["mean"]), "std": tuple(values["std"])})

    def __str__(self) -> str:
        return (
            f"resize short side to {self.resize}, centre crop {self.crop}, {self.interpolation}"
            f"{', JPEG decoded whole' if self.decode == 'whole' else ''}; "
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
        decode=asked.decode or default.decode,
    )


def short_side_needed(preprocessing: Preprocessing, augment: AugmentSettings | None) -> int:
    """Pixels below which decoding must not reduce an image's short side; 0: it is decoded whole. Evaluation (`augment`
    None): twice what it is resized to, so that resizing still does most of the smoothing. Training: as many as leave
    the smallest crop, of the longest shape, no side shorter than the network's."""
    if preprocessing.decode == "whole":
        return 0
    if augment is None:
        return 2 * preprocessing.resize
    return math.ceil(preprocessing.crop / math.sqrt(augment.crop_scale[0] * CROP_SHAPES[0]))


def evaluation_image(image: Image, preprocessing: Preprocessing) -> Tensor:
    """uint8 [3, crop, crop], the same for the same image always: the bits of torchvision's presets, without importing
    its transforms."""
    short, long = min(image.size), max(image.size)
    if long > LONGEST_RESIZED_WHOLE * short:
        resized = _middle_resized(image, preprocessing)
    else:
        sides = preprocessing.resize, int(preprocessing.resize * long / short)  # torchvision's rounding
        resized = image.resize(sides if image.width <= image.height else sides[::-1], _resampling(preprocessing))
    crop = preprocessing.crop
    left, top = round((resized.width - crop) / 2), round((resized.height - crop) / 2)
    return _tensor(resized.crop((left, top, left + crop, top + crop)))


def _tensor(image: Image) -> Tensor:
    """uint8 [3, H, W] over memory [H, W, 3]: channels_last, as PIL has it and convolutions want it."""
    import torch

    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def _middle_resized(image: Image, preprocessing: Preprocessing) -> Image:
    """The resized image, of whose long side only what the centre crop keeps is ever computed.

    A PNG of 1×50,000 pixels has a few hundred bytes and, resized whole, many gigabytes.
    The grid and the filter are those of resizing whole. PIL rounds to 8 bits between its two passes, whose
    order it chooses by the image's shape, so a value may come out one of 255 levels away.
    """
    upright = image.height >= image.width
    short, long = min(image.size), max(image.size)
    whole = int(preprocessing.resize * long / short)  # torchvision's rounding
    kept = min(preprocessing.crop, whole)
    first = round((whole - kept) / 2)
    scale = long / whole  # source pixels to a resized one
    start, end = first * scale, (first + kept) * scale
    margin = 1 + math.ceil(2 * max(scale, 1))  # what the bicubic filter, the wider one, reaches
    low, high = max(0, math.floor(start) - margin), min(long, math.ceil(end) + margin)
    resample = _resampling(preprocessing)
    if upright:
        middle = image.crop((0, low, short, high))
        return middle.resize((preprocessing.resize, kept), resample, (0, start - low, short, end - low))
    middle = image.crop((low, 0, high, short))
    return middle.resize((kept, preprocessing.resize), resample, (start - low, 0, end - low, short))


def training_image(
    image: Image, preprocessing: Preprocessing, augment: AugmentSettings, key: tuple[int, ...]
) -> Tensor:
    """uint8 [3, crop, crop]; the random choices depend on `key` (seed, epoch, sample) alone. The order, the draws and
    the bits are those of torchvision's training recipes, which also turn and shear with the interpolation of resizing.
    """
    with keyed_randomness(*key):
        box, flip = _random_crop(image.size, augment.crop_scale), _is_flipped(augment)
        if augment.randaugment:  # draws between its operations
            cropped = _cropped(image, box, flip, preprocessing)
            return _tensor(_randaugmented(cropped, augment.randaugment, preprocessing))
    return _tensor(_cropped(image, box, flip, preprocessing))


def _is_flipped(augment: AugmentSettings) -> bool:
    import torch

    return torch.rand(1).item() < (0.5 if augment.flip else 0.0)


def _cropped(image: Image, box: tuple[int, int, int, int], flip: bool, preprocessing: Preprocessing) -> Image:
    """box: left, top, width, height."""
    from PIL.Image import Transpose

    left, top, width, height = box
    sides = preprocessing.crop, preprocessing.crop
    cropped = image.crop((left, top, left + width, top + height)).resize(sides, _resampling(preprocessing))
    return cropped.transpose(Transpose.FLIP_LEFT_RIGHT) if flip else cropped


def _random_crop(size: tuple[int, int], scale: tuple[float, float]) -> tuple[int, int, int, int]:
    """left, top, width, height of a crop as torchvision's RandomResizedCrop draws it (Szegedy et al., CVPR 2015): an
    even part of the area, an even log-ratio of the sides, ten attempts to fit, then the largest in the middle."""
    import torch

    width, height = size
    shapes = [float(bound) for bound in torch.tensor(CROP_SHAPES).log()]
    for _ in range(10):
        area = width * height * torch.empty(1).uniform_(*scale).item()
        shape = torch.empty(1).uniform_(*shapes).exp().item()
        w, h = round(math.sqrt(area * shape)), round(math.sqrt(area / shape))
        if 0 < w <= width and 0 < h <= height:
            top, left = (int(torch.randint(0, left_over + 1, (1,))) for left_over in (height - h, width - w))
            return left, top, w, h
    w = min(width, round(height * CROP_SHAPES[1]))
    h = min(height, round(width / CROP_SHAPES[0]))
    return (width - w) // 2, (height - h) // 2, w, h


def _randaugmented(image: Image, settings: RandAugmentSettings, preprocessing: Preprocessing) -> Image:
    from torchvision.transforms import InterpolationMode, v2

    mode = InterpolationMode(preprocessing.interpolation)
    changed: Image = v2.RandAugment(settings.operations, settings.magnitude, MAGNITUDES, mode)(image)
    return changed


def normalise(images: Tensor, preprocessing: Preprocessing) -> Tensor:
    """uint8 [N, 3, H, W] -> float32 (x/255 − mean)/std, on the images' device, channels_last.

    Row by row of [N·H, W·3], in place: with statistics [1, 3, 1, 1] the innermost loop would have three steps (on 16
    images of 224 pixels 15 ms of a core, against 2)."""
    import torch

    n, channels, height, width = images.shape
    rows = images.permute(0, 2, 3, 1).reshape(n * height, width * channels).to(torch.float32, copy=True)
    mean, std = (
        torch.tensor(values, device=images.device).repeat(width) for values in (preprocessing.mean, preprocessing.std)
    )
    return rows.div_(255).sub_(mean).div_(std).view(n, height, width, channels).permute(0, 3, 1, 2)


@contextmanager
def keyed_randomness(*key: int | str, device: torch.device | None = None) -> Iterator[None]:
    """torch's CPU generator seeded by `key` inside, as it was outside: torchvision's transforms, torch's
    initialisers and dropout draw from that generator and take no other. One thread at a time. `device`: a GPU to seed
    as well."""
    with _one_at_a_time:
        yield from _seeded(key, device)


_one_at_a_time = threading.RLock()  # decoding threads share the generator


def _seeded(key: tuple[int | str, ...], device: torch.device | None) -> Iterator[None]:
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


def _resampling(preprocessing: Preprocessing) -> Resampling:
    from PIL.Image import Resampling

    return Resampling[preprocessing.interpolation.upper()]


def _numbers(values: tuple[float, ...]) -> str:
    return "/".join(f"{value:.4g}" for value in values)
