"""Final scores against scikit-learn, their intervals against resampling by brute force, temperatures against the
condition that the minimum meets."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn import calibration as sk_calibration
from sklearn import metrics as sk

from transferctl import bootstrap, calibration, evaluation, paired, ranking
from transferctl.tasks import classification


def sample(n: int, classes: int, seed: int = 0, spread: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Logits [n, C] that are right about half the time, and labels, the first classes more often; spread: 1 is a
    calibrated model's."""
    random = np.random.default_rng(seed)
    labels = np.minimum(random.integers(0, classes + 2, n), classes - 1)
    logits = random.normal(size=(n, classes)) + 1.5 * np.eye(classes)[labels]
    return (spread * logits).astype(np.float32), labels


def evaluated(logits: np.ndarray, labels: np.ndarray, temperature: float | None = None, **how: Any) -> dict[str, Any]:
    """In batches of 50."""
    classes = logits.shape[1]
    told = classification.evaluation([f"c{i}" for i in range(classes)], **how)
    for start in range(0, len(labels), 50):
        told.update(*(torch.from_numpy(column[start : start + 50]) for column in (logits, labels)))
    return told.compute(temperature)


def softmax(logits: np.ndarray) -> np.ndarray:
    return torch.softmax(torch.from_numpy(logits).double(), 1).numpy()


@pytest.mark.parametrize("classes", [2, 3, 9])
def test_scores_agree_with_scikit_learn(classes: int) -> None:
    logits, labels = sample(211, classes)
    found, p, predicted, names = evaluated(logits, labels), softmax(logits), logits.argmax(1), range(classes)
    one_hot = np.eye(classes)[labels]
    expected = {
        "balanced_accuracy": sk.balanced_accuracy_score(labels, predicted),
        "macro_f1": sk.f1_score(labels, predicted, average="macro"),
        "weighted_f1": sk.f1_score(labels, predicted, average="weighted"),
        "loss": sk.log_loss(labels, p, labels=names),
        "brier": ((p - one_hot) ** 2).sum(1).mean(),
        "auroc": sk.roc_auc_score(one_hot, p, average="macro"),
        "average_precision": sk.average_precision_score(one_hot, p, average="macro"),
    }
    if classes == 2:
        expected["brier"] = 2 * sk.brier_score_loss(labels, p[:, 1])  # Brier's own sum counts both classes
    if classes > 5:
        expected["top5_accuracy"] = sk.top_k_accuracy_score(labels, p, k=5, labels=names)
    assert {name: found[name] for name in expected} == pytest.approx(expected, abs=1e-9)
    areas = [sk.roc_auc_score(one_hot[:, i], p[:, i]) for i in names]
    precisions = [sk.average_precision_score(one_hot[:, i], p[:, i]) for i in names]
    assert [row["auroc"] for row in found["per_class"]] == pytest.approx(areas, abs=1e-9)
    assert [row["average_precision"] for row in found["per_class"]] == pytest.approx(precisions, abs=1e-9)


def test_top_k_accuracy_agrees_with_scikit_learn_for_every_k_that_is_asked() -> None:
    logits, labels = sample(211, 9)
    found = evaluated(logits, labels, top=(2, 8))
    for k in (2, 5, 8):
        assert found[f"top{k}_accuracy"] == pytest.approx(sk.top_k_accuracy_score(labels, logits, k=k), abs=1e-9)


def test_what_is_calibrated_is_what_logits_over_the_temperature_score() -> None:
    logits, labels = sample(211, 4, spread=3)
    found, cooled = evaluated(logits, labels, 2.5), evaluated((logits / np.float32(2.5)), labels)
    for name in evaluation.CALIBRATED:
        assert found[f"calibrated_{name}"] == pytest.approx(cooled[name], abs=1e-6)
        assert found[f"calibrated_{name}_low"] == pytest.approx(cooled[f"{name}_low"], abs=1e-6)
    assert found["accuracy"] == cooled["accuracy"] and found["temperature"] == 2.5
    assert found["reliability"]["calibrated"] == [
        {key: pytest.approx(value, abs=1e-6) for key, value in row.items()} for row in cooled["reliability"]["raw"]
    ]


