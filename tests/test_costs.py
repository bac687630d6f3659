"""Parameters, operations and speed, against what torchvision publishes of its networks."""

from __future__ import annotations

import time

import pytest
import torch
from torchvision import models

from transferctl import costs, plugins


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2", "vit_b_32", "swin_t"])
def test_operations_are_twice_the_multiply_adds_that_torchvision_publishes(name: str) -> None:
    """Less the last layer's; attention and all."""
    published = models.get_model_weights(name)["DEFAULT"]
    crop = published.transforms().crop_size[0]
    backbone, _ = plugins.load("backbones", "torchvision").build(name, image_size=crop)
    last = 1000 * backbone.feature_dim / 1e9
    found = costs.gflop(backbone.eval(), crop)
    assert found == pytest.approx(2 * (published.meta["_ops"] - last), rel=1e-3)
    parameters = sum(parameter.numel() for parameter in backbone.parameters())
    assert parameters == published.meta["num_params"] - 1000 * (backbone.feature_dim + 1)
    assert torch.backends.mha.get_fastpath_enabled()


def test_speed_is_the_median_of_passes() -> None:
    calls = []

    def compute(images: torch.Tensor) -> torch.Tensor:
        calls.append(len(images))
        time.sleep(0.2 if len(calls) <= 2 else 0.02)  # the first allocates, the second is interrupted
        return images

    found = costs.images_per_s(compute, torch.zeros(10, 3, 2, 2, dtype=torch.uint8))
    assert 100 < found < 10 / 0.02 and len(calls) < 30


def test_a_first_pass_that_takes_long_is_the_only_one() -> None:
    calls = []

    def compute(images: torch.Tensor) -> torch.Tensor:
        calls.append(len(images))
        time.sleep(costs.MEASURED_S)
        return images

    assert costs.images_per_s(compute, torch.zeros(10, 3, 2, 2, dtype=torch.uint8)) <= 10 / costs.MEASURED_S
    assert len(calls) == 1


def test_a_view_of_a_parameter_may_go_from_module_to_module() -> None:
    """As class tokens of some networks do. Who wants a gradient, wants one afterwards too."""

    class Tokens(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.token, self.layer = torch.nn.Parameter(torch.ones(1, 4)), torch.nn.Linear(4, 5)
            self.layer.bias.requires_grad_(False)

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            found: torch.Tensor = self.layer(self.token.expand(len(images), -1))
            return found

    net = Tokens().eval()
    assert costs.gflop(net, 8) == 2 * 4 * 5 / 1e9
    assert {name: parameter.requires_grad for name, parameter in net.named_parameters()} == {
        "token": True, "layer.weight": True, "layer.bias": False,
    }  # fmt: skip
