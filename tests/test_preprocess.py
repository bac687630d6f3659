"""Preprocessing is torchvision's own; training images depend on their key alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import models

from transferctl.backbones import torchvision as plugin
from transferctl.preprocess import Preprocessing, evaluation_image, normalise, resolve, training_image
from transferctl.spec import AugmentSettings, PreprocessSettings

IMAGE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (300, 411, 3)).astype(np.uint8))


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "vit_b_16", "efficientnet_b0", "swin_v2_t"])
def test_published_preprocessing_is_torchvisions_preset(name: str) -> None:
    ours = plugin.published_preprocessing(name, "DEFAULT")
    preset = models.get_model_weights(name).DEFAULT.transforms()(IMAGE)
    got = normalise(evaluation_image(IMAGE, ours)[None], ours)[0]
    torch.testing.assert_close(got, preset, rtol=0, atol=1e-5)


def test_a_training_image_depends_on_its_key_alone_and_leaves_the_generator() -> None:
    augment, preprocessing = AugmentSettings(), Preprocessing(40, 32)
    before = torch.get_rng_state()
    one = training_image(IMAGE, preprocessing, augment, (0, 1, 0, 7))
    torch.rand(3)
    torch.set_rng_state(before)
    assert torch.equal(one, training_image(IMAGE, preprocessing, augment, (0, 1, 0, 7)))
    assert not torch.equal(one, training_image(IMAGE, preprocessing, augment, (0, 2, 0, 7)))
    assert torch.equal(torch.get_rng_state(), before)


def test_one_size_given_keeps_the_weights_ratio() -> None:
    default = Preprocessing(256, 224)
    assert resolve(PreprocessSettings(crop=112), default).resize == 128
    assert resolve(PreprocessSettings(resize=128), default).crop == 112
