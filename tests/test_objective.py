"""L_S + λ·L_T, against autograd done by hand, and the penalties against their formulas."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from transferctl.backbones import torchvision as plugin
from transferctl.contracts import Batch, Features, PenaltyStart
from transferctl.device import Compute
from transferctl.model import BatchNorm, Original, TransferModel
from transferctl.objective import Losses, Objective, in_symbols
from transferctl.penalties import l2sp
from transferctl.preprocess import Preprocessing
from transferctl.tasks import classification


def no_data(domain: str, most: int | None) -> Iterator[Batch]:
    raise AssertionError("L2-SP looks at no data")


@pytest.fixture
def model() -> TransferModel:
    torch.manual_seed(0)
    backbone, _ = plugin.build("resnet18", image_size=32)
    model = TransferModel("torchvision", backbone, Preprocessing(32, 32), "classification")
    model.add_new_head("source", ["a", "b", "c"], hidden=(), dropout=0.0, seed=0)
    model.add_new_head("target", ["x", "y"], hidden=(), dropout=0.0, seed=0)
    model.freeze("none", BatchNorm())
    return model


def joint_objective(model: TransferModel, features: Features, batch: Batch, weight: float, penalties: Any) -> Losses:
    return Objective(classification, weight, penalties)(model, features, batch)


def _step(model: TransferModel, n_source: int, n_target: int) -> tuple[Features, Batch]:
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(0, 256, (n_source + n_target, 3, 32, 32), generator=generator, dtype=torch.uint8)
    labels = torch.tensor([i % 3 for i in range(n_source)] + [i % 2 for i in range(n_target)])
    return model.features(images), Batch(images, labels, n_source)


@pytest.mark.parametrize("weight", [0.0, 0.5, 3.0])
def test_joint_gradient_is_the_weighted_sum_of_the_two_gradients(model: TransferModel, weight: float) -> None:
    weights = [p for p in model.backbone.parameters() if p.requires_grad][:10]
    features, batch = _step(model, 4, 6)
    joint = torch.autograd.grad(joint_objective(model, features, batch, weight, {}).total, weights)
    by_hand = []
    for domain, rows in (("source", slice(0, 4)), ("target", slice(4, 10))):
        logits = model.heads[domain](model.features(batch.inputs)[rows])
        by_hand.append(torch.autograd.grad(F.cross_entropy(logits, batch.labels[rows]), weights))
    for got, source, target in zip(joint, *by_hand, strict=True):
        torch.testing.assert_close(got, source + weight * target, rtol=1e-4, atol=1e-6)


def test_without_source_samples_the_objective_is_the_target_loss_alone(model: TransferModel) -> None:
    features, batch = _step(model, 0, 6)
    losses = joint_objective(model, features, batch, 7.0, {})
    assert losses.source is None
    assert losses.total.item() == losses.target.item()


def test_batch_sizes_do_not_change_what_lambda_means(model: TransferModel) -> None:
    model.eval()
    features, batch = _step(model, 4, 6)
    twice = Batch(batch.inputs, batch.labels.repeat_interleave(2), 8)
    doubled = Features(features.pooled.repeat_interleave(2, 0))
    one = joint_objective(model, features, batch, 2.0, {}).total
    two = joint_objective(model, doubled, twice, 2.0, {}).total
    torch.testing.assert_close(one, two)


def test_l2sp_is_the_papers_formula_and_spares_the_start(model: TransferModel) -> None:
    original = Original(model, Compute(torch.device("cpu"), False, ""))
    penalty = l2sp.build(l2sp.Settings(weight=0.1, head_ratio=0.0), PenaltyStart(model, original, no_data, 0, print))
    features, batch = _step(model, 0, 2)
    assert joint_objective(model, features, batch, 1.0, {"l2sp": penalty}).penalties["l2sp"].item() == 0
    with torch.no_grad():
        for p in model.backbone.parameters():
            p.add_(0.01)
    losses = joint_objective(model, features, batch, 1.0, {"l2sp": penalty})
    n = sum(p.numel() for p in model.backbone.parameters())
    assert losses.penalties["l2sp"].item() == pytest.approx(n * 0.01**2 / 2, rel=1e-3)
    assert losses.total.item() == pytest.approx(losses.target.item() + 0.1 * losses.penalties["l2sp"].item(), rel=1e-6)


def test_symbols_carry_the_numbers() -> None:
    assert in_symbols(True, 0.3, {"l2sp": 0.01}) == "min over θ of L_S + 0.3·L_T + 0.01·Ω_l2sp"
    assert in_symbols(False, 1.0, {}) == "min over θ of L_T"
