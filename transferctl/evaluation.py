"""What the final scores of a classifier are: everything that its logits on labelled data tell, with 95 % intervals.

While training, a meter of sums is enough (`Task.meter`). Here logits are kept, in a file once they are large, since a
temperature, a ranking and bins of equal mass need all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import sparse
from torch import Tensor

from transferctl import bootstrap, calibration, ranking, scratch
from transferctl.contracts import Meter

ROWS = 1 << 20  # logits that are worked on at a time
CALIBRATED = ("loss", "brier", "ece", "ece_mass")
MEANS = ("macro_precision", "macro_recall", "macro_f1")
BIASED = ("macro_f1", "average_precision", "ece", "ece_mass", "calibrated_ece", "calibrated_ece_mass")  # of few samples


def names(n: int, classes: int, top: Sequence[int], *, calibrated: bool) -> list[str]:
    """The scalars that an evaluation of n samples finds, but for those that the data leaves undefined: AUROC and
    average precision where no class has samples beside others', and intervals of what no draw changes."""
    scores = ["balanced_accuracy", *MEANS, "weighted_f1", "loss", "brier", "ece", "ece_mass"]
    scores += [f"top{k}_accuracy" for k in _ranks(classes, top)]
    kept = n * classes <= ranking.MOST_SCORES
    calibrated = calibrated and kept
    scores += [f"calibrated_{name}" for name in CALIBRATED] if calibrated else []
    ranked = ["auroc", "average_precision"] if kept else []
    scores += ranked if ranking.has_intervals(n, classes) else []
    found = [f"{name}{end}" for name in scores for end in ("", "_low", "_high")]
    return list(dict.fromkeys([*found, *ranked, *(["temperature"] * calibrated)]))


def _ranks(classes: int, top: Sequence[int]) -> list[int]:
    """The k of top-k accuracy that say anything: 5 by default, fewer than there are classes."""
    return sorted({k for k in (*top, 5) if 1 < k < classes})


@dataclass(frozen=True)
class PerSample:
    """Of each sample: its predicted class, int [n]; how many classes are above its own, int [n]; the probability of the
    predicted class; −ln of that of its own; the squared distance of all probabilities from the label's (Brier 1950:
    from 0 to 2), float64 [n]."""

    predicted: np.ndarray
    above: np.ndarray
    confidence: np.ndarray
    loss: np.ndarray
    brier: np.ndarray

    def __getitem__(self, part: slice) -> PerSample:
        return PerSample(*(column[part] for column in vars(self).values()))


def per_sample(logits: np.ndarray, labels: np.ndarray, temperature: float = 1.0) -> PerSample:
    """logits: float [n, C]; labels: int [n]."""
    logits = logits.astype(np.float64) / temperature
    rows = np.arange(len(labels))
    own = logits[rows, labels][:, None]
    earlier = np.arange(logits.shape[1]) < labels[:, None]  # argmax takes the first of equals
    above = ((logits > own) | ((logits == own) & earlier)).sum(axis=1)
    probabilities = softmax(logits)
    shifted = logits - logits.max(axis=1, keepdims=True)
    loss = np.log(np.exp(shifted).sum(axis=1)) - shifted[rows, labels]
    brier = (probabilities**2).sum(axis=1) - 2 * probabilities[rows, labels] + 1
    return PerSample(logits.argmax(axis=1), above, probabilities.max(axis=1), loss, brier)


def softmax(logits: np.ndarray) -> np.ndarray:
    """float64 [n, C]."""
    powers = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
    found: np.ndarray = powers / powers.sum(axis=1, keepdims=True)
    return found


