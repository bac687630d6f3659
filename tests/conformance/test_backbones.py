"""Every architecture of torchvision: cut into stages and head, it computes exactly what it computed whole."""

from __future__ import annotations

import pytest
import torch

from transferctl.backbones import torchvision as library
from transferctl.backbones.torchvision import _network

# More than 150 million parameters: their build alone takes longer than all the others' tests. The smaller
# sibling has the same class and the same stages.
TOO_LARGE = {
    "convnext_large": "convnext_base",
    "regnet_y_128gf": "regnet_y_16gf",
    "vit_h_14": "vit_b_16",
    "vit_l_16": "vit_b_16",
    "vit_l_32": "vit_b_32",
}
SIZES = {"inception_v3": 80, "maxvit_t": 224}
TESTED = [name for name in library.names() if name not in TOO_LARGE]


def test_every_architecture_left_out_has_a_tested_sibling() -> None:
    assert set(TOO_LARGE) <= set(library.names())
    assert set(TOO_LARGE.values()) <= set(TESTED)
    for large, small in TOO_LARGE.items():
        assert library._head_name(large) == library._head_name(small)


@pytest.mark.parametrize("name", TESTED)
def test_head_of_backbone_is_torchvisions_own_network(name: str) -> None:
    size = SIZES.get(name, 64)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        whole = _network(name, 7, size).eval()
        for parameter in whole.parameters():
            if not parameter.any():  # ViT's head starts at zero, where any two networks would agree
                torch.nn.init.normal_(parameter, std=0.02)
        images = torch.randn(2, 3, size, size)
    backbone, head = library.build(name, image_size=size, state=whole.state_dict())
    assert head is not None
    with torch.no_grad():
        expected = whole(images)
        features = backbone.eval()(images)
        assert torch.equal(head.eval()(features), expected)
    assert expected.shape == (2, 7) and expected.std() > 0
    assert features.pooled.shape == (2, backbone.feature_dim)

    stages = backbone.stages()
    assert stages[-1].name == "pool" and len({stage.name for stage in stages}) == len(stages)
    owners = {n: sum(stage.owns(n) for stage in stages) for n, _ in backbone.net.named_parameters()}
    assert set(owners.values()) == {1}, [n for n, count in owners.items() if count != 1]
    assert len(owners) + len(list(head.parameters())) == len(list(whole.parameters()))
