"""What is frozen stays as it is, whoever calls .train(); what is thawed moves."""

from __future__ import annotations

import pytest
import torch

from transferctl.backbones import torchvision as plugin
from transferctl.errors import SpecError
from transferctl.model import BatchNorm, TransferModel, frozen_parameters, in_words
from transferctl.preprocess import Preprocessing


def _model() -> TransferModel:
    torch.manual_seed(0)
    backbone, _ = plugin.build("resnet18", image_size=32)
    model = TransferModel("torchvision", backbone, Preprocessing(32, 32), "classification")
    model.add_new_head("target", ["x", "y"], hidden=(), dropout=0.0, seed=0)
    return model


def _train_a_step(model: TransferModel) -> None:
    model.train()
    images = torch.randint(0, 256, (8, 3, 32, 32), dtype=torch.uint8)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    model.heads["target"](model.features(images)).square().mean().backward()
    optimizer.step()


def test_frozen_stages_keep_weights_and_running_statistics() -> None:
    model = _model()
    model.freeze("layer3", BatchNorm(thawed="train"))
    before = {name: tensor.clone() for name, tensor in model.backbone.net.state_dict().items()}
    _train_a_step(model)
    moved = {name for name, tensor in model.backbone.net.state_dict().items() if not torch.equal(tensor, before[name])}
    assert moved
    assert all(name.startswith("layer4.") for name in moved)
    assert any("running_mean" in name for name in moved)


def test_frozen_batchnorm_keeps_statistics_of_thawed_stages_and_trains_their_scale() -> None:
    model = _model()
    model.freeze("none", BatchNorm())
    before = {name: tensor.clone() for name, tensor in model.backbone.net.state_dict().items()}
    _train_a_step(model)
    moved = {name for name, tensor in model.backbone.net.state_dict().items() if not torch.equal(tensor, before[name])}
    assert not any("running" in name or "num_batches" in name for name in moved)
    assert "layer1.0.bn1.weight" in moved


def _moved(frozen: str, batchnorm: BatchNorm) -> set[str]:
    """What one training step changes of the backbone."""
    model = _model()
    model.freeze(frozen, batchnorm)
    before = {name: tensor.clone() for name, tensor in model.backbone.net.state_dict().items()}
    _train_a_step(model)
    return {name for name, tensor in model.backbone.net.state_dict().items() if not torch.equal(tensor, before[name])}


@pytest.mark.parametrize("thawed", ["frozen", "statistics", "train"])
def test_running_statistics_of_frozen_parts_stay_whatever_thawed_parts_do(thawed: str) -> None:
    moved = _moved("layer3", BatchNorm(thawed=thawed))
    assert "layer4.0.conv1.weight" in moved
    assert all(name.startswith("layer4.") for name in moved)
    assert ("layer4.0.bn1.running_mean" in moved) == (thawed != "frozen")
    assert ("layer4.0.bn1.weight" in moved) == (thawed != "statistics")


def test_statistics_alone_adapt_in_frozen_parts_and_no_weight_moves_there() -> None:
    moved = _moved("all", BatchNorm(frozen="statistics"))
    assert "layer1.0.bn1.running_var" in moved
    assert all(name.rpartition(".")[2] in ("running_mean", "running_var", "num_batches_tracked") for name in moved)


def test_frozen_parts_whose_batchnorm_trains_learn_scale_and_shift_alone() -> None:
    """Frankle et al., ICLR 2021."""
    moved = _moved("all", BatchNorm(frozen="train"))
    assert {"layer1.0.bn1.weight", "layer1.0.bn1.bias", "layer1.0.bn1.running_mean"} <= moved
    assert not any("conv" in name or name == "fc.weight" for name in moved)


def test_a_schedule_of_freezing_is_said_in_words() -> None:
    assert in_words({1: "all", 3: ["layer1.*", "bn1.*"], 5: "none"}) == (
        "all from epoch 1, layer1.*, bn1.* from epoch 3, none from epoch 5"
    )
    assert in_words({1: "layer3"}) == "layer3"


def test_patterns_freeze_what_they_match_and_a_pattern_that_matches_nothing_is_an_error() -> None:
    model = _model()
    frozen = frozen_parameters(model.backbone, ["layer1.*", "conv1.weight"])
    assert "layer1.0.conv1.weight" in frozen
    assert "layer2.0.conv1.weight" not in frozen
    with pytest.raises(SpecError, match=r"layer9\.\* *'? matches no parameter"):
        frozen_parameters(model.backbone, ["layer1.*", "layer9.*"])


def test_an_unknown_stage_suggests_the_nearest() -> None:
    with pytest.raises(SpecError, match="did you mean layer3"):
        frozen_parameters(_model().backbone, "layr3")


def test_frozen_layers_build_no_graph() -> None:
    model = _model()
    model.freeze("all", BatchNorm())
    model.train()
    assert not model.features(torch.zeros(2, 3, 32, 32, dtype=torch.uint8)).pooled.requires_grad
    assert not any(module.training for module in model.backbone.net.modules())


def test_a_norm_that_a_pattern_freezes_in_part_keeps_that_part_where_batchnorm_trains() -> None:
    model = _model()
    model.freeze(["*.weight"], BatchNorm(thawed="train"))
    trained = {name for name, p in model.backbone.net.named_parameters() if p.requires_grad}
    assert trained and all(name.endswith(".bias") for name in trained)
