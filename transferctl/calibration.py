"""How far probabilities can be believed: the temperature that validation data asks for, and where a run keeps it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from transferctl import jsontext

FILE = "calibration.json"
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
