"""How far probabilities can be believed: the temperature that validation data asks for, and where a run keeps it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from transferctl import jsontext

FILE = "calibration.json"
SCHEMA_VERSION = 1
BINS = 15
LOWEST, HIGHEST = 0.05, 20.0  # what a temperature beyond says is that validation data are too few
PIECE = 1 << 20  # logits that are worked on at a time


def temperature(logits: np.ndarray, labels: np.ndarray) -> float | None:
    """The T > 0 that minimises the mean negative log-likelihood of softmax(logits / T); None where there is no such
    minimum from LOWEST to HIGHEST. Where every sample is right there is none: the smaller T, the less the loss.

    logits: float [N, C]; labels: int [N]. One parameter, which changes no prediction (Guo et al., ICML 2017). In 1/T
    the loss is convex, so its slope, the mean logit that is expected less the mean of the labels' own, has one zero.
    """
    from scipy.optimize import brentq

    def slope(sharpness: float) -> float:
        return sum(_slopes(logits[part], labels[part], sharpness) for part in _pieces(*logits.shape)) / len(labels)

    bluntest, sharpest = 1 / HIGHEST, 1 / LOWEST
    if slope(bluntest) >= 0 or slope(sharpest) <= 0:
        return None
    return float(1 / brentq(slope, bluntest, sharpest, xtol=1e-12, rtol=1e-10))


def _slopes(logits: np.ndarray, labels: np.ndarray, sharpness: float) -> float:
    """The sum of the slopes of the samples' losses."""
    logits = logits.astype(np.float64)
    logits -= logits.max(axis=1, keepdims=True)
    powers = np.exp(logits * sharpness)
    expected = (powers * logits).sum(axis=1) / powers.sum(axis=1)
    return float((expected - logits[np.arange(len(labels)), labels]).sum())


def _pieces(n: int, classes: int) -> Iterator[slice]:
    step = max(PIECE // classes, 1)
    return (slice(start, min(start + step, n)) for start in range(0, n, step))


def equal_width(confidence: np.ndarray) -> np.ndarray:
    """int [n]: which of BINS bins of the same width, each open below and closed above (Guo et al., ICML 2017)."""
    edges = np.arange(BINS + 1) / BINS
    return np.clip(np.searchsorted(edges, confidence, side="left") - 1, 0, BINS - 1)


def equal_mass(confidence: np.ndarray) -> np.ndarray:
    """int [n]: which of BINS bins with as many samples each, as far as that divides and equal ones are not parted
    (Nguyen & O'Connor, EMNLP 2015)."""
    order = np.argsort(confidence, kind="stable")
    rising = confidence[order]
    sizes = [len(members) for members in np.array_split(order, BINS)]
    found = np.empty(len(confidence), dtype=np.int64)
    found[order] = np.repeat(np.arange(BINS), sizes)[np.searchsorted(rising, rising)]  # that of the first equal one
    return found


@dataclass(frozen=True)
class Bin:
    """One bar of a reliability diagram: how sure the predictions in it are on average, and how often they are right."""

    low: float
    high: float
    n: int
    confidence: float
    accuracy: float


def reliability(confidence: np.ndarray, right: np.ndarray) -> list[dict[str, Any]]:
    """The bins of equal width that have samples. confidence: float [n], of the predicted class; right: bool [n]."""
    places = equal_width(confidence)
    counts, sums, hits = (np.bincount(places, values, BINS) for values in (None, confidence, right))
    return [
        asdict(Bin(i / BINS, (i + 1) / BINS, int(n), float(sums[i] / n), float(hits[i] / n)))
        for i, n in enumerate(counts)
        if n
    ]


def description(checkpoint: str, temperature: float, n: int) -> dict[str, Any]:
    """What FILE holds: the temperature of the target head with a checkpoint's weights, and from how many samples."""
    return {"schema_version": SCHEMA_VERSION, "checkpoint": checkpoint, "temperature": temperature, "n": n}


def temperature_of(run: Path, checkpoint: str) -> float | None:
    """The temperature that a run fitted for its target head with the weights of a checkpoint (`step-000120`), on
    validation data; None where it did not: a run of an older version, another checkpoint, a file that lies."""
    try:
        found: Any = jsontext.read(run / FILE)
    except (OSError, ValueError):
        return None
    if not isinstance(found, dict) or found.get("checkpoint") != checkpoint:
        return None
    value: Any = found.get("temperature")
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if is_number and LOWEST <= value <= HIGHEST else None
