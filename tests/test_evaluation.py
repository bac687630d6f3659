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
from scipy import optimize
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
    names = evaluation.names(90, classes, (3,) if classes > 3 else (), calibrated=temperature is not None)
    assert scalars | {"loss", *evaluation.MEANS} | ({"top5_accuracy"} if classes > 5 else set()) == set(names)


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
    """Of what is biased where samples are few, the basic bootstrap's: the draws' ends turned round the score."""
    logits, labels = sample(300, 3)
    found, p, predicted = evaluated(logits, labels), softmax(logits), logits.argmax(1)
    scores: dict[str, Callable[[np.ndarray], float]] = {
        "balanced_accuracy": lambda of: sk.balanced_accuracy_score(labels[of], predicted[of]),
        "macro_precision": lambda of: sk.precision_score(labels[of], predicted[of], average="macro"),
        "loss": lambda of: sk.log_loss(labels[of], p[of], labels=range(3)),
        "auroc": lambda of: sk.roc_auc_score(np.eye(3)[labels[of]], p[of]),
        "macro_f1": lambda of: sk.f1_score(labels[of], predicted[of], average="macro"),
        "average_precision": lambda of: sk.average_precision_score(np.eye(3)[labels[of]], p[of]),
    }
    for name, score in scores.items():
        low, high = np.quantile(brute_force(score, 300, 1000), [0.025, 0.975])
        ends = (2 * found[name] - high, 2 * found[name] - low) if name in evaluation.BIASED else (low, high)
        assert (found[f"{name}_low"], found[f"{name}_high"]) == pytest.approx(ends, abs=0.2 * (high - low)), name
        assert found[f"{name}_low"] < found[name] < found[f"{name}_high"]


def test_where_every_sample_is_right_the_interval_is_the_exact_one() -> None:
    """16 of 16 right: at least 0.025^(1/16) = 79.4 % are, of all (Clopper & Pearson); draws would say 100 to 100."""
    labels = np.arange(16) % 2
    found = evaluated(4 * np.eye(2, dtype=np.float32)[labels], labels)
    for name in ("accuracy", "balanced_accuracy", "macro_f1", "weighted_f1"):
        assert (found[f"{name}_low"], found[f"{name}_high"]) == pytest.approx((0.025 ** (1 / 16), 1)), name
    wrong = evaluated(4 * np.eye(2, dtype=np.float32)[1 - labels], labels)
    assert (wrong["accuracy_low"], wrong["accuracy_high"]) == pytest.approx((0, 1 - 0.025 ** (1 / 16)))
    assert "auroc_low" not in found and found["auroc"] == 1  # no draw says how it could be otherwise


@pytest.mark.parametrize("n", [1, 2, 3])
def test_few_samples_are_no_error(n: int) -> None:
    logits, labels = sample(n, 4)
    found = evaluated(logits, labels, 1.5)
    assert 0 <= found["accuracy_low"] <= found["accuracy"] <= found["accuracy_high"] <= 1


def test_of_few_samples_a_class_the_interval_holds_the_true_value_more_often_than_percentiles() -> None:
    """50 classes of 4 samples, against the scores of 40,000: resampling repeats the bias of F1 and average precision."""
    random, inside = np.random.default_rng(0), dict.fromkeys(("macro_f1", "average_precision"), 0)
    labels = np.arange(40_000) % 50
    logits = (random.normal(size=(40_000, 50)) + 2.5 * np.eye(50)[labels]).astype(np.float32)
    truth, percentiles = evaluated(logits, labels), dict(inside)
    for _ in range(20):
        rows = np.concatenate([random.choice(np.flatnonzero(labels == c), 4, replace=False) for c in range(50)])
        found = evaluated(logits[rows], labels[rows])
        for name in inside:
            low, high = found[f"{name}_low"], found[f"{name}_high"]
            assert low <= found[name] <= high
            inside[name] += low <= truth[name] <= high
            percentiles[name] += 2 * found[name] - high <= truth[name] <= 2 * found[name] - low
    assert all(inside[name] >= 15 and inside[name] > percentiles[name] for name in inside), (inside, percentiles)


