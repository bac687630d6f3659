"""Frozen stages: which they are, that they compute what the network does, and what identifies it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from transferctl import frozen, fusion
from transferctl.backbones import torchvision as plugin
from transferctl.device import Compute
from transferctl.display import Display
from transferctl.frozen import FrozenStages
from transferctl.model import BatchNorm, TransferModel
from transferctl.preprocess import Preprocessing

FP32 = Compute(torch.device("cpu"), False, "")
BF16 = Compute(torch.device("cpu"), True, "")
IMAGES = torch.randint(0, 256, (5, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def model_of(name: str = "resnet18", crop: int = 32) -> TransferModel:
    torch.manual_seed(0)
    backbone, _ = plugin.build(name, image_size=crop)
    model = TransferModel("torchvision", backbone, Preprocessing(crop, crop), "classification")
    model.add_new_head("target", ["x", "y"], hidden=(), dropout=0.0, seed=0)
    return model.eval().place(FP32)


def stages_of(model: TransferModel, count: int, compute: Compute = FP32) -> FrozenStages:
    return FrozenStages(model, count, compute, Display(as_json=True))


@pytest.mark.parametrize(
    ("epochs", "batchnorm", "count"),
    [
        (["none"], {}, 0),
        (["stem"], {}, 1),
        (["layer3"], {}, 4),
        (["all"], {}, 6),
        (["all", "layer3", "layer1"], {}, 2),
        ([["layer1.*", "layer2.*"]], {}, 0),
        ([["conv1.*", "bn1.*", "layer1.*", "layer2.0.*"]], {}, 2),
        (["layer3"], {"frozen": "statistics"}, 0),
        (["layer3"], {"thawed": "train"}, 4),
    ],
)
def test_leading_stages_are_those_that_no_epoch_changes(epochs: Any, batchnorm: dict[str, str], count: int) -> None:
    assert frozen.leading(model_of(), epochs, BatchNorm(**batchnorm)) == count


@pytest.mark.parametrize("name", ["resnet18", "vgg11_bn", "mobilenet_v3_small", "shufflenet_v2_x1_0", "squeezenet1_1"])
def test_stages_and_then_the_rest_are_the_network(name: str) -> None:
    model = model_of(name, 64)
    images = torch.nn.functional.interpolate(IMAGES.float(), 64).to(torch.uint8)
    with torch.no_grad():
        whole = model.features(images)
        for count in (1, len(model.backbone.stages()) - 1):
            rest = model.features(stages_of(model, count)(images), count)
            torch.testing.assert_close(rest.pooled, whole.pooled, rtol=1e-4, atol=1e-4)
        pooled = stages_of(model, len(model.backbone.stages()))(images)
    torch.testing.assert_close(pooled, whole.pooled, rtol=1e-4, atol=1e-4)


def test_bf16_stages_give_bf16_activations_and_fp32_features() -> None:
    model = model_of()
    with torch.no_grad():
        whole = model.features(IMAGES).pooled
    assert stages_of(model, 3, BF16)(IMAGES).dtype == torch.bfloat16
    features = stages_of(model, 6, BF16)(IMAGES)
    assert features.dtype == torch.float32
    assert float((features - whole).norm() / whole.norm()) < 0.03


def test_the_backward_pass_ends_where_the_frozen_stages_do() -> None:
    model = model_of()
    model.freeze("layer3", BatchNorm())
    activations = stages_of(model, 4)(IMAGES)
    assert not activations.requires_grad
    model.features(activations, 4).pooled.sum().backward()
    with_gradient = {name for name, p in model.backbone.net.named_parameters() if p.grad is not None}
    assert with_gradient and all(name.startswith("layer4") for name in with_gradient)


def test_images_are_computed_in_parts_that_stay_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    stages = stages_of(model_of(), 6)
    whole = stages(IMAGES)
    monkeypatch.setattr(frozen, "CHUNK_PIXELS", 2 * 32 * 32)
    torch.testing.assert_close(stages(IMAGES), whole, rtol=1e-5, atol=1e-5)


def test_what_cannot_be_fused_runs_plain(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    model = model_of()
    with torch.no_grad():
        whole = model.features(IMAGES).pooled

    def cannot(*_: Any) -> Any:
        raise torch.fx.proxy.TraceError("control flow")

    monkeypatch.setattr(fusion, "fused", cannot)
    stages = stages_of(model, 6)
    assert not stages.is_fused and "unfused (TraceError: control flow)" in capsys.readouterr().err
    torch.testing.assert_close(stages(IMAGES), whole, rtol=1e-4, atol=1e-4)


def test_a_fused_network_that_computes_something_else_is_not_used(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fuse = fusion.fused

    def wrong(*how: Any) -> Any:
        network = fuse(*how)
        return lambda x: network(x) * 1.01

    monkeypatch.setattr(fusion, "fused", wrong)
    assert not stages_of(model_of(), 6).is_fused
    assert "off by 1.0%" in capsys.readouterr().err


def _another_weight(model: TransferModel) -> None:
    model.backbone.net.layer1[0].conv1.weight.data[0, 0, 0, 0] += 1


def _another_statistic(model: TransferModel) -> None:
    model.backbone.net.bn1.running_mean[3] += 0.1


@pytest.mark.parametrize("change", [_another_weight, _another_statistic])
def test_any_other_weight_is_another_product(change: Callable[[TransferModel], None]) -> None:
    model, changed = model_of(), model_of()
    assert stages_of(model, 3).product.key == stages_of(changed, 3).product.key
    change(changed)
    assert stages_of(model, 3).product.key != stages_of(changed, 3).product.key


def test_weights_after_the_frozen_stages_do_not_matter() -> None:
    model, changed = model_of(), model_of()
    changed.backbone.net.layer4[0].conv1.weight.data.zero_()
    assert stages_of(model, 4).product.key == stages_of(changed, 4).product.key
    assert stages_of(model, 5).product.key != stages_of(changed, 5).product.key


@pytest.mark.parametrize(
    "change",
    [
        {"resize": 40}, {"mean": (0.5, 0.5, 0.5)}, {"std": (0.5, 0.5, 0.5)}, {"interpolation": "bicubic"},
        {"decode": "whole"},
    ],
)  # fmt: skip
def test_other_preprocessing_is_another_product(change: dict[str, Any]) -> None:
    model, changed = model_of(), model_of()
    changed.preprocessing = Preprocessing(**{"resize": 32, "crop": 32, **change})
    assert stages_of(model, 3).product.key != stages_of(changed, 3).product.key


def test_precision_depth_versions_and_fusing_are_part_of_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of()
    keys = {stages_of(model, count, compute).product.key for count in (3, 4) for compute in (FP32, BF16)}
    assert len(keys) == 4
    monkeypatch.setattr("transferctl.images.versions", lambda: "another decoder")
    keys.add(stages_of(model, 3).product.key)
    monkeypatch.setattr(torch, "__version__", "9.9")
    keys.add(stages_of(model, 3).product.key)
    monkeypatch.setattr(frozen, "LARGEST_ERROR", {torch.float32: -1.0})
    keys.add(stages_of(model, 3).product.key)
    monkeypatch.setattr(frozen, "PIXELS_VERSION", 0)
    keys.add(stages_of(model, 3).product.key)
    monkeypatch.setattr(frozen.metadata, "version", lambda package: f"another {package}")
    keys.add(stages_of(model, 3).product.key)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "another instruction set")
    keys.add(stages_of(model, 3).product.key)
    assert len(keys) == 10