class Evaluation:
    """A meter, and all that it does not keep. top: further k of top-k accuracy. Beyond ranking.MOST_SCORES logits
    nothing is ranked or calibrated, as they are not kept."""

    def __init__(self, meter: Meter, classes: int, top: Sequence[int] = ()):
        self._meter, self._classes, self._top = meter, classes, _ranks(classes, top)
        self._labels = scratch.Growing(np.int32)
        self._logits: scratch.Growing | None = scratch.Growing(np.float32)
        self._raw = {name: scratch.Growing(np.float64) for name in PerSample.__annotations__}
        self._n = 0

    def update(self, logits: Tensor, labels: Tensor) -> None:
        """logits: float32 [N, C], on the CPU; labels: int64 [N]."""
        self._meter.update(logits, labels)
        values, own = logits.detach().numpy(), labels.numpy()
        self._n += len(own)
        self._labels.append(own)
        for name, column in vars(per_sample(values, own)).items():
            self._raw[name].append(column)
        if self._n * self._classes > ranking.MOST_SCORES:
            self._logits = None
        if self._logits is not None:
            self._logits.append(values)

    def fitted_temperature(self) -> float | None:
        """What calibrates these very samples; None where they ask for none (see calibration.temperature), or their
        logits are not kept."""
        if self._logits is None or not self._n:
            return None
        return calibration.temperature(self._kept(self._logits), self._labels.array())

    def compute(self, temperature: float | None = None) -> dict[str, Any]:
        """The meter's metrics, the scalars of `names` with their intervals, AUROC and average precision a class, and
        reliability bins; calibrated ones beside them where there is a temperature."""
        metrics = self._meter.compute()
        if not self._n:
            return metrics
        labels, told = self._labels.array(), {"raw": self._of_raw()}
        if temperature is not None and self._logits is not None:
            told["calibrated"] = self._of(self._kept(self._logits), labels, temperature)
        metrics |= _with_intervals(told, labels, self._classes, self._top)
        metrics["reliability"] = {
            name: calibration.reliability(of.confidence, of.predicted == labels) for name, of in told.items()
        }
        metrics |= {"temperature": temperature} if "calibrated" in told else {}
        return metrics | (self._ranked(labels, metrics) if self._logits is not None else {})

    def _of_raw(self) -> PerSample:
        return PerSample(**{name: column.array() for name, column in self._raw.items()})

    def _of(self, logits: np.ndarray, labels: np.ndarray, temperature: float) -> PerSample:
        columns = [scratch.empty(self._n, np.float64) for _ in PerSample.__annotations__]
        for part in self._pieces():
            found = per_sample(logits[part], labels[part], temperature)
            for column, values in zip(columns, vars(found).values(), strict=True):
                column[part] = values
        return PerSample(*columns)

    def _ranked(self, labels: np.ndarray, metrics: Mapping[str, Any]) -> dict[str, Any]:
        assert self._logits is not None
        logits, scores = self._kept(self._logits), scratch.empty((self._n, self._classes), np.float64)
        for part in self._pieces():
            scores[part] = ranking.log_odds(logits[part])
        areas, precisions = ranking.of_each_class(scores, labels)
        rows = [
            row | {"auroc": _or_none(area), "average_precision": _or_none(precision)}
            for row, area, precision in zip(metrics["per_class"], areas, precisions, strict=True)
        ]
        if np.isnan(areas).all():
            return {"per_class": rows}
        means = {"auroc": float(np.nanmean(areas)), "average_precision": float(np.nanmean(precisions))}
        return {**means, **_intervals(means, ranking.draws(scores, labels)), "per_class": rows}

    def _kept(self, logits: scratch.Growing) -> np.ndarray:
        return logits.array().reshape(self._n, self._classes)

    def _pieces(self) -> Iterator[slice]:
        step = max(ROWS // self._classes, 1)
        return (slice(start, min(start + step, self._n)) for start in range(0, self._n, step))


def _or_none(value: float) -> float | None:
    return None if np.isnan(value) else float(value)


# Every score but a ranking is a function of sums over samples; drawing samples again weighs the terms of these sums.


def _with_intervals(
    told: Mapping[str, PerSample], labels: np.ndarray, classes: int, top: Sequence[int]
) -> dict[str, float]:
    """The scalars and their intervals. told: raw, and calibrated if it is known."""
    n = len(labels)
    bins = {
        name: [binned(of.confidence) for binned in (calibration.equal_width, calibration.equal_mass)]
        for name, of in told.items()
    }
    rows = 3 * classes + len(top) + len(told) * (2 + 2 * calibration.BINS)

    def sums(weights: Callable[[], Iterator[tuple[slice, np.ndarray]]], draws: int) -> np.ndarray:
        total = np.zeros((rows, draws))
        for part, drawn in weights():
            inner = {name: (of[part], [places[part] for places in bins[name]]) for name, of in told.items()}
            total += _terms(inner, labels[part], classes, top, rows) @ drawn.T
        return total

    step = max(ROWS // 16, 1)
    once = ((slice(i, min(i + step, n)), np.ones((1, min(step, n - i)))) for i in range(0, n, step))
    draws = bootstrap.draws_for(n, rows)
    values = _scores(sums(lambda: once, 1), classes, top, list(told))
    drawn = _scores(sums(lambda: bootstrap.weights(n, draws), draws), classes, top, list(told))
    scores = {name: float(value[0]) for name, value in values.items()}
    return scores | _intervals(scores, drawn) | _of_all_or_none(scores, n)


def _intervals(scores: Mapping[str, float], draws: Mapping[str, np.ndarray]) -> dict[str, float]:
    biased = {name: score for name, score in scores.items() if name in BIASED and name in draws}
    others = {name: score for name, score in scores.items() if name not in BIASED and name in draws}
    return bootstrap.intervals(others, draws) | bootstrap.basic_intervals(biased, draws)


def _of_all_or_none(scores: Mapping[str, float], n: int) -> dict[str, float]:
    """Intervals of what is 1 as every sample is right, or 0: that of the share."""
    found: dict[str, float] = {}
    for name, score in scores.items():
        if name.endswith(("accuracy", "macro_precision", "macro_recall", "_f1")) and score in (0, 1):
            found[f"{name}_low"], found[f"{name}_high"] = bootstrap.exact_share(round(score) * n, n)
    return found


def _terms(
    told: Mapping[str, tuple[PerSample, Sequence[np.ndarray]]],
    labels: np.ndarray,
    classes: int,
    top: Sequence[int],
    rows: int,
) -> sparse.csr_matrix:
    """[rows, n]: what each sample adds to each sum. told: the samples, and their bins of both kinds."""
    raw, _ = told["raw"]
    n, everyone = len(labels), np.arange(len(labels))
    predicted = raw.predicted.astype(np.int64)
    right = predicted == labels
    ones, row = np.ones(n), 3 * classes
    parts = [
        (labels[right], everyone[right], ones[right]),
        (classes + labels, everyone, ones),
        (2 * classes + predicted, everyone, ones),
    ]
    for k in top:
        parts.append((np.full(n, row), everyone, (raw.above < k).astype(float)))
        row += 1
    for of, places in told.values():
        for values in (of.loss, of.brier):
            parts.append((np.full(n, row), everyone, values))
            row += 1
        for place in places:
            parts.append((row + place, everyone, right - of.confidence))
            row += calibration.BINS
    where, which, values = (np.concatenate(column) for column in zip(*parts, strict=True))
    return sparse.csr_matrix((values, (where, which)), shape=(rows, n))


def _scores(sums: np.ndarray, classes: int, top: Sequence[int], told: Sequence[str]) -> dict[str, np.ndarray]:
    """name -> [B], of sums [rows, B] as `_terms` lays them out. An empty class has no recall, a class that is neither
    there nor predicted no F1 (as in scikit-learn)."""
    hits, support, predicted = sums[: 3 * classes].reshape(3, classes, -1)
    n = support.sum(axis=0)
    present, involved = support > 0, support + predicted > 0
    recall, precision = hits / np.maximum(support, 1), hits / np.maximum(predicted, 1)
    f1 = 2 * hits / np.maximum(support + predicted, 1)
    means = {
        name: of.sum(axis=0) / involved.sum(axis=0) for name, of in zip(MEANS, (precision, recall, f1), strict=True)
    }
    scores = means | {
        "balanced_accuracy": recall.sum(axis=0) / present.sum(axis=0),
        "weighted_f1": (f1 * support).sum(axis=0) / n,
    }
    rest = iter(sums[3 * classes :])
    scores |= {f"top{k}_accuracy": next(rest) / n for k in top}
    for name in told:
        prefix = "" if name == "raw" else f"{name}_"
        for score in ("loss", "brier"):
            scores[prefix + score] = next(rest) / n
        for score in ("ece", "ece_mass"):
            scores[prefix + score] = np.abs([next(rest) for _ in range(calibration.BINS)]).sum(axis=0) / n
    return scores
