"""Mixup and CutMix against torchvision's, pixel by pixel, and the losses of mixed labels against their formula."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.transforms import v2
from typer.testing import CliRunner

from transferctl.cli import app
from transferctl.contracts import Batch, Features
from transferctl.mixing import Mixing, mix
from transferctl.objective import DomainLoss, Objective
from transferctl.tasks import classification

Invoke = Callable[..., tuple[int, dict[str, Any]]]


def both(mixup: float | None, cutmix: float | None) -> dict[str, Mixing]:
    return dict.fromkeys(("source", "target"), Mixing(mixup, cutmix))


def batch_of(n_source: int, n_target: int, height: int = 13, width: int = 10) -> Batch:
    """Noise; each sample's label is its row, so that a partner's label says which row the partner is."""
    generator = torch.Generator().manual_seed(0)
    n = n_source + n_target
    images = torch.randint(0, 256, (n, 3, height, width), generator=generator, dtype=torch.uint8)
    return Batch(images, torch.arange(n), n_source)


class Scripted:
    """Stands in for the random generator: partners are torchvision's, the sample before; share and box are given."""

    def __init__(self, share: float, y: int = 0, x: int = 0):
        self._share, self._places = share, [y, x]

    def permutation(self, n: int) -> np.ndarray:
        return np.roll(np.arange(n), 1)

    def beta(self, a: float, b: float) -> float:
        assert a == b
        return self._share

    def integers(self, end: int) -> int:
        place = self._places.pop(0)
        assert place < end
        return place


class _Share:
    """torchvision's distribution, which always draws the same."""

    def __init__(self, share: float):
        self.share = share

    def sample(self, shape: tuple[int, ...]) -> float:
        return self.share


@pytest.mark.parametrize("share", [0.0, 0.25, 0.7, 1.0])
def test_mixup_is_torchvisions(share: float, monkeypatch: pytest.MonkeyPatch) -> None:
    batch = batch_of(0, 5)
    theirs = v2.MixUp(alpha=1.0, num_classes=5)
    theirs._dist = _Share(share)
    images, labels = theirs(batch.inputs.float(), batch.labels)
    monkeypatch.setattr(np.random, "default_rng", lambda key: Scripted(share))
    mixed = mix(batch, both(1.0, None), 0, 0)
    torch.testing.assert_close(mixed.inputs, images)
    torch.testing.assert_close(classification.soft_targets(mixed.labels, mixed.mixed, 5), labels)


@pytest.mark.parametrize(("y", "x"), [(6, 5), (0, 0), (12, 9), (2, 8)])
@pytest.mark.parametrize("share", [0.0, 0.3, 0.5, 0.55, 0.99, 1.0])
def test_cutmix_is_torchvisions(share: float, y: int, x: int, monkeypatch: pytest.MonkeyPatch) -> None:
    batch = batch_of(0, 5)
    theirs, centre = v2.CutMix(alpha=1.0, num_classes=5), [x, y]
    theirs._dist = _Share(share)
    with monkeypatch.context() as patch:
        patch.setattr(torch, "randint", lambda end, size: torch.tensor([centre.pop(0)]))
        images, labels = theirs(batch.inputs.float(), batch.labels)
    monkeypatch.setattr(np.random, "default_rng", lambda key: Scripted(share, y, x))
    mixed = mix(batch, both(None, 1.0), 0, 0)
    assert torch.equal(mixed.inputs, images)
    torch.testing.assert_close(classification.soft_targets(mixed.labels, mixed.mixed, 5), labels)


@pytest.mark.parametrize("mixing", [Mixing(0.4, None), Mixing(None, 1.0)])
def test_each_pixel_is_its_shares_of_two_images_of_one_domain(mixing: Mixing) -> None:
    for step in range(20):
        batch = batch_of(8, 7)  # so many that they are never all their own partners
        mixed = mix(batch, {"source": mixing, "target": mixing}, 3, step)
        assert mixed.inputs.dtype == torch.float32
        assert mixed.inputs.min() >= 0 and mixed.inputs.max() <= 255.001
        for rows in (batch.source, batch.target):
            own, other = (
                batch.inputs.numpy()[of].astype(float) for of in (batch.labels[rows], mixed.mixed[rows].partners)
            )
            assert sorted(mixed.mixed[rows].partners.tolist()) == batch.labels[rows].tolist()  # domains never mix
            (share,) = set(mixed.mixed[rows].share.tolist())
            got = mixed.inputs[rows].numpy()
            if mixing.cutmix is None:
                np.testing.assert_allclose(got, share * own + (1 - share) * other, atol=1e-3)
            else:
                pasted = ((got != own).any((0, 1))).astype(int)  # where some image differs
                assert (got == np.where(pasted, other, own)).all()
                assert share == pytest.approx(1 - pasted.mean(), abs=1e-6)


def test_mixing_is_keyed_by_seed_and_step_and_leaves_the_batch_it_was_given() -> None:
    batch, before = batch_of(2, 5), batch_of(2, 5)
    again = [mix(batch, both(1.0, None), seed, step) for seed, step in ((0, 7), (0, 7), (0, 8), (1, 7))]
    assert torch.equal(again[0].inputs, again[1].inputs)
    assert torch.equal(again[0].mixed.partners, again[1].mixed.partners)
    assert not any(torch.equal(again[0].inputs, other.inputs) for other in again[2:])
    assert torch.equal(batch.inputs, before.inputs) and torch.equal(batch.labels, before.labels)
    kept = batch.inputs.float()
    mix(Batch(kept, batch.labels, 2), both(1.0, None), 0, 7)
    assert torch.equal(kept, before.inputs.float())