@pytest.mark.parametrize("classes", [2, 7])
@pytest.mark.parametrize("temperature", [None, 1.5])
def test_the_names_are_those_that_an_evaluation_finds(classes: int, temperature: float | None) -> None:
    found = evaluated(*sample(90, classes), temperature, top=(3,) if classes > 3 else ())
    of_the_meter = classification.meter([f"c{i}" for i in range(classes)])
    of_the_meter.update(*map(torch.from_numpy, sample(90, classes)))
    scalars = {name for name, value in found.items() if isinstance(value, int | float)} - set(of_the_meter.compute())
    names = evaluation.names(classes, (3,) if classes > 3 else (), calibrated=temperature is not None)
    assert scalars | {"loss", "macro_f1"} | ({"top5_accuracy"} if classes > 5 else set()) == set(names)


def test_no_samples_are_no_scores() -> None:
    assert classification.evaluation(["a", "b"]).compute(1.5) == {"n": 0}
    assert classification.evaluation(["a", "b"]).fitted_temperature() is None


def test_a_class_that_all_samples_have_or_none_is_not_ranked() -> None:
    logits, labels = sample(60, 3)
    labels[labels == 2] = 0
    found = evaluated(logits, labels)
    assert [row["auroc"] is None for row in found["per_class"]] == [False, False, True]
    assert found["auroc"] == pytest.approx(np.mean([row["auroc"] for row in found["per_class"][:2]]))
    assert not {"auroc", "average_precision"} & set(evaluated(logits, np.zeros(60, dtype=np.int64)))


def test_scores_of_more_logits_than_are_kept_leave_out_what_needs_them(monkeypatch: pytest.MonkeyPatch) -> None:
    logits, labels = sample(120, 3)
    whole = evaluated(logits, labels, 2.0)
    monkeypatch.setattr(ranking, "MOST_SCORES", 300)
    found = evaluated(logits, labels, 2.0)
    assert not {"auroc", "calibrated_loss", "temperature"} & set(found)
    assert found == {name: whole[name] for name in found if name not in ("per_class", "reliability")} | {
        "per_class": found["per_class"],
        "reliability": {"raw": whole["reliability"]["raw"]},
    }


# -- intervals ----------------------------------------------------------------------------------------


def brute_force(score: Callable[[np.ndarray], float], n: int, draws: int = 3000) -> np.ndarray:
    random = np.random.default_rng(5)
    return np.array([score(random.integers(n, size=n)) for _ in range(draws)])


def test_intervals_are_those_of_samples_drawn_again_by_brute_force() -> None:
    logits, labels = sample(300, 3)
    found, p, predicted = evaluated(logits, labels), softmax(logits), logits.argmax(1)
    scores: dict[str, Callable[[np.ndarray], float]] = {
        "macro_f1": lambda of: sk.f1_score(labels[of], predicted[of], average="macro"),
        "balanced_accuracy": lambda of: sk.balanced_accuracy_score(labels[of], predicted[of]),
        "loss": lambda of: sk.log_loss(labels[of], p[of], labels=range(3)),
        "auroc": lambda of: sk.roc_auc_score(np.eye(3)[labels[of]], p[of]),
        "average_precision": lambda of: sk.average_precision_score(np.eye(3)[labels[of]], p[of]),
    }
    for name, score in scores.items():
        draws = brute_force(score, 300, 1500)
        low, high = np.quantile(draws, [0.025, 0.975])
        assert (found[f"{name}_low"], found[f"{name}_high"]) == pytest.approx((low, high), abs=0.2 * (high - low)), name
        assert found[f"{name}_low"] < found[name] < found[f"{name}_high"]


