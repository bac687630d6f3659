"""Unequal classes: how often each is drawn, and how much each weighs in the loss."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.utils.class_weight import compute_class_weight
from torch import Tensor, nn
from torch.nn import functional as F

from transferctl import loaders, pipeline
from transferctl.contracts import Features
from transferctl.data import Split
from transferctl.device import Compute
from transferctl.inputs import Inputs
from transferctl.loaders import cycle, draws, epoch_batches
from transferctl.preprocess import Preprocessing, training_image
from transferctl.tasks import classification
from transferctl.trainsettings import AugmentSettings

Invoke = Callable[..., tuple[int, dict[str, Any]]]
COUNTS = [(30, 3, 1), (5, 5, 5), (1, 1), (2, 97), (4, 9, 4, 18)]


def _labels(counts: tuple[int, ...]) -> np.ndarray:
    return np.random.default_rng(5).permutation(np.repeat(np.arange(len(counts)), counts))


@pytest.mark.parametrize("counts", COUNTS)
def test_unbalanced_draws_are_one_permutation_a_key(counts: tuple[int, ...]) -> None:
    labels = _labels(counts)
    for seed, epoch in ((0, 0), (3, 8)):
        drawn = draws(labels, False, [seed, epoch])
        assert drawn[:, 0].tolist() == np.random.default_rng([seed, epoch]).permutation(len(labels)).tolist()
        assert not drawn[:, 1].any()
        together = np.concatenate(list(epoch_batches(labels, 4, seed, epoch, False)))
        assert together.tolist() == drawn.tolist()


@pytest.mark.parametrize("counts", COUNTS)
def test_balanced_draws_take_each_class_as_often_as_any_other_up_to_one(counts: tuple[int, ...]) -> None:
    labels = _labels(counts)
    for epoch in range(5):
        drawn = draws(labels, True, [0, epoch])
        assert len(drawn) == len(labels)
        of_class = np.bincount(labels[drawn[:, 0]], minlength=len(counts))
        assert of_class.max() - of_class.min() <= 1


@pytest.mark.parametrize("counts", COUNTS)
def test_members_of_a_class_are_drawn_in_turn(counts: tuple[int, ...]) -> None:
    """None is drawn a second time before all were drawn once, and each draw says how often it was drawn before."""
    labels = _labels(counts)
    drawn = draws(labels, True, [0, 1])
    assert len(set(map(tuple, drawn.tolist()))) == len(drawn)
    for label in range(len(counts)):
        own = drawn[labels[drawn[:, 0]] == label]
        times = Counter(own[:, 0].tolist())
        never = counts[label] - len(times)
        assert max(times.values()) - min([*times.values(), *([0] if never else [])]) <= 1
        for position, n in times.items():
            assert sorted(own[own[:, 0] == position, 1].tolist()) == list(range(n))


def test_which_class_is_drawn_once_more_changes_and_all_is_keyed() -> None:
    labels = _labels((30, 3, 1))
    more = {int(np.bincount(labels[draws(labels, True, [0, epoch])[:, 0]]).argmax()) for epoch in range(30)}
    assert more == {0, 1, 2}
    assert (draws(labels, True, [0, 1]) == draws(labels, True, [0, 1])).all()
    assert not (draws(labels, True, [0, 1]) == draws(labels, True, [1, 1])).all()


@pytest.mark.parametrize("balanced", [False, True])
def test_the_source_cycles_through_passes_of_its_own(balanced: bool) -> None:
    labels = _labels((9, 2))
    stream = cycle(labels, 7, balanced)
    for number in range(3):
        one_pass = [next(stream) for _ in range(11)]
        assert one_pass == [(number, *row) for row in draws(labels, balanced, [7, number, 1]).tolist()]


class _Noise:
    """As many random images as asked for, each its own."""

    reads_files = False

    def read(self, index: int, at_least: int = 0) -> Image.Image:
        return Image.fromarray(np.random.default_rng(index).integers(0, 256, (14, 17, 3)).astype(np.uint8))

    def name(self, index: int) -> str:
        return str(index)


def test_a_sample_that_is_drawn_again_is_augmented_otherwise() -> None:
    dataset: Any = _Noise()
    split = Split("train", dataset, np.arange(10, 30), np.array([0] * 18 + [1] * 2), balanced=True)
    preprocessing, augment = Preprocessing(12, 12), AugmentSettings()
    inputs = Inputs(classification, preprocessing, 0, Compute(torch.device("cpu"), False, ""))
    stream = inputs.training_stream(split, None, {"target": augment}, batch_size=8, epochs=1, seed=0)
    seen: dict[str, list[Tensor]] = {}
    for batch in stream.batches:
        for name, image in zip(batch.names, batch.inputs, strict=True):
            seen.setdefault(name, []).append(image)
    assert len(seen["28"]) == len(seen["29"]) == 5
    for name, images in seen.items():
        assert len({image.numpy().tobytes() for image in images}) == len(images)
        once = training_image(dataset.read(int(name)), preprocessing, augment, (0, 0, 0, int(name)))
        assert any(torch.equal(once, image) for image in images), "the first draw is what it is without balance"


@pytest.mark.parametrize("counts", COUNTS)
def test_class_weights_are_scikit_learns_balanced_ones(counts: tuple[int, ...]) -> None:
    labels, dataset = _labels(counts), None
    split = Split("train", dataset, np.arange(len(labels)), labels)  # type: ignore[arg-type]
    classes = [f"c{i}" for i in range(len(counts))]
    how = pipeline.domain_loss(0.1, "weights", split, classes, Compute(torch.device("cpu"), False, ""))
    expected = compute_class_weight("balanced", classes=np.arange(len(counts)), y=labels)
    assert how.label_smoothing == 0.1
    np.testing.assert_allclose(how.class_weights, expected, rtol=1e-6)
    for balance in ("none", "sampling"):
        assert pipeline.domain_loss(0.1, balance, split, classes, Compute(torch.device("cpu"), False, "")) == (
            type(how)(0.1, None)
        )


def test_classes_without_samples_leave_the_weights_of_the_others_alone() -> None:
    """A pretrained head with classes that the source data here does not have."""
    split = Split("train", None, np.arange(4), np.array([1, 1, 1, 3]))  # type: ignore[arg-type]
    how = pipeline.domain_loss(0.0, "weights", split, list("abcd"), Compute(torch.device("cpu"), False, ""))
    assert how.class_weights[[1, 3]].tolist() == pytest.approx([4 / (2 * 3), 4 / (2 * 1)])


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_the_weighted_loss_is_the_mean_of_the_samples_smoothed_losses_times_their_weights(smoothing: float) -> None:
    torch.manual_seed(0)
    head, features = classification.head(4, 3), Features(torch.randn(8, 4))
    labels, weights = torch.tensor([0, 0, 0, 0, 0, 1, 2, 0]), torch.tensor([0.4, 3.0, 2.0])
    got = classification.loss(head, features, labels, label_smoothing=smoothing, class_weights=weights)
    log_p = head(features).detach().double().log_softmax(1).numpy()
    losses, of_sample = [], [float(weights[label]) for label in labels]
    for row, label in zip(log_p, labels.tolist(), strict=True):
        losses.append(-sum(((1 - smoothing) * (label == c) + smoothing / 3) * row[c] for c in range(3)))
    assert got.item() == pytest.approx(np.mean(np.multiply(losses, of_sample)), rel=1e-6)
    one_hot = F.one_hot(labels, 3).float()
    soft = classification.loss(head, features, one_hot, label_smoothing=smoothing, class_weights=weights)
    assert got.item() == pytest.approx(soft.item(), rel=1e-6)


@pytest.mark.parametrize("batch_size", [1, 8, 32, 1000])
def test_over_an_epoch_each_class_has_the_same_share_whatever_the_batch_size(batch_size: int) -> None:
    """Of the gradient at equal logits, where each sample's has the same size before it is weighted."""
    labels = np.array([0] * 980 + [1] * 20)
    split = Split("train", None, np.arange(1000), labels)  # type: ignore[arg-type]
    how = pipeline.domain_loss(0.0, "weights", split, ["a", "b"], Compute(torch.device("cpu"), False, ""))
    shares = np.zeros(2)
    for drawn in loaders.epoch_batches(labels, batch_size, 0, 0, balanced=False):
        batch = torch.from_numpy(labels[drawn[:, 0]])
        logits = nn.Parameter(torch.zeros(len(batch), 2))
        classification.loss(
            lambda features: features.pooled,
            Features(logits),
            batch,
            class_weights=how.class_weights,  # type: ignore[arg-type]
        ).backward()
        size = logits.grad.abs().sum(1).numpy()
        shares += [size[(batch == label).numpy()].sum() for label in (0, 1)]
    assert shares[0] == pytest.approx(shares[1], rel=0.04)  # batches of 31 and 32