def test_with_both_a_coin_decides_once_a_step() -> None:
    cut = []
    for step in range(400):
        batch = batch_of(8, 7, 6, 6)
        mixed = mix(batch, both(1.0, 1.0), 0, step)
        # α = 1 makes a share that mixes two levels to a whole number all but impossible
        whole = [
            bool((mixed.inputs[rows] == mixed.inputs[rows].round()).all()) for rows in (batch.source, batch.target)
        ]
        assert whole[0] == whole[1], "both domains of a step are mixed in the same way"
        cut.append(whole[0])
    assert 160 < sum(cut) < 240  # 4 standard deviations of a fair coin


def test_shares_are_drawn_from_the_beta_distribution() -> None:
    for alpha in (0.2, 5.0):
        shares = [mix(batch_of(0, 2, 2, 2), both(alpha, None), 0, step).mixed.share[0].item() for step in range(1500)]
        assert np.mean(shares) == pytest.approx(0.5, abs=0.05)
        assert np.var(shares) == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.15)


def _mean_of_two_cross_entropies(
    logits: Tensor, labels: Tensor, partners: Tensor, share: Tensor, smoothing: float, weights: Tensor | None
) -> float:
    """Mean of w_y·share·ℓ(y) + w_y'·(1 − share)·ℓ(y'), sample by sample."""
    total = 0.0
    log_p = torch.log(torch.softmax(logits.detach().double(), 1))
    for i in range(len(labels)):
        for label, part in ((int(labels[i]), float(share[i])), (int(partners[i]), 1 - float(share[i]))):
            cross_entropy = -(1 - smoothing) * float(log_p[i, label]) - smoothing * float(log_p[i].mean())
            weight = 1.0 if weights is None else float(weights[label])
            total += part * weight * cross_entropy
    return total / len(labels)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("weights", [None, torch.tensor([0.5, 3.0, 1.0])])
def test_the_objective_of_mixed_samples_is_the_shares_of_both_labels_losses(
    smoothing: float, weights: Tensor | None
) -> None:
    torch.manual_seed(0)
    heads = nn.ModuleDict({"source": classification.head(4, 2), "target": classification.head(4, 3)})
    model: Any = SimpleNamespace(heads=heads, classes={"source": ("a", "b"), "target": ("x", "y", "z")})
    features = Features(torch.randn(9, 4))
    images = torch.zeros(9, 3, 2, 2, dtype=torch.uint8)
    batch = mix(Batch(images, torch.tensor([0, 1, 0, 0, 1, 2, 2, 0, 1]), 4), both(1.0, None), 0, 0)
    objective = Objective(classification, 2.0, domains={"target": DomainLoss(smoothing, weights)})
    losses = objective(model, features, batch)
    expected = [
        _mean_of_two_cross_entropies(
            heads[domain](features[rows]), batch.labels[rows], batch.mixed.partners[rows], batch.mixed.share[rows], *how
        )
        for domain, rows, how in (("source", batch.source, (0.0, None)), ("target", batch.target, (smoothing, weights)))
    ]  # fmt: skip
    assert [losses.source.item(), losses.target.item()] == pytest.approx(expected, rel=1e-5)
    assert losses.total.item() == pytest.approx(expected[0] + 2 * expected[1], rel=1e-5)


def test_unweighted_soft_targets_are_torchs_own_cross_entropy() -> None:
    torch.manual_seed(0)
    head, features = classification.head(4, 3), Features(torch.randn(5, 4))
    soft = torch.softmax(torch.randn(5, 3), 1)
    ours = classification.loss(head, features, soft, label_smoothing=0.1)
    assert ours.item() == pytest.approx(F.cross_entropy(head(features), soft, label_smoothing=0.1).item(), rel=1e-6)


@pytest.mark.parametrize("verb", ["finetune", "pretrain", "baseline"])
def test_every_training_on_images_mixes(
    verb: str, spec: Path, tmp_path: Path, invoke: Invoke, monkeypatch: pytest.MonkeyPatch
) -> None:
    soft: list[bool] = []
    loss = classification.loss

    def watched(head: nn.Module, features: Features, targets: Tensor, **how: Any) -> Tensor:
        soft.append(targets.is_floating_point() and bool(((targets > 0) & (targets < 1)).any()))
        return loss(head, features, targets, **how)

    monkeypatch.setattr(classification, "loss", watched)
    prefix = "" if verb == "finetune" else "pretrain."
    settings = [f"{prefix}augment={{mixup: 1.0, cutmix: 1.0}}", f"{prefix}epochs=1", "source={train: train, val: val}"]
    settings += ["epochs=1", "baseline={epochs: 1}"] if verb == "baseline" else []
    words = [word for text in settings for word in ("--set", text)]
    code, _ = invoke("extract" if verb == "baseline" else verb, spec, *words, "--runs-dir", tmp_path / "runs")
    assert code == 0
    assert any(soft)
    if verb == "finetune":  # source images are augmented only where source.augment asks for it
        assert soft == [False, True] * (len(soft) // 2)
    else:  # the baseline's other arm is trained on features
        assert all(soft) == (verb == "pretrain")


def test_extract_says_that_it_does_not_mix(spec: Path, tmp_path: Path) -> None:
    settings = ["--set", "augment.mixup=0.2", "--set", "epochs=1", "--runs-dir", str(tmp_path / "runs"), "--json"]
    result = CliRunner().invoke(app, ["extract", str(spec), *settings])
    assert json.loads(result.stdout)["exit_code"] == 0
    assert "does not use: augment" in result.stderr
