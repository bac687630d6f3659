"""Transferability scores: each against a direct computation by other means; then what holds for every one."""

from __future__ import annotations

import itertools
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from scipy import optimize, special, stats
from sklearn.covariance import LedoitWolf
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import mutual_info_score

from transferctl import moments, plugins
from transferctl.contracts import Batch
from transferctl.evidence import Evidence, Undefined
from transferctl.probe import Samples
from transferctl.scores import gbc, hscore, leep, logme, nce, transrate

SCORES = {module.__name__.rsplit(".", 1)[1]: module for module in plugins.modules("scores")}
OF_FEATURES = [name for name, module in SCORES.items() if not module.NEEDS_SOURCE_HEAD]
OF_HEADS = [name for name, module in SCORES.items() if module.NEEDS_SOURCE_HEAD]


@dataclass(frozen=True)
class Data:
    """features: float32 [n, D]; labels: int32 [n], as splits have them; source: float32 [n, Z]."""

    features: np.ndarray
    labels: np.ndarray
    source: np.ndarray

    def __getitem__(self, rows: np.ndarray) -> Data:
        return Data(self.features[rows], self.labels[rows], self.source[rows])

    def onehot(self) -> np.ndarray:
        """float64 [C, n], of the classes that there are."""
        return (np.unique(self.labels)[:, None] == self.labels).astype(np.float64)

    def evidence(self, chunk: int = 64) -> Evidence:
        """In chunks, so that sums go over several."""
        features, source = torch.from_numpy(self.features), torch.from_numpy(self.source)
        labels = torch.from_numpy(self.labels.astype(np.int64))

        def passes(most: int) -> Iterator[Batch]:
            size = min(chunk, most)
            return (Batch(features[i : i + size], labels[i : i + size]) for i in range(0, len(labels), size))

        samples = Samples(passes, self.labels, int(self.labels.max()) + 1, torch.device("cpu"))
        return Evidence(samples, lambda: source.split(chunk))


def data(n: int = 150, features: int = 9, classes: int = 4, *, rank: int | None = None, seed: int = 0) -> Data:
    """Classes that overlap, of unequal sizes, on features of unequal means; a source head of 6 classes that knows of
    them what two features say."""
    random = np.random.default_rng(seed)
    y = random.choice(classes, n, p=np.arange(1, classes + 1) / sum(range(classes + 1)))
    y[:classes] = np.arange(classes)
    x = random.normal(size=(classes, features))[y] + 1.5 * random.normal(size=(n, features))
    if rank:
        x = x @ random.normal(size=(features, rank)) @ random.normal(size=(rank, features))
    source = special.softmax(x[:, :2] @ random.normal(size=(2, 6))[:features], 1)
    x = x + random.normal(size=features) * (rank is None)
    return Data(x.astype(np.float32), y.astype(np.int32), source.astype(np.float32))


@cache
def digits(n: int = 300) -> Data:
    """Pixels of handwritten digits 5 to 9, some of them black in all; a head trained on 0 to 4."""
    pixels, y = load_digits(return_X_y=True)
    pixels = pixels.astype(np.float32)
    head = LogisticRegression(C=0.01, max_iter=10_000).fit(pixels[y < 5], y[y < 5])
    x, y = pixels[y >= 5][:n], y[y >= 5][:n] - 5
    return Data(x, y.astype(np.int32), head.predict_proba(x).astype(np.float32))


SHAPES: dict[str, Any] = {
    "n > D": data,
    "n < D": lambda: data(40, 70),
    "n = D": lambda: data(50, 50, 3),
    "rank 5, n > D": lambda: data(90, 30, 3, rank=5),
    "rank 5, n < D": lambda: data(30, 60, 3, rank=5),
    "offset": lambda: moved(data(), 300),
    "small": lambda: scaled(data(), 1e-6),
    "huge": lambda: scaled(data(), 1e15),
    "digits": digits,
    "digits, n < D": lambda: digits(45),
}
shapes = pytest.mark.parametrize("shape", SHAPES)