def test_the_parts_of_a_draw_are_together_a_draw_of_n_out_of_n(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bootstrap, "PIECE", 4000)
    parts = list(bootstrap.weights(30, 1000))
    assert len(parts) > 3
    whole = np.concatenate([counts for _, counts in parts], axis=1)
    assert whole.shape == (1000, 30) and (whole.sum(axis=1) == 30).all()
    assert whole.mean(axis=0) == pytest.approx(np.ones(30), abs=0.15)
    assert whole.var(axis=0).mean() == pytest.approx(1 - 1 / 30, abs=0.05)  # binomial, n = 30, p = 1/30
    covariance = np.cov(whole.T)[~np.eye(30, dtype=bool)].mean()
    assert covariance == pytest.approx(-1 / 30, abs=0.01)  # across parts as within


def test_intervals_do_not_depend_on_the_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Scores to the last bits, ends within what other draws change."""
    logits, labels = sample(400, 4)
    whole = evaluated(logits, labels, 1.3)
    monkeypatch.setattr(bootstrap, "PIECE", 100_000)
    monkeypatch.setattr(evaluation, "ROWS", 320)
    pieces = evaluated(logits, labels, 1.3)
    for name in evaluation.names(4, (), calibrated=True):
        loose = 0.02 if name.endswith(("_low", "_high")) else 1e-12
        assert pieces[name] == pytest.approx(whole[name], abs=loose), name


def test_the_interval_of_a_score_holds_the_true_value_as_often_as_it_says() -> None:
    """Of data whose true loss is known: 200 samples at a time from a calibrated model."""
    p_true = softmax(sample(100_000, 3, 9)[0])
    truth = -(p_true * np.log(p_true)).sum(1).mean()
    random, inside = np.random.default_rng(1), 0
    for _ in range(200):
        p = p_true[random.integers(len(p_true), size=200)]
        labels = (p.cumsum(1) < random.random(200)[:, None]).sum(1)
        found = evaluated(np.log(p).astype(np.float32), labels)
        inside += found["loss_low"] <= truth <= found["loss_high"]
    assert 0.9 <= inside / 200 <= 0.99


def test_the_interval_of_a_calibration_error_is_not_pushed_up_twice() -> None:
    """Resampling adds the noise of bins once more: percentiles of a calibrated model's ECE lie above the ECE itself."""
    logits, labels = sample(200, 3)
    p = softmax(logits)
    labels = (p.cumsum(1) < np.random.default_rng(0).random(200)[:, None]).sum(1)
    found, confidence, right = evaluated(logits, labels), p.max(1), p.argmax(1) == labels

    def ece(of: np.ndarray) -> float:
        widths = (np.flatnonzero((confidence[of] > i / 15) & (confidence[of] <= (i + 1) / 15)) for i in range(15))
        return ece_by_loops(confidence[of], right[of], widths)

    low, high = np.quantile(brute_force(ece, 200, 1000), [0.025, 0.975])
    expected = (max(2 * found["ece"] - high, 0), 2 * found["ece"] - low)
    assert (found["ece_low"], found["ece_high"]) == pytest.approx(expected, abs=0.2 * (high - low))


def test_ranking_takes_weights_as_scikit_learn_does() -> None:
    """Also where half of all probabilities are equal, which count half."""
    logits, labels = sample(150, 3)
    p = softmax(np.round(logits))
    weights = next(counts for _, counts in bootstrap.weights(150, 200))
    found = [ranking._areas(*ranked, weights[:20].astype(float)) for ranked in ranking._ranked(p, labels)]
    for number, (areas, precisions) in enumerate(found):
        own = labels == number
        for draw in range(20):
            w = weights[draw]
            assert areas[draw] == pytest.approx(sk.roc_auc_score(own, p[:, number], sample_weight=w), abs=1e-9)
            expected = sk.average_precision_score(own, p[:, number], sample_weight=w)
            assert precisions[draw] == pytest.approx(expected, abs=1e-9)


# -- calibration --------------------------------------------------------------------------------------


def ece_by_loops(confidence: np.ndarray, right: np.ndarray, groups: Iterator[np.ndarray]) -> float:
    return sum(len(g) / len(right) * abs(right[g].mean() - confidence[g].mean()) for g in groups if len(g))


