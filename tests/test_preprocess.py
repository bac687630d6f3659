"""Preprocessing is torchvision's own; training images depend on their key alone."""

from __future__ import annotations

import hashlib
import io
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import models
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms.v2 import functional as F

from transferctl.backbones import torchvision as plugin
from transferctl.images import decode
from transferctl.preprocess import (
    Preprocessing,
    evaluation_image,
    normalise,
    resolve,
    short_side_needed,
    training_image,
)
from transferctl.spec import PreprocessSettings
from transferctl.trainsettings import AugmentSettings

IMAGE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (300, 411, 3)).astype(np.uint8))


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "vit_b_16", "efficientnet_b0", "swin_v2_t"])
def test_published_preprocessing_is_torchvisions_preset(name: str) -> None:
    ours = plugin.published_preprocessing(name, "DEFAULT")
    preset = models.get_model_weights(name).DEFAULT.transforms()(IMAGE)
    got = normalise(evaluation_image(IMAGE, ours)[None], ours)[0]
    torch.testing.assert_close(got, preset, rtol=0, atol=1e-5)


def _torchvisions(image: Image.Image, preprocessing: Preprocessing) -> torch.Tensor:
    resized = F.resize(image, [preprocessing.resize], InterpolationMode(preprocessing.interpolation))
    cropped: torch.Tensor = F.pil_to_tensor(F.center_crop(resized, [preprocessing.crop, preprocessing.crop]))
    return cropped


def _noise(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3)).astype(np.uint8))


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("size", [(500, 375), (375, 500), (640, 80), (80, 640), (256, 256), (31, 33), (1280, 80)])
def test_an_ordinary_image_is_exactly_torchvisions(size: tuple[int, int], interpolation: str) -> None:
    image, preprocessing = _noise(*size), Preprocessing(256, 224, interpolation=interpolation)
    assert torch.equal(evaluation_image(image, preprocessing), _torchvisions(image, preprocessing))


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("size", [(1, 300), (300, 1), (7, 1001), (2003, 100), (300, 6001), (9001, 407)])
@pytest.mark.parametrize("sides", [(64, 56), (64, 64), (65, 40)])
def test_a_strip_is_torchvisions_within_one_level(
    sides: tuple[int, int], size: tuple[int, int], interpolation: str
) -> None:
    image, preprocessing = _noise(*size), Preprocessing(*sides, interpolation=interpolation)
    off = (evaluation_image(image, preprocessing).int() - _torchvisions(image, preprocessing).int()).abs()
    assert off.max() <= 1