def scaled(some: Data, factor: float) -> Data:
    return replace(some, features=some.features * np.float32(factor))


def moved(some: Data, offset: float) -> Data:
    return replace(some, features=some.features + np.float32(offset))


# -- LogME: the log marginal likelihood ----------------------------------------------------------------


def log_normal(y: np.ndarray, features: np.ndarray, alpha: float, beta: float) -> float:
    """1/n ln N(y; 0, I/β + F Fᵀ/α), from the covariance of all samples."""
    covariance = np.eye(len(y)) / beta + features @ features.T / alpha
    return float(stats.multivariate_normal.logpdf(y, cov=covariance)) / len(y)


@shapes
def test_logme_is_the_log_marginal_likelihood_of_the_labels(shape: str) -> None:
    some = SHAPES[shape]()
    found, x = logme.fit(some.evidence()), some.features.astype(np.float64)
    exact = np.array([log_normal(y, x, a, b) for y, a, b in zip(some.onehot(), *_numbers(found), strict=True)])
    error = np.abs(found.log_evidence.numpy() - exact)
    assert (error <= 1e-6 * np.minimum(1, np.abs(exact))).all()
    assert logme.score(some.evidence()) == pytest.approx(exact.mean(), abs=1e-6)


@shapes
def test_no_other_alpha_and_beta_make_the_labels_likelier(shape: str) -> None:
    """scipy's search, on a singular value decomposition of the features, from five starts; steps near by, too."""
    some = SHAPES[shape]()
    found = logme.fit(some.evidence())
    left, singular, _ = np.linalg.svd(some.features.astype(np.float64), full_matrices=True)
    squared = np.pad(singular**2, (0, len(left) - len(singular)))

    for y, alpha, beta, best in zip(some.onehot(), *_numbers(found), found.log_evidence.tolist(), strict=True):
        projected = (left.T @ y) ** 2

        def unlikely(logs: np.ndarray, projected: np.ndarray = projected) -> float:
            variance = np.exp(-logs[1]) + squared * np.exp(-logs[0])
            return float(np.mean(np.log(2 * np.pi * variance) + projected / variance) / 2)

        here = np.log([alpha, beta])
        assert unlikely(here) == pytest.approx(-best, rel=1e-7, abs=1e-7)
        for step in np.random.default_rng(0).normal(size=(20, 2)) * 0.1:
            assert unlikely(here + step) >= -best - 1e-8
        for start in (here, *(np.log([scale * squared.max() / len(y), 10.0]) for scale in (1e-6, 1e-3, 1.0, 1e3))):
            other = optimize.minimize(unlikely, start, method="Nelder-Mead", options={"xatol": 1e-7, "fatol": 1e-11})
            assert other.fun >= -best - 1e-7


def _numbers(found: logme.Fitted) -> tuple[list[float], list[float]]:
    return found.alpha.tolist(), found.beta.tolist()


@pytest.mark.parametrize("noise", [0.1, 2.0])
def test_of_two_maxima_logme_has_the_higher(noise: float) -> None:
    """Half the labels' variance lies along a large feature, the rest along a small one that takes large weights: worth
    it where that one has little noise."""
    random = np.random.default_rng(0)
    y = np.arange(60) % 2
    rest = random.permutation(60) % 2
    x = np.stack([1000.0 * (y + rest), y - rest + noise * random.normal(size=60)], 1).astype(np.float32)
    found = logme.fit(replace(data(60), features=x, labels=y.astype(np.int32)).evidence())
    left, singular, _ = np.linalg.svd(x.astype(np.float64))
    ratios = np.logspace(-12, 12, 2000) * singular[0] ** 2
    covariance = np.array([np.r_[1 + singular**2 / ratio, np.ones(58)] for ratio in ratios])
    unfitted = (np.square(left.T @ y) / covariance).mean(1)
    likely = -(np.log(2 * np.pi * unfitted) + 1 + np.log(covariance).mean(1)) / 2
    peaks = np.flatnonzero((likely[1:-1] > likely[:-2] + 1e-9) & (likely[1:-1] > likely[2:] + 1e-9)) + 1
    assert len(peaks) == 2 and (likely[peaks[0]] > likely[peaks[1]]) == (noise < 1), "each is the higher once"
    assert float(found.log_evidence[1]) == pytest.approx(likely.max(), abs=1e-4)
    assert float(found.log_evidence[1]) >= likely.max() - 1e-12


