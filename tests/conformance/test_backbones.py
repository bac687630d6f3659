"""Every architecture of torchvision: cut into stages and head, it computes exactly what it computed whole."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import models

from transferctl import plugins
from transferctl.backbones import torchvision as library
from transferctl.backbones.torchvision import _network
from transferctl.preprocess import evaluation_image, normalise

SIZES = {"inception_v3": 80, "maxvit_t": 224, "vit_h_14": 56}


@pytest.fixture(autouse=True)
def _no_initialisation(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing initial weights takes most of a large network's time to build; the test sets them itself."""
    for name in ("normal_", "trunc_normal_", "uniform_", "kaiming_normal_", "kaiming_uniform_", "xavier_uniform_"):
        monkeypatch.setattr(torch.nn.init, name, lambda tensor, *_, **__: tensor)


def _set_weights(net: torch.nn.Module) -> None:
    """Different everywhere and of He's size, so that signals neither fade (denormal numbers are slow) nor grow.
    ViT's head too, which starts at zero, where any two networks would agree."""
    for name, parameter in net.named_parameters():
        wave = torch.arange(parameter.numel(), dtype=torch.float32).mul_(12.9898).sin_().view_as(parameter)
        if parameter.ndim > 1:
            parameter.data = wave.mul_((3 / parameter[0].numel()) ** 0.5)
        else:
            parameter.data = wave.mul_(0.1).add_(1.0 if name.endswith("weight") else 0.0)


@pytest.mark.parametrize("name", library.names())
def test_head_of_backbone_is_torchvisions_own_network(name: str) -> None:
    size = SIZES.get(name, 64)
    whole = _network(name, 7, size).eval()
    _set_weights(whole)
    images = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    backbone, head = library.build(name, image_size=size, state=whole.state_dict())
    assert head is not None
    with torch.no_grad():
        expected = whole(images)
        features = backbone.eval()(images)
        assert torch.equal(head.eval()(features), expected)
    assert expected.shape == (2, 7) and expected.isfinite().all() and expected.std() > 0
    assert features.pooled.shape == (2, backbone.feature_dim)

    stages = backbone.stages()
    assert stages[-1].name == "pool" and len({stage.name for stage in stages}) == len(stages)
    owners = {n: sum(stage.owns(n) for stage in stages) for n, _ in backbone.net.named_parameters()}
    assert set(owners.values()) == {1}, [n for n, count in owners.items() if count != 1]
    assert len(owners) + len(list(head.parameters())) == len(list(whole.parameters()))


@pytest.mark.parametrize("name", ["googlenet", "inception_v3"])
def test_published_weights_that_undo_the_presets_normalisation_see_what_they_were_trained_on(name: str) -> None:
    """torchvision builds these two with transform_input=True wherever published weights are asked for."""
    arguments = {"transform_input": True, "aux_logits": True, "init_weights": False, "num_classes": 7}
    whole = models.get_model(name, weights=None, **arguments).eval()
    generator = torch.Generator().manual_seed(0)
    for parameter in whole.parameters():  # waves would let the image fade behind the biases
        if parameter.ndim > 1:
            parameter.data.normal_(0, (2 / parameter[0].numel()) ** 0.5, generator=generator)
    ours = library.published_preprocessing(name, "DEFAULT")
    assert ours == library.default_preprocessing(name)
    backbone, head = library.build(name, image_size=ours.crop, state=whole.state_dict())
    assert head is not None
    pixels = np.random.default_rng(0).integers(0, 256, (9, 12, 3)).astype(np.uint8)
    image = Image.fromarray(pixels).resize((411, 360))  # coloured patches
    preset = models.get_model_weights(name).DEFAULT.transforms()
    with torch.no_grad():
        expected = whole(preset(image)[None])
        got = head.eval()(backbone.eval()(normalise(evaluation_image(image, ours)[None], ours)))
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4 * float(expected.std()))


@pytest.mark.parametrize("method", ["__init__", "forward"])
@pytest.mark.parametrize("name", plugins.names("backbones"))
def test_memory_that_runs_out_is_not_taken_for_a_size_that_a_network_cannot_take(
    name: str, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of any library, in building the network and in looking at an image."""
    pytest.importorskip(name)

    def hungry(*_: object, **__: object) -> None:
        raise RuntimeError("[enforce fail at alloc_cpu.cpp:1] DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr(torch.nn.Conv2d, method, hungry)
    with pytest.raises(RuntimeError, match="DefaultCPUAllocator"):
        plugins.load("backbones", name).build("resnet18", image_size=64)
