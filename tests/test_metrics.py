"""The classification meter against scikit-learn, and its interval against a real resampling bootstrap."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn import metrics as sk
from torch import Tensor

from transferctl.tasks.classification import meter


def sample(n: int, classes: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Logits that are right about half the time."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (n,), generator=generator)
    logits = torch.randn(n, classes, generator=generator) + 1.5 * torch.nn.functional.one_hot(labels, classes)
    return logits, labels


def scored(logits: Tensor, labels: Tensor, classes: int) -> dict:
    one = meter([f"c{i}" for i in range(classes)])
    one.update(logits, labels)
    return one.compute()


@pytest.mark.parametrize("classes", [2, 3, 9])
def test_precision_recall_and_f1_agree_with_scikit_learn(classes: int) -> None:
    logits, labels = sample(211, classes)
    result = scored(logits, labels, classes)
    expected = sk.precision_recall_fscore_support(labels, logits.argmax(1), labels=range(classes), zero_division=0)
    for name, values in zip(("precision", "recall", "f1", "support"), expected, strict=True):
        assert [row[name] for row in result["per_class"]] == pytest.approx(values, abs=1e-9)
    means = sk.precision_recall_fscore_support(labels, logits.argmax(1), average="macro", zero_division=0)
    assert [result[f"macro_{name}"] for name in ("precision", "recall", "f1")] == pytest.approx(means[:3], abs=1e-9)


@pytest.mark.parametrize("classes", [2, 9])
def test_accuracy_log_loss_and_confusion_agree_with_scikit_learn(classes: int) -> None:
    logits, labels = sample(211, classes)
    result = scored(logits, labels, classes)
    assert result["accuracy"] == pytest.approx(sk.accuracy_score(labels, logits.argmax(1)), abs=1e-9)
    probabilities = torch.softmax(logits.double(), 1)
    assert result["loss"] == pytest.approx(sk.log_loss(labels, probabilities, labels=range(classes)), abs=1e-9)
    assert result["confusion"] == sk.confusion_matrix(labels, logits.argmax(1), labels=range(classes)).tolist()


def test_top5_accuracy_agrees_with_scikit_learn() -> None:
    logits, labels = sample(211, 9)
    expected = sk.top_k_accuracy_score(labels, logits, k=5, labels=range(9))
    assert expected < 1
    assert scored(logits, labels, 9)["top5_accuracy"] == pytest.approx(expected, abs=1e-9)


def test_top5_accuracy_is_left_out_where_five_guesses_are_all() -> None:
    assert "top5_accuracy" not in scored(*sample(20, 5), 5)


def test_a_class_without_samples_or_predictions_stays_out_of_the_macro_means() -> None:
    logits, labels = sample(60, 3)
    wider = torch.cat([logits, torch.full((60, 1), -100.0)], dim=1)
    with_empty, without = scored(wider, labels, 4), scored(logits, labels, 3)
    assert with_empty["per_class"][3]["support"] == with_empty["per_class"][3]["recall"] == 0
    for name in ("macro_precision", "macro_recall", "macro_f1"):
        assert with_empty[name] == pytest.approx(without[name], abs=1e-12)


def test_merging_parts_equals_one_pass() -> None:
    logits, labels = sample(103, 7)
    whole = scored(logits, labels, 7)
    names = [f"c{i}" for i in range(7)]
    merged = meter(names)
    for part in (slice(0, 1), slice(1, 64), slice(64, 103)):
        other = meter(names)
        other.update(logits[part], labels[part])
        merged.merge(other)
    result = merged.compute()
    assert result.pop("loss") == pytest.approx(whole.pop("loss"), abs=1e-12)
    assert result == whole


def test_batching_changes_nothing() -> None:
    logits, labels = sample(103, 7)
    batched = meter([f"c{i}" for i in range(7)])
    for rows in torch.arange(103).split(10):
        batched.update(logits[rows], labels[rows])
    result, whole = batched.compute(), scored(logits, labels, 7)
    assert result.pop("loss") == pytest.approx(whole.pop("loss"), abs=1e-12)
    assert result == whole


def test_an_empty_meter_has_nothing_to_say() -> None:
    assert meter(["a", "b"]).compute() == {"n": 0}


@pytest.mark.parametrize("n", [40, 400])
def test_the_interval_agrees_with_a_real_resampling_bootstrap(n: int) -> None:
    logits, labels = sample(n, 4)
    right = (logits.argmax(1) == labels).numpy()
    draws = np.random.default_rng(7).integers(0, n, (20_000, n))
    low, high = np.quantile(right[draws].mean(1), [0.025, 0.975])
    result = scored(logits, labels, 4)
    assert 0 < low < result["accuracy"] < high < 1
    assert result["accuracy_low"] == pytest.approx(low, abs=1.01 / n)  # the quantiles are steps of 1/n
    assert result["accuracy_high"] == pytest.approx(high, abs=1.01 / n)


def test_bfloat16_logits_are_scored_in_double_precision() -> None:
    logits, labels = sample(50, 3)
    rounded = logits.bfloat16()
    assert scored(rounded, labels, 3) == scored(rounded.double(), labels, 3)
