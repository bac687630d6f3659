"""How far probabilities can be believed: the temperature that validation data asks for, and where a run keeps it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from transferctl import jsontext

FILE = "calibration.json"
SCHEMA_VERSION = 1
BINS = 15
LOWEST, HIGHEST = 0.05, 20.0  # beyond which a temperature says that validation data is too little, not what is so


def temperature(logits: np.ndarray, labels: np.ndarray) -> float:
    """The T > 0 that minimises the mean negative log-likelihood of softmax(logits / T), from LOWEST to HIGHEST.

    logits: float [N, C]; labels: int [N]. Of one parameter, which changes no prediction (Guo et al., ICML 2017). In
    1/T the loss is convex, so there is one minimum.
    """
    from scipy.optimize import minimize_scalar

    logits = np.asarray(logits, dtype=np.float64)
    logits = logits - logits.max(axis=1, keepdims=True)
    own = logits[np.arange(len(labels)), labels]

    def loss(log_t: float) -> float:
        scale = np.exp(-log_t)
        return float(np.mean(np.log(np.exp(logits * scale).sum(axis=1)) - own * scale))

    bounds = (np.log(LOWEST), np.log(HIGHEST))
    return float(np.exp(minimize_scalar(loss, bounds=bounds, method="bounded", options={"xatol": 1e-10}).x))


def equal_width(confidence: np.ndarray) -> np.ndarray:
    """int [n]: which of BINS bins of the same width, each open below and closed above (Guo et al., ICML 2017)."""
    edges = np.arange(BINS + 1) / BINS
    return np.clip(np.searchsorted(edges, confidence, side="left") - 1, 0, BINS - 1)


def equal_mass(confidence: np.ndarray) -> np.ndarray:
    """int [n]: which of BINS bins with as many samples each, as far as that divides (Nguyen & O'Connor, EMNLP 2015)."""
    found = np.empty(len(confidence), dtype=np.int64)
    for number, members in enumerate(np.array_split(np.argsort(confidence, kind="stable"), BINS)):
        found[members] = number
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