def test_logme_ends_where_the_papers_iteration_does() -> None:
    """α ← γ/‖m‖², β ← (n − γ)/‖Fm − y‖², with m the posterior mean and γ the number of weights that are determined."""
    some = data(200, 8)
    x, found = some.features.astype(np.float64), logme.fit(some.evidence())
    eigenvalues = np.linalg.eigvalsh(x.T @ x)
    for y, *ours in zip(some.onehot(), *_numbers(found), strict=True):
        alpha = beta = 1.0
        for _ in range(500):
            mean = beta * np.linalg.solve(alpha * np.eye(8) + beta * x.T @ x, x.T @ y)
            gamma = (beta * eigenvalues / (alpha + beta * eigenvalues)).sum()
            alpha, beta = gamma / (mean @ mean), (len(y) - gamma) / ((x @ mean - y) ** 2).sum()
        assert ours == pytest.approx([alpha, beta], rel=1e-6)


def test_logme_of_features_that_determine_the_labels_is_finite_and_above_all_others() -> None:
    some = data(120, 4, 4)
    perfect = replace(some, features=np.eye(4, dtype=np.float32)[some.labels])
    nearly = replace(perfect, features=perfect.features + 0.01 * some.features)
    found = [logme.score(each.evidence()) for each in (some, nearly, perfect)]
    assert found == sorted(found) and np.isfinite(found).all() and found[2] > 10


def test_logme_of_features_that_say_nothing_is_that_of_no_features() -> None:
    """α → ∞ is within reach: the evidence is then that of noise alone."""
    some = data(60, 3, 2)
    y = some.onehot()
    silent = replace(some, features=np.zeros_like(some.features))
    alone = [-0.5 * (np.log(2 * np.pi * (one @ one) / 60) + 1) for one in y]
    assert logme.score(silent.evidence()) == pytest.approx(np.mean(alone), abs=1e-12)


# -- LEEP and NCE: through the source head -------------------------------------------------------------


@pytest.mark.parametrize("some", [data(), data(12, 3, 5), digits()], ids=["data", "few", "digits"])
def test_leep_is_its_double_sum(some: Data) -> None:
    source = some.source.astype(np.float64)
    source /= source.sum(1, keepdims=True)
    total = 0.0
    for i, label in enumerate(some.labels):
        likelihood = 0.0
        for z in range(source.shape[1]):
            likelihood += source[some.labels == label, z].sum() / source[:, z].sum() * source[i, z]
        total += np.log(likelihood)
    assert leep.score(some.evidence()) == pytest.approx(total / len(source), rel=1e-12)


@pytest.mark.parametrize("some", [data(), data(12, 3, 5), digits()], ids=["data", "few", "digits"])
def test_nce_is_scikit_learns_mutual_information_less_the_labels_entropy(some: Data) -> None:
    entropy = stats.entropy(np.bincount(some.labels))
    expected = mutual_info_score(some.labels, some.source.argmax(1)) - entropy
    assert nce.score(some.evidence()) == pytest.approx(expected, rel=1e-10)
    assert -entropy <= nce.score(some.evidence()) <= 0


@pytest.mark.parametrize("module", [leep, nce])
def test_a_head_that_knows_the_labels_scores_0_and_one_that_knows_nothing_minus_their_entropy(
    module: ModuleType,
) -> None:
    some = data(90, classes=3)
    knows = replace(some, source=np.eye(7, dtype=np.float32)[some.labels + 2])
    nothing = replace(some, source=np.full((90, 7), 1 / 7, dtype=np.float32))
    assert module.score(knows.evidence()) == 0
    entropy = stats.entropy(np.bincount(some.labels))
    assert module.score(nothing.evidence()) == pytest.approx(-entropy, rel=1e-12)