def test_a_rare_classs_weight_does_not_pull_samples_of_the_common_one_through_smoothing() -> None:
    """The logits that minimise the loss of one sample are those of its smoothed label, whatever the weights."""
    logits = nn.Parameter(torch.zeros(1, 2))
    head = lambda features: features.pooled  # noqa: E731
    optimizer = torch.optim.LBFGS([logits], max_iter=100)

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = classification.loss(
            head, Features(logits), torch.tensor([0]), label_smoothing=0.2, class_weights=torch.tensor([0.5, 50.0])
        )  # type: ignore[arg-type]
        value.backward()
        return value

    optimizer.step(loss)
    torch.testing.assert_close(logits.detach().softmax(1), torch.tensor([[0.9, 0.1]]), atol=1e-4, rtol=0)


# -- through the command line ----------------------------------------------------------------------------

TRAININGS = ["extract", "finetune", "L_S of finetune", "pretrain", "baseline", "head_first"]


@pytest.fixture
def unequal(spec: Path, image_folder: Callable[..., Path]) -> Path:
    """Thirty images, three of them of the rare class (the second output)."""
    image_folder("unequal", ants=27, bees=3)
    image_folder("unequal_val", ants=3, bees=3)
    image_folder("equal", moths=4, wasps=4, yaks=4)
    return spec


