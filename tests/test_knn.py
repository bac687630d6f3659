"""Nearest neighbours: against scikit-learn's, each sample left out in turn."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.neighbors import KNeighborsClassifier

from transferctl import knn
from transferctl.contracts import Batch
from transferctl.evidence import Undefined
from transferctl.probe import Samples


def samples(x: np.ndarray, y: np.ndarray, chunk: int = 50) -> Samples:
    features, labels = torch.from_numpy(x.astype(np.float32)), torch.from_numpy(y.astype(np.int64))

    def passes(most: int) -> Iterator[Batch]:
        size = min(chunk, most)
        return (Batch(features[i : i + size], labels[i : i + size]) for i in range(0, len(y), size))

    return Samples(passes, y.astype(np.int32), int(y.max()) + 1, torch.device("cpu"))


def overlapping(n: int = 160, features: int = 8, classes: int = 4, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    y = np.arange(n) % classes
    return random.normal(size=(classes, features))[y] + random.normal(size=(n, features)) + 0.5, y


def scikit(x: np.ndarray, y: np.ndarray, k: int) -> list[int]:
    """Each sample by all others."""
    x = x.astype(np.float32).astype(np.float64)
    model = KNeighborsClassifier(
        k, weights=lambda distance: np.exp((1 - distance) / 0.07), metric="cosine", algorithm="brute"
    )
    others = [np.delete(np.arange(len(y)), i) for i in range(len(y))]
    return [int(model.fit(x[rest], y[rest]).predict(x[i : i + 1])[0]) for i, rest in enumerate(others)]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("chunk", [1, 50, 1000])
def test_it_is_scikit_learns_with_each_sample_left_out(seed: int, chunk: int) -> None:
    x, y = overlapping(seed=seed)
    positions, predicted = knn.predict(samples(x, y, chunk), seed=0)
    assert positions.tolist() == list(range(160)) and predicted.dtype == np.int64
    assert predicted.tolist() == scikit(x, y, 20)
    assert 0.3 < (predicted == y).mean() < 0.95, "neither trivial nor hopeless"


def test_on_digits_it_is_scikit_learns() -> None:
    x, y = load_digits(return_X_y=True)
    x, y = x[:250], y[:250]
    _, predicted = knn.predict(samples(x, y), seed=0)
    assert predicted.tolist() == scikit(x, y, 20) and (predicted == y).mean() > 0.9


def test_fewer_neighbours_are_asked_where_a_class_is_small() -> None:
    x, y = overlapping(160)
    rare = np.where(np.arange(160) < 6, 4, y)
    assert knn.neighbours(rare) == 5
    assert knn.predict(samples(x, rare), seed=0)[1].tolist() == scikit(x, rare, 5)
    assert [knn.neighbours(np.repeat([0, 2], n)) for n in (1, 2, 3, 21, 500)] == [1, 1, 2, 20, 20]


def test_of_many_samples_a_seeded_draw_is_predicted_from_all() -> None:
    x, y = overlapping(400)
    whole = knn.predict(samples(x, y), seed=0)[1]
    positions, predicted = knn.predict(samples(x, y), seed=3, most_queries=60)
    assert len(positions) == 60 and (np.diff(positions) > 0).all()
    assert predicted.tolist() == whole[positions].tolist()
    assert knn.predict(samples(x, y), seed=3, most_queries=60)[0].tolist() == positions.tolist()
    assert knn.predict(samples(x, y), seed=4, most_queries=60)[0].tolist() != positions.tolist()


def test_a_sample_is_not_its_own_neighbour() -> None:
    """Pairs that are alike and of unequal labels: each is predicted as the other."""
    x = np.repeat(np.random.default_rng(0).normal(size=(30, 40)), 2, 0)
    y = np.tile([0, 1], 30)
    x[1::2] += 1e-3
    assert knn.neighbours(y) == 20
    _, predicted = knn.predict(samples(x, np.r_[y[:-2], 2, 2]), seed=0)  # a class of two: one neighbour
    assert predicted[:-2].tolist() == (1 - y[:-2]).tolist()


@pytest.mark.parametrize("factor", [1e-37, 1e37])
def test_the_scale_of_features_does_not_count(factor: float) -> None:
    x, y = overlapping()
    assert knn.predict(samples(x * factor, y), 0)[1].tolist() == knn.predict(samples(x, y), 0)[1].tolist()


def test_odd_data_have_predictions() -> None:
    x, y = overlapping(40)
    for odd in (np.zeros_like(x), np.ones_like(x), np.repeat(x[:4], 10, 0), np.where(y[:, None] == 0, 0, x)):
        predicted = knn.predict(samples(odd, y), 0)[1]
        assert predicted.min() >= 0 and predicted.max() <= 3
    assert knn.predict(samples(x, np.zeros(40, dtype=int)), 0)[1].tolist() == [0] * 40
    assert knn.predict(samples(x[:2], np.array([0, 1])), 0)[1].tolist() == [1, 0]


def test_what_has_no_neighbours_says_so() -> None:
    x, y = overlapping(40)
    with pytest.raises(Undefined, match="no neighbours"):
        knn.predict(samples(x[:1], y[:1]), 0)
    for value in (np.nan, np.inf):
        broken = x.copy()
        broken[33, 2] = value
        with pytest.raises(Undefined, match="not finite"):
            knn.predict(samples(broken, y), 0, most_queries=3)