def test_a_draw_that_tells_few_ranks_apart_has_the_same_interval(monkeypatch: pytest.MonkeyPatch) -> None:
    logits, labels = sample(800, 4)
    whole = evaluated(logits, labels)
    monkeypatch.setattr(ranking, "GROUPS", 100)
    found = evaluated(logits, labels)
    for name in ("auroc", "average_precision"):
        assert found[name] == whole[name]
        for end in ("_low", "_high"):
            assert found[name + end] == pytest.approx(whole[name + end], abs=2e-3)


def test_intervals_that_would_take_minutes_are_not_promised(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranking, "WORK", 300 * 3 * bootstrap.FEWEST_DRAWS - 1)
    logits, labels = sample(300, 3)
    found, names = evaluated(logits, labels), evaluation.names(300, 3, (), calibrated=False)
    assert "auroc" in found and "auroc" in names
    assert "auroc_low" not in found and "auroc_low" not in names


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
    for name in evaluation.names(400, 4, (), calibrated=True):
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
    weights = next(counts for _, counts in bootstrap.weights(150, 200))[:20]
    for number, ranked in enumerate(ranking._ranked(p, labels, 150)):
        areas, precisions = ranking._areas(*ranking._sums(ranked, weights.T.astype(np.float32)))
        own = labels == number
        for draw, w in enumerate(weights):
            assert areas[draw] == pytest.approx(sk.roc_auc_score(own, p[:, number], sample_weight=w), abs=1e-9)
            expected = sk.average_precision_score(own, p[:, number], sample_weight=w)
            assert precisions[draw] == pytest.approx(expected, abs=1e-9)


def test_probabilities_that_are_rounded_to_1_are_ranked_by_what_they_were() -> None:
    """Two classes rank by their margin; 60 times as large, most probabilities are 1 or 0."""
    logits, labels = sample(400, 2)
    plain, sharp = evaluated(logits, labels), evaluated(60 * logits, labels)
    assert (softmax(60 * logits) == 1).mean() > 0.2
    assert sharp["auroc"] == pytest.approx(plain["auroc"], abs=1e-12)
    margin = logits[:, 1].astype(np.float64) - logits[:, 0]
    assert plain["auroc"] == pytest.approx(sk.roc_auc_score(labels == 1, margin), abs=1e-9)


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
def test_the_temperature_has_the_least_loss(spread: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """By scipy's minimiser; and in small pieces the same."""
    logits, labels = sample(500, 5, spread=spread)

    def loss(t: float) -> float:
        return float(sk.log_loss(labels, softmax(logits.astype(np.float64) / t), labels=range(5)))

    expected = optimize.minimize_scalar(loss, bounds=(0.1, 10), method="bounded", options={"xatol": 1e-9}).x
    assert calibration.temperature(logits, labels) == pytest.approx(expected, rel=1e-5)
    monkeypatch.setattr(calibration, "PIECE", 100)
    assert calibration.temperature(logits, labels) == pytest.approx(expected, rel=1e-5)


def test_the_temperature_finds_the_scale_that_logits_were_multiplied_by() -> None:
    logits, labels = sample(2000, 5)
    one, three = (calibration.temperature(scale * logits, labels) for scale in (1, 3))
    assert one and three and three / one == pytest.approx(3, rel=1e-6)


def test_a_temperature_that_validation_data_cannot_say_is_none() -> None:
    """All are right, so that a smaller T is always better; all are wrong, so that a larger one is; almost so."""
    labels = np.arange(60) % 2
    assert calibration.temperature(np.eye(2)[labels], labels) is None
    assert calibration.temperature(np.eye(2)[1 - labels], labels) is None
    assert calibration.temperature(0.01 * np.eye(2)[labels] + [[0.0, 0.001]], labels) is None
    assert calibration.temperature(np.array([[1.0, 2.0]]), np.array([1])) is None


def test_equal_confidences_are_in_one_bin() -> None:
    """However the samples are ordered."""
    confidence = np.array([0.5] * 40 + [0.9] * 20)
    places = calibration.equal_mass(confidence)
    assert len(set(places[:40])) == 1 and len(set(places[40:])) == 1
    order = np.random.default_rng(0).permutation(60)
    assert (calibration.equal_mass(confidence[order]) == places[order]).all()


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