@pytest.mark.parametrize("seed", range(20))
def test_leep_is_at_most_0_where_float32_sums_to_more_than_1(seed: int) -> None:
    random = np.random.default_rng(seed)
    source = special.softmax(random.normal(size=(40, 1000)) * 3, 1).astype(np.float32) * np.float32(1 + 1e-6)
    own = replace(data(40), source=source, labels=np.repeat([0, 1], 20).astype(np.int32))
    assert leep.score(own.evidence()) <= 0


# -- H-score, TransRate, GBC ---------------------------------------------------------------------------


@shapes
def test_the_h_score_is_that_of_scikit_learns_ledoit_wolf_covariance(shape: str) -> None:
    some = SHAPES[shape]()
    x = some.features.astype(np.float64)
    estimate = LedoitWolf().fit(x)
    means = np.stack([x[some.labels == label].mean(0) for label in some.labels]) - x.mean(0)
    between = means.T @ means / len(x)
    # of the covariance's scale, so that numpy inverts small and huge ones alike
    scale = np.trace(estimate.covariance_) / x.shape[1]
    expected = (1 - estimate.shrinkage_) * np.trace(np.linalg.solve(estimate.covariance_ / scale, between / scale))
    assert hscore.score(some.evidence()) == pytest.approx(expected, rel=1e-7)
    assert 0 <= hscore.score(some.evidence()) <= some.labels.max()


@pytest.mark.parametrize("features", [1, 3, 200])
def test_the_h_score_of_features_that_determine_the_labels_comes_near_its_bound(features: int) -> None:
    some = data(3000, features, 2)
    shift = np.float32(100) * some.labels[:, None]
    found = hscore.score(replace(some, features=some.features + shift).evidence())
    assert 0.95 < found <= 1


@shapes
def test_transrate_is_its_log_determinants(shape: str) -> None:
    some = SHAPES[shape]()
    z = some.features.astype(np.float64)
    z -= z.mean(0)
    z /= np.sqrt((z**2).sum(1).mean())

    def rate(rows: np.ndarray) -> float:
        return float(np.linalg.slogdet(np.eye(z.shape[1]) + rows.T @ rows / (len(rows) * 1e-4))[1] / 2)

    within = sum((some.labels == c).mean() * rate(z[some.labels == c]) for c in np.unique(some.labels))
    assert transrate.score(some.evidence()) == pytest.approx(rate(z) - within, rel=1e-7)


@pytest.mark.parametrize("seed", range(10))
def test_transrate_is_at_least_0_for_classes_of_unequal_sizes(seed: int) -> None:
    """Labels that say nothing, nine in ten of one class: by 1/C in place of n_c/n it would be below 0."""
    random = np.random.default_rng(seed)
    some = replace(data(400, 5, 2), labels=(random.random(400) < 0.9).astype(np.int32))
    assert 0 <= transrate.score(some.evidence()) < 0.2