def test_ece_is_that_of_its_definition_for_both_kinds_of_bins() -> None:
    logits, labels = sample(331, 4, spread=3)
    found = evaluated(logits, labels)
    confidence, right = softmax(logits).max(1), logits.argmax(1) == labels
    widths = (np.flatnonzero((confidence > i / 15) & (confidence <= (i + 1) / 15)) for i in range(15))
    assert found["ece"] == pytest.approx(ece_by_loops(confidence, right, widths), abs=1e-9)
    masses = iter(np.array_split(np.argsort(confidence, kind="stable"), 15))
    assert found["ece_mass"] == pytest.approx(ece_by_loops(confidence, right, masses), abs=1e-9)


def test_the_reliability_diagram_agrees_with_scikit_learn() -> None:
    logits, labels = sample(331, 4, spread=3)
    bins = evaluated(logits, labels)["reliability"]["raw"]
    right, confidence = logits.argmax(1) == labels, softmax(logits).max(1)
    shares, means = sk_calibration.calibration_curve(right, confidence, n_bins=15)
    assert [row["accuracy"] for row in bins] == pytest.approx(shares, abs=1e-9)
    assert [row["confidence"] for row in bins] == pytest.approx(means, abs=1e-9)
    assert sum(row["n"] for row in bins) == 331


@pytest.mark.parametrize("spread", [0.4, 1.0, 4.0])
def test_the_temperature_is_where_the_loss_has_no_slope(spread: float) -> None:
    """d/d(1/T) of the mean loss is the mean logit that is expected less that of the label."""
    logits, labels = sample(500, 5, spread=spread)
    t = calibration.temperature(logits, labels)
    p = softmax(logits.astype(np.float64) / t)
    own = logits[np.arange(500), labels].astype(np.float64)
    assert (p * logits).sum(1).mean() == pytest.approx(own.mean(), abs=1e-5 * spread)


def test_the_temperature_finds_the_scale_that_logits_were_multiplied_by() -> None:
    logits, labels = sample(2000, 5)
    ratio = calibration.temperature(3 * logits, labels) / calibration.temperature(logits, labels)
    assert ratio == pytest.approx(3, rel=1e-6)


def test_a_temperature_that_has_no_minimum_stays_at_the_bound() -> None:
    labels = np.arange(20) % 2
    assert calibration.temperature(np.eye(2)[labels], labels) == pytest.approx(calibration.LOWEST, rel=1e-4)
    assert calibration.temperature(np.eye(2)[1 - labels], labels) == pytest.approx(calibration.HIGHEST, rel=1e-4)


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{", '{"checkpoint": "step-1", "temperature": null}', '{"checkpoint": "step-1", "temperature": 1e9}',
     '{"checkpoint": "step-1", "temperature": true}', '{"checkpoint": "step-1", "temperature": NaN}',
     '{"checkpoint": "step-2", "temperature": 1.5}'],
)  # fmt: skip
def test_a_calibration_that_lies_or_is_of_another_checkpoint_is_none(text: str, tmp_path: Path) -> None:
    (tmp_path / calibration.FILE).write_text(text)
    assert calibration.temperature_of(tmp_path, "step-1") is None
    (tmp_path / calibration.FILE).write_text(json.dumps(calibration.description("step-1", 1.5, 9)))
    assert calibration.temperature_of(tmp_path, "step-1") == 1.5


# -- two models on the same samples -------------------------------------------------------------------


def test_mcnemar_is_the_exact_binomial_test() -> None:
    """9 gained, 1 lost: twice the chance of at most 1 of 10, 2·(1 + 10)/1024."""
    before, after = np.array([True] * 21 + [False] * 9), np.array([True] * 20 + [False] + [True] * 9)
    assert paired.mcnemar(before, after) == {"gained": 9, "lost": 1, "mcnemar_p": pytest.approx(22 / 1024)}
    assert paired.mcnemar(before, before) == {"gained": 0, "lost": 0, "mcnemar_p": 1.0}
