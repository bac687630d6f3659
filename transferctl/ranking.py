"""How well each class's probability ranks its samples above the others: area under the ROC curve, average precision.

One class against the rest, as scikit-learn has them; with weights of the samples, so that they can be drawn again.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from transferctl import bootstrap

MOST_SCORES = 1 << 27  # probabilities that are ranked, 1 GiB of them
WORK = 3 * 10**7  # probabilities that are looked at in all draws together, at most: a second's work


def of_each_class(probabilities: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """AUROC [C] and average precision [C]; NaN of a class that all samples have, or none.

    probabilities: float64 [N, C]; labels: int [N]. Ties count half (Hanley & McNeil 1982); average precision is the sum
    over thresholds of the recall gained times the precision there, nothing interpolated.
    """
    ones = np.ones((1, len(labels)))
    rows = [_areas(*ranked, ones) for ranked in _ranked(probabilities, labels)]
    areas, precisions = (np.array(column)[:, 0] for column in zip(*rows, strict=True))
    return areas, precisions


def draws(probabilities: np.ndarray, labels: np.ndarray) -> dict[str, np.ndarray]:
    """The means over classes, auroc [B] and average_precision [B], of samples drawn again; empty where that would take
    minutes: it sorts nothing anew, but looks at N·C numbers a draw."""
    n, classes = probabilities.shape
    count = min(bootstrap.MOST_DRAWS, WORK // max(n * classes, 1))
    if count < bootstrap.FEWEST_DRAWS:
        return {}
    drawn = np.concatenate([part for _, part in bootstrap.weights(n, count)], axis=1).astype(np.float64)
    at_a_time = max(bootstrap.PIECE // n, 1)
    found = np.full((2, classes, count), np.nan)
    for number, ranked in enumerate(_ranked(probabilities, labels)):
        for start in range(0, count, at_a_time):
            part = slice(start, start + at_a_time)
            found[:, number, part] = _areas(*ranked, drawn[part])
    defined = np.maximum((~np.isnan(found)).sum(axis=1), 1)
    means = np.where(np.isnan(found).all(axis=1), np.nan, np.nansum(found, axis=1) / defined)
    return {"auroc": means[0], "average_precision": means[1]}


def _ranked(probabilities: np.ndarray, labels: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Of each class: the samples by falling probability, which of them have it, and the last of each tie."""
    for number in range(probabilities.shape[1]):
        scores = probabilities[:, number]
        order = np.argsort(-scores, kind="stable")
        falling = scores[order]
        last = np.flatnonzero(np.append(falling[1:] != falling[:-1], True))
        yield order, labels[order] == number, last


def _areas(order: np.ndarray, own: np.ndarray, last: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """AUROC [B] and average precision [B]. weights: [B, N]."""
    heavy = weights[:, order]
    above = np.cumsum(heavy, axis=1)[:, last]  # weight at or above each threshold
    hits = np.cumsum(heavy * own, axis=1)[:, last]
    misses = above - hits
    gained, lost = (np.diff(column, axis=1, prepend=0) for column in (hits, misses))
    all_hits, all_misses = hits[:, -1], misses[:, -1]
    with np.errstate(divide="ignore", invalid="ignore"):
        area = (lost * (hits - gained / 2)).sum(axis=1) / (all_hits * all_misses)
        precision = np.where(above > 0, hits / above, 0)
        average = (gained * precision).sum(axis=1) / all_hits
    undefined = (all_hits == 0) | (all_misses == 0)
    return np.where(undefined, np.nan, area), np.where(undefined, np.nan, average)