@pytest.mark.parametrize("size", [(1, 50_000), (50_000, 1)])
def test_a_strip_of_one_pixel_by_50000_is_never_resized_whole(
    size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[int] = []
    resize = Image.Image.resize

    def watched(image: Image.Image, size: tuple[int, int], *rest: Any, **named: Any) -> Image.Image:
        made.append(size[0] * size[1])
        assert made[-1] <= 256 * 256, "resized to far more than the crop"
        return resize(image, size, *rest, **named)

    monkeypatch.setattr(Image.Image, "resize", watched)
    file = io.BytesIO()
    Image.new("RGB", size, (10, 20, 30)).save(file, "PNG")
    image, preprocessing = decode(file.getvalue()), Preprocessing(256, 224)
    trained = training_image(image, preprocessing, AugmentSettings(), (0, 1, 0, 7))
    for got in (evaluation_image(image, preprocessing), trained):
        assert got.shape == (3, 224, 224)
        assert torch.equal(got.float().amax((1, 2)), torch.tensor([10.0, 20.0, 30.0]))
        assert torch.equal(got.float().amin((1, 2)), torch.tensor([10.0, 20.0, 30.0]))
    assert made, "nothing was resized through PIL: this test watches the wrong function"


def test_a_training_image_depends_on_its_key_alone_and_leaves_the_generator() -> None:
    augment, preprocessing = AugmentSettings(), Preprocessing(40, 32)
    before = torch.get_rng_state()
    one = training_image(IMAGE, preprocessing, augment, (0, 1, 0, 7))
    torch.rand(3)
    torch.set_rng_state(before)
    assert torch.equal(one, training_image(IMAGE, preprocessing, augment, (0, 1, 0, 7)))
    assert not torch.equal(one, training_image(IMAGE, preprocessing, augment, (0, 2, 0, 7)))
    assert torch.equal(torch.get_rng_state(), before)


@contextmanager
def _seeded_as(*key: int) -> Iterator[None]:
    """torch's generator as a key seeds it: the first 8 bytes of the SHA-256 of its parts."""
    digest = hashlib.sha256("\0".join(map(str, key)).encode()).digest()
    torch.manual_seed(int.from_bytes(digest[:8], "little") >> 1)
    yield


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize(("operations", "magnitude"), [(2, 9), (1, 0), (5, 30)])
def test_randaugment_is_torchvisions_after_the_crop_and_the_mirror(
    operations: int, magnitude: int, interpolation: str
) -> None:
    mode = InterpolationMode(interpolation)
    theirs = v2.Compose([
        v2.RandomResizedCrop(32, (0.35, 1.0), interpolation=mode),
        v2.RandomHorizontalFlip(),
        v2.RandAugment(operations, magnitude, interpolation=mode),
        v2.PILToTensor(),
    ])  # fmt: skip
    augment = AugmentSettings(randaugment={"magnitude": magnitude, "operations": operations})
    preprocessing = Preprocessing(40, 32, interpolation=interpolation)
    for sample in range(8):
        ours = training_image(IMAGE, preprocessing, augment, (0, 1, 0, sample))
        with _seeded_as(0, 1, 0, sample):
            assert torch.equal(ours, theirs(IMAGE))


@pytest.mark.parametrize("flip", [True, False])
def test_without_randaugment_a_training_image_has_the_bits_of_crop_and_mirror_alone(flip: bool) -> None:
    theirs = v2.Compose([v2.RandomResizedCrop(32, (0.35, 1.0)), v2.RandomHorizontalFlip(0.5 * flip), v2.PILToTensor()])
    for augment in (AugmentSettings(flip=flip), AugmentSettings(flip=flip, randaugment=None)):
        for sample in range(8):
            ours = training_image(IMAGE, Preprocessing(40, 32), augment, (0, 1, 0, sample))
            with _seeded_as(0, 1, 0, sample):
                assert torch.equal(ours, theirs(IMAGE))


def test_randaugment_depends_on_the_key_alone_and_leaves_the_generator() -> None:
    augment, preprocessing = AugmentSettings(randaugment=9), Preprocessing(40, 32)
    before = torch.get_rng_state()
    random.seed(1), np.random.seed(1)
    one = training_image(IMAGE, preprocessing, augment, (0, 1, 0, 7))
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(3), random.seed(2), np.random.seed(2)
    assert torch.equal(one, training_image(IMAGE, preprocessing, augment, (0, 1, 0, 7)))
    assert not torch.equal(one, training_image(IMAGE, preprocessing, AugmentSettings(), (0, 1, 0, 7)))


def test_decoding_may_reduce_a_jpeg_to_twice_the_size_unless_it_is_to_be_whole() -> None:
    default = Preprocessing(72, 64)
    assert short_side_needed(default, None) == 144
    whole = resolve(PreprocessSettings(decode="whole"), default)
    assert short_side_needed(whole, None) == short_side_needed(whole, AugmentSettings()) == 0
    assert "JPEG decoded whole" in str(whole) and "JPEG" not in str(default)
    assert Preprocessing.from_dict(whole.as_dict()) == whole == resolve(PreprocessSettings(), whole)


def test_one_size_given_keeps_the_weights_ratio() -> None:
    default = Preprocessing(256, 224)
    assert resolve(PreprocessSettings(crop=112), default).resize == 128
    assert resolve(PreprocessSettings(resize=128), default).crop == 112