@pytest.mark.parametrize("room", [1, 1000, 2500])
def test_transrate_does_not_depend_on_how_many_classes_a_pass_takes(room: int, monkeypatch: pytest.MonkeyPatch) -> None:
    some = data(300, 20, 6)
    whole = transrate.score(some.evidence())
    groups = transrate.groups
    monkeypatch.setattr(transrate, "groups", lambda counts, features: groups(counts, features, room))
    assert len(list(transrate.groups([len(some.labels) // 6] * 6, 20))) > 1
    assert transrate.score(some.evidence()) == pytest.approx(whole, rel=1e-12)


def test_classes_are_grouped_to_fit() -> None:
    """Rows of a class of fewer samples than features; else its scatter and as many rows waiting to be added."""
    assert list(transrate.groups([2, 0, 3, 9, 1], 4, room=20)) == [[0, 2], [3], [4]]
    assert list(transrate.groups([2, 0, 3, 9, 1], 4, room=1)) == [[0], [2], [3], [4]]
    assert list(transrate.groups([2, 0, 3, 9, 1], 4, room=1000)) == [[0, 2, 3, 4]]


@pytest.mark.parametrize("shape", [*SHAPES, "D > 64"])
def test_gbc_is_its_sum_over_pairs_of_classes(shape: str) -> None:
    """The general distance of two Gaussians, by log determinants, on scikit-learn's principal components."""
    some = data(400, 100, 5) if shape == "D > 64" else SHAPES[shape]()
    x = some.features.astype(np.float64) / np.abs(some.features).max()
    rank = np.linalg.matrix_rank(x - x.mean(0), tol=1e-4)  # float32 rounds what is of lower rank
    z = PCA(min(64, rank)).fit_transform(x)
    of_class = [z[some.labels == c] for c in np.unique(some.labels)]
    gaussians = [(rows.mean(0), np.eye(z.shape[1]) * rows.var(0).mean()) for rows in of_class]
    total = 0.0
    for (mean, covariance), (other, other_covariance) in itertools.permutations(gaussians, 2):
        both = (covariance + other_covariance) / 2
        distance = (mean - other) @ np.linalg.solve(both, mean - other) / 8
        logs = [np.linalg.slogdet(matrix)[1] for matrix in (both, covariance, other_covariance)]
        total += np.exp(-distance - 0.5 * (logs[0] - (logs[1] + logs[2]) / 2))
    assert gbc.score(some.evidence()) == pytest.approx(-total, rel=1e-7)
    assert -len(of_class) * (len(of_class) - 1) <= gbc.score(some.evidence()) <= 0


def test_a_class_of_one_sample_overlaps_with_no_other_in_gbc() -> None:
    some = data(60, 5, 3)
    first = replace(some, labels=np.where(np.arange(60) == 7, 3, some.labels).astype(np.int32))
    without = some[np.arange(60) != 7]
    assert gbc.score(first.evidence()) == pytest.approx(gbc.score(without.evidence()), rel=0.1)


def test_moments_keep_a_small_spread_about_a_large_mean() -> None:
    """Against numpy on what float32 leaves of it; both where rows are kept and where their scatter is."""
    for n, features in ((200, 5), (20, 40)):
        some = moved(scaled(data(n, features), 0.01), 1000)
        x = some.features.astype(np.float64)
        found = some.evidence(chunk=7).moments
        about = x - x.mean(0)
        scatter = found.scatter if found.scatter is not None else found.rows.T @ found.rows  # type: ignore[union-attr]
        assert scatter.numpy() == pytest.approx(about.T @ about, rel=1e-8, abs=1e-10)
        assert found.fourth == pytest.approx(((about**2).sum(1) ** 2).sum(), rel=1e-9)
        vectors = found.spectrum.vectors.numpy()
        assert vectors * found.spectrum.values.numpy() @ vectors.T == pytest.approx(about.T @ about, abs=1e-10)
        assert vectors.T @ vectors == pytest.approx(np.eye(vectors.shape[1]), abs=1e-8)


def test_a_scatter_added_in_blocks_of_columns_is_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(moments, "BLOCK", 4)
    some = data(80, 11)
    x = some.features.astype(np.float64)
    found = some.evidence().moments.scatter
    assert found is not None and found.numpy() == pytest.approx(len(x) * np.cov(x.T, bias=True), rel=1e-10)


# -- what holds for every score ------------------------------------------------------------------------

every_score = pytest.mark.parametrize("name", SCORES)


def test_the_folder_has_the_scores() -> None:
    assert set(SCORES) == {"gbc", "hscore", "leep", "logme", "nce", "transrate"}
    assert len({module.LABEL for module in SCORES.values()}) == len(SCORES)


@every_score
def test_it_says_what_it_is_and_whose(name: str) -> None:
    first, _, rest = str(SCORES[name].__doc__).partition("\n")
    assert first.startswith(SCORES[name].LABEL) and first.endswith(".") and "et al." in rest
    assert isinstance(SCORES[name].NEEDS_SOURCE_HEAD, bool)


@every_score
@pytest.mark.parametrize("shape", ["n > D", "n < D", "digits"])
def test_it_is_a_finite_float_and_the_same_each_time(name: str, shape: str) -> None:
    some = SHAPES[shape]()
    first, second = (SCORES[name].score(some.evidence()) for _ in range(2))
    assert type(first) is float and np.isfinite(first) and first == second


@every_score
@pytest.mark.parametrize("shape", ["n > D", "n < D", "rank 5, n > D", "digits"])
def test_it_depends_neither_on_the_order_of_samples_nor_on_chunks(name: str, shape: str) -> None:
    some = SHAPES[shape]()
    expected = pytest.approx(SCORES[name].score(some.evidence()), rel=1e-9)
    shuffled = some[np.random.default_rng(1).permutation(len(some.labels))]
    assert SCORES[name].score(shuffled.evidence()) == expected
    for chunk in (1, 7, 10_000):
        assert SCORES[name].score(some.evidence(chunk)) == expected


@every_score
def test_it_does_not_depend_on_what_was_scored_before(name: str) -> None:
    evidence = data().evidence()
    for module in SCORES.values():
        module.score(evidence)
    assert SCORES[name].score(evidence) == SCORES[name].score(data().evidence())


@every_score
@pytest.mark.parametrize("shape", ["n > D", "n < D", "digits", "digits, n < D"])
def test_it_rises_from_shuffled_labels_to_the_real_ones(name: str, shape: str) -> None:
    some = SHAPES[shape]()
    shuffled = replace(some, labels=np.random.default_rng(2).permutation(some.labels))
    assert SCORES[name].score(some.evidence()) > SCORES[name].score(shuffled.evidence())


@pytest.mark.parametrize("name", OF_FEATURES)
@pytest.mark.parametrize("factor", [1e-15, 1e-3, 1e15])
def test_it_does_not_depend_on_the_scale_of_features(name: str, factor: float) -> None:
    expected = SCORES[name].score(data().evidence())
    assert SCORES[name].score(scaled(data(), factor).evidence()) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("name", OF_HEADS)
def test_without_a_source_head_it_says_why_it_has_no_value(name: str) -> None:
    evidence = Evidence(data().evidence().features, None, "trained without labels: it has no classes")
    with pytest.raises(Undefined, match=r"^trained without labels: it has no classes$"):
        SCORES[name].score(evidence)


@pytest.mark.parametrize("name", OF_FEATURES)
def test_of_features_it_needs_no_source_head(name: str) -> None:
    assert SCORES[name].score(Evidence(data().evidence().features)) == SCORES[name].score(data().evidence())


@every_score
def test_a_class_without_samples_changes_nothing(name: str) -> None:
    some = data()
    gap = replace(some, labels=np.where(some.labels > 1, some.labels + 3, some.labels).astype(np.int32))
    assert SCORES[name].score(gap.evidence()) == pytest.approx(SCORES[name].score(some.evidence()), rel=1e-12)


# -- bad input -----------------------------------------------------------------------------------------


def _with(value: float) -> Data:
    some = data()
    features, source = some.features.copy(), some.source.copy()
    features[77, 3] = source[77, 3] = value
    return Data(features, some.labels, source)


@every_score
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_has_no_score(name: str, value: float) -> None:
    with pytest.raises(Undefined, match="not finite"):
        SCORES[name].score(_with(value).evidence())


@every_score
def test_one_class_has_no_score(name: str) -> None:
    for labels in (np.zeros(150, dtype=np.int32), np.full(150, 3, dtype=np.int32)):
        with pytest.raises(Undefined, match="all samples are of one class"):
            SCORES[name].score(replace(data(), labels=labels).evidence())
    with pytest.raises(Undefined, match="all samples are of one class"):
        SCORES[name].score(data()[np.arange(1)].evidence())


@pytest.mark.parametrize("name", ["hscore", "transrate", "gbc"])
@pytest.mark.parametrize("value", [0.0, 0.1, 12345.678])
@pytest.mark.parametrize("n", [5, 150, 4321])
def test_constant_features_have_no_score_that_compares_with_their_variance(name: str, value: float, n: int) -> None:
    constant = replace(data(n), features=np.full((n, 9), value, dtype=np.float32))
    with pytest.raises(Undefined, match="the same for all samples"):
        SCORES[name].score(constant.evidence())


ODD: dict[str, Any] = {
    "classes of one sample": lambda: replace(data(40), labels=np.arange(40, dtype=np.int32)),
    "some classes of one sample": lambda: replace(data(40), labels=np.r_[:5, [5] * 35].astype(np.int32)),
    "two samples": lambda: replace(data(2, classes=2), labels=np.array([0, 1], dtype=np.int32)),
    "each sample twice": lambda: data()[np.repeat(np.arange(150), 2)],
    "each sample twice, n < D": lambda: data(15, 50)[np.repeat(np.arange(15), 2)],
    "equal samples of unequal labels": lambda: replace(data(40), features=np.repeat(data(40).features[:2], 20, 0)),
    "one feature": lambda: data(features=1),
    "some features constant": lambda: replace(data(), features=data().features * (np.arange(9) % 2).astype("f4")),
    "classes far apart": lambda: replace(data(), features=data().features + 1e6 * data().labels[:, None].astype("f4")),
    "features of float32's range": lambda: scaled(data(), 1e37),
    "features near float32's smallest": lambda: scaled(data(), 1e-37),
    "scales from 1e-15 to 1e15": lambda: replace(
        data(), features=data().features * np.logspace(-15, 15, 9, dtype="f4")
    ),
    "a certain head": lambda: replace(data(), source=np.eye(6, dtype="f4")[data().source.argmax(1)]),
    "one source class": lambda: replace(data(), source=np.ones((150, 1), dtype="f4")),
}


@every_score
@pytest.mark.parametrize("odd", ODD)
def test_odd_data_have_a_finite_score(name: str, odd: str) -> None:
    assert np.isfinite(SCORES[name].score(ODD[odd]().evidence()))


def test_logme_of_constant_features_is_that_of_an_intercept_alone() -> None:
    constant = replace(data(), features=np.ones((150, 9), dtype=np.float32))
    alone = replace(data(), features=np.full((150, 1), 3, dtype=np.float32))
    assert logme.score(constant.evidence()) == pytest.approx(logme.score(alone.evidence()), rel=1e-12)


MEMORY = """
import resource, sys
import numpy as np, torch
from transferctl import knn, plugins
from transferctl.contracts import Batch
from transferctl.evidence import Evidence
from transferctl.probe import Samples

def evidence(n):
    labels = (np.arange(n) % 10).astype(np.int32)
    def passes(most):
        for i in range(0, n, most):
            y = torch.from_numpy(labels[i : i + most].astype(np.int64))
            yield Batch(torch.randn(len(y), 64, generator=torch.Generator().manual_seed(i)) + y[:, None] / 10, y)
    probabilities = lambda: (torch.softmax(batch.inputs[:, :20], 1) for batch in passes(1000))
    return Evidence(Samples(passes, labels, 10, torch.device("cpu")), probabilities)

def peak(n):
    samples = evidence(n)
    for module in plugins.modules("scores"):
        module.score(samples)
    knn.predict(samples.features, 0, most_queries=100)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1024 if sys.platform == "linux" else 1024**2)

print(peak(3_000), peak(500_000))
"""


def test_memory_does_not_grow_with_the_number_of_samples() -> None:
    """500,000 × 64 features are 122 MiB in float32, 244 in float64. Labels and the like take a few bytes a sample."""
    done = subprocess.run([sys.executable, "-c", MEMORY], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    few, many = map(float, done.stdout.split())
    assert many - few < 50
