"""How well each class's probability ranks its samples above the others: area under the ROC curve, average precision.

One class against the rest, as scikit-learn has them; with weights of the samples, so that they can be drawn again.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from scipy import sparse

from transferctl import bootstrap

MOST_SCORES = 1 << 27  # scores that are ranked: 1 GiB of them
WORK = 3 * 10**8  # scores that are weighed in all draws together, at most: seconds
GROUPS = 1024  # of equally ranked samples that a draw tells apart


def has_intervals(n: int, classes: int) -> bool:
    """Whether `draws` gives any: beyond, they would take minutes."""
    return n * classes * bootstrap.FEWEST_DRAWS <= WORK


def log_odds(logits: np.ndarray) -> np.ndarray:
    """ln p − ln (1 − p) of each probability, float64 [n, C]: the order of the probabilities, also where these are
    rounded to 0 or 1. logits: float [n, C]."""
    logits = logits.astype(np.float64)
    rows, first = np.arange(len(logits)), logits.argmax(axis=1)
    top = logits[rows, first][:, None]
    powers = np.exp(logits - top)
    with np.errstate(divide="ignore"):
        found: np.ndarray = logits - top - np.log(powers.sum(axis=1, keepdims=True) - powers)
    others = logits.copy()
    others[rows, first] = -np.inf  # of the largest, the sum of the others is no difference of like numbers
    second = others.max(axis=1)
    found[rows, first] = top[:, 0] - second - np.log(np.exp(others - second[:, None]).sum(axis=1))
    return found


def of_each_class(scores: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """AUROC [C] and average precision [C]; NaN of a class that all samples have, or none.

    scores: float64 [N, C], the higher the likelier; labels: int [N]. Ties count half (Hanley & McNeil 1982); average
    precision is the sum over thresholds of the recall gained times the precision there, nothing interpolated.
    """
    ones = np.ones((len(labels), 1), dtype=np.float32)
    rows = [_areas(*_sums(ranked, ones)) for ranked in _ranked(scores, labels, len(labels))]
    areas, precisions = (np.array(column)[:, 0] for column in zip(*rows, strict=True))
    return areas, precisions


def draws(scores: np.ndarray, labels: np.ndarray) -> dict[str, np.ndarray]:
    """The means over classes, auroc [B] and average_precision [B], of samples drawn again; none where `has_intervals`
    says so. Neighbours in rank are told apart in GROUPS alone; what that changes in the score itself is taken off."""
    n, classes = scores.shape
    if not has_intervals(n, classes):
        return {}
    count = int(min(bootstrap.MOST_DRAWS, WORK // (n * classes)))
    drawn = np.ones((n, 1 + count), dtype=np.float32)  # first: as they are
    for part, weights in bootstrap.weights(n, count):
        drawn[part, 1:] = weights.T
    found = np.array([_areas(*_sums(ranked, drawn)) for ranked in _ranked(scores, labels, GROUPS)])  # [C, 2, 1 + B]
    exact = of_each_class(scores, labels)
    corrected = found[:, :, 1:] + (np.array(exact).T - found[:, :, 0])[:, :, None]
    defined = ~np.isnan(corrected)
    sums, counts = np.where(defined, corrected, 0).sum(axis=0), defined.sum(axis=0)
    means = np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)
    return {"auroc": means[0], "average_precision": means[1]}


@dataclass(frozen=True)
class _Ranked:
    """Of a class: each sample's group, by falling score, int [N], and whether it has the class, bool [N]."""

    groups: np.ndarray
    own: np.ndarray


def _ranked(scores: np.ndarray, labels: np.ndarray, most: int) -> Iterator[_Ranked]:
    """most: groups; ties are one in any case."""
    for number in range(scores.shape[1]):
        _, rising = np.unique(scores[:, number], return_inverse=True)
        groups = rising.max() - rising
        if groups.max() >= most:
            sizes = np.cumsum(np.bincount(groups))
            groups = ((sizes - 1) * most // len(labels))[groups]
        yield _Ranked(groups, labels == number)


def _sums(ranked: _Ranked, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The weights of the class's samples and of the others in each group, from the top, [G, B]. weights: [N, B]."""
    count = int(ranked.groups.max()) + 1
    where = ranked.groups + count * ~ranked.own
    terms = (np.ones(len(where), dtype=np.float32), (where, np.arange(len(where))))
    sums = np.asarray(sparse.csr_matrix(terms, shape=(2 * count, len(where))) @ weights, dtype=np.float64)
    return sums[:count], sums[count:]


def _areas(gained: np.ndarray, lost: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """AUROC [B] and average precision [B], of hits and misses in each group, from the top, [G, B]."""
    hits, misses = np.cumsum(gained, axis=0), np.cumsum(lost, axis=0)
    with np.errstate(divide="ignore", invalid="ignore"):
        area = (lost * (hits - gained / 2)).sum(axis=0) / (hits[-1] * misses[-1])
        precision = np.where(hits + misses > 0, hits / (hits + misses), 0)
        average = (gained * precision).sum(axis=0) / hits[-1]
    undefined = (hits[-1] == 0) | (misses[-1] == 0)
    return np.where(undefined, np.nan, area), np.where(undefined, np.nan, average)