class _Seen:
    """What the loss was given, by training: labels and class weights."""

    def __init__(self, which: str):
        self.labels: list[int] = []
        self.weights: list[Tensor | None] = []
        self._which, self._loss = which, classification.loss

    def __call__(self, head: nn.Module, features: Features, targets: Tensor, **how: Any) -> Tensor:
        on_images = not features.pooled.is_leaf  # else on features, which were computed before
        own = {"baseline": on_images, "head_first": not on_images, "finetune": on_images}.get(self._which, True)
        if own and head.layers[-1].out_features == 2:  # the unequal domain's
            self.labels += targets.tolist()
            self.weights.append(how["class_weights"])
        return self._loss(head, features, targets, **how)


def _train(which: str, balance: str, spec: Path, runs: Path, invoke: Invoke, patch: pytest.MonkeyPatch) -> _Seen:
    seen = _Seen(which)
    patch.setattr(classification, "loss", seen)
    unequal, equal = f"{{train: unequal, val: unequal_val, balance: {balance}}}", "{train: equal, val: equal}"
    is_source = which in ("pretrain", "L_S of finetune")
    settings = [f"target={equal if is_source else unequal}", "epochs=1", "batch_size=10"]
    settings += [f"source={unequal}", "source.batch_size=10", "pretrain.epochs=1", "epochs=3"] if is_source else []
    settings += {"baseline": ["baseline={epochs: 1}"], "head_first": ["head_first={epochs: 1}"]}.get(which, [])
    verb = {"baseline": "extract", "head_first": "finetune", "L_S of finetune": "finetune"}.get(which, which)
    words = [word for text in settings for word in ("--set", text)]
    code, answer = invoke(verb, spec, *words, "--runs-dir", runs)
    assert code == 0, answer
    return seen


@pytest.mark.parametrize("which", TRAININGS)
def test_sampling_shows_the_rare_class_as_often_as_the_common_one(
    which: str, unequal: Path, tmp_path: Path, invoke: Invoke, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts = {}
    for balance in ("none", "sampling"):
        with monkeypatch.context() as patch:
            seen = _train(which, balance, unequal, tmp_path / "runs", invoke, patch)
        counts[balance] = Counter(seen.labels)
        assert set(seen.weights) == {None}
    passes = sum(counts["none"].values()) / 30
    assert counts["none"] == {0: 27 * passes, 1: 3 * passes}
    assert counts["sampling"] == {0: 15 * passes, 1: 15 * passes}


@pytest.mark.parametrize("which", TRAININGS)
def test_weights_are_in_the_loss_of_every_training(
    which: str, unequal: Path, tmp_path: Path, invoke: Invoke, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = _train(which, "weights", unequal, tmp_path / "runs", invoke, monkeypatch)
    assert Counter(seen.labels)[0] == 9 * Counter(seen.labels)[1]
    expected = compute_class_weight("balanced", classes=np.arange(2), y=[0] * 27 + [1] * 3)
    assert seen.weights
    for weights in seen.weights:
        assert weights is not None
        np.testing.assert_allclose(weights.cpu(), expected, rtol=1e-6)
