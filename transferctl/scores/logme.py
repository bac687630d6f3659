"""LogME: 1/n max over α, β of ln N(y; 0, I/β + F Fᵀ/α), the evidence of a linear model, the mean over one-hot labels y.

You et al., "LogME: Practical Assessment of Pre-trained Models for Transfer Learning", ICML 2021. F [n, D]: the features
as they come, without centre or intercept, as in the paper. The paper's code takes D/2 times ln α where only as many
directions as F has rank are fitted, and is off where n < D; here it is exact there too.

With λ = α/β, σᵢ the singular values of F, uᵢ its left singular vectors and cᵢ = uᵢᵀy, the best β is known:

    n/β = Q(λ) = Σ cᵢ² λ/(λ + σᵢ²) + ‖y‖² − Σ cᵢ²      ln N = −n/2 (ln 2π + 1 − ln β) − ½ Σ ln(1 + σᵢ²/λ)

so the maximum is searched in λ alone: on a grid, as there may be several, then by bisection of the slope, whose zeros
are the fixed points of the paper's iteration. That creeps where λ → ∞ (features that say nothing) and does not end
where λ → 0 (features that determine the labels), where λ ≥ 1e-13 σ₁² keeps the evidence finite.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from transferctl import moments
from transferctl.evidence import Evidence

LABEL = "LogME"
NEEDS_SOURCE_HEAD = False

DECADES = 13.0  # λ/σ₁² between 10 to the power of −13 and of 13; beyond is rounding
PER_DECADE = 8  # terms of the slope turn from 0 to 1 within two
HALVINGS = 50  # of a step of the grid, to 1e-16


def score(evidence: Evidence) -> float:
    return float(fit(evidence).log_evidence.mean())


@dataclass(frozen=True)
class Fitted:
    """Of each class that has samples, [C]: the α and β of greatest evidence, and ln of that a sample."""

    alpha: Tensor
    beta: Tensor
    log_evidence: Tensor


def fit(evidence: Evidence) -> Fitted:
    """Raises Undefined as `evidence.moments` does."""
    spectrum = _spectrum(evidence)
    largest = spectrum.squared[0].log() if len(spectrum.squared) else spectrum.outside.new_zeros(())
    steps = torch.arange(-DECADES * PER_DECADE, DECADES * PER_DECADE + 1).to(largest) / PER_DECADE * math.log(10)
    grid = largest + steps
    best = spectrum.on_grid(grid).argmax(1)
    low, high = grid[(best - 1).clamp(min=0)], grid[(best + 1).clamp(max=len(grid) - 1)]
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        rising = spectrum.slope(middle) > 0
        low, high = torch.where(rising, middle, low), torch.where(rising, high, middle)
    return spectrum.at((low + high) / 2)


@dataclass(frozen=True)
class _Spectrum:
    """squared: σᵢ² from the largest, [r]; projected: cᵢ² [C, r]; outside: ‖y‖² − Σ cᵢ² [C]."""

    count: int
    squared: Tensor
    projected: Tensor
    outside: Tensor

    def on_grid(self, log_lambda: Tensor) -> Tensor:
        """The log evidence, [C, g], at each of the λ, [g]."""
        ratio = self.squared[:, None] / log_lambda.exp()
        unfitted = self.projected @ (1 / (1 + ratio)) + self.outside[:, None]
        return self._log_evidence(unfitted, ratio.log1p().sum(0))

    def slope(self, log_lambda: Tensor) -> Tensor:
        """d ln N / d ln λ = ½ (γ − n Q′/Q), [C], at a λ a class, [C]; γ: the number of directions that are fitted."""
        left = 1 / (1 + self.squared / log_lambda.exp()[:, None])  # λ/(λ + σ²) [C, r]
        unfitted = (self.projected * left).sum(1) + self.outside
        return ((1 - left).sum(1) - self.count * (self.projected * left * (1 - left)).sum(1) / unfitted) / 2

    def at(self, log_lambda: Tensor) -> Fitted:
        ratio = self.squared / log_lambda.exp()[:, None]
        unfitted = (self.projected / (1 + ratio)).sum(1) + self.outside
        beta = self.count / unfitted
        return Fitted(log_lambda.exp() * beta, beta, self._log_evidence(unfitted, ratio.log1p().sum(1)))

    def _log_evidence(self, unfitted: Tensor, log_determinant: Tensor) -> Tensor:
        log_beta = math.log(self.count) - unfitted.log()
        return (log_beta - math.log(2 * math.pi) - 1 - log_determinant / self.count) / 2


def _spectrum(evidence: Evidence) -> _Spectrum:
    """From the smaller of FᵀF and F Fᵀ."""
    found = evidence.moments
    if found.rows is None:
        assert found.scatter is not None
        gram = found.scatter + found.count * torch.outer(found.mean, found.mean)
        squared, vectors = moments.beyond_rounding(*torch.linalg.eigh(gram))
        class_sums = found.class_counts[:, None] * (found.mean + found.class_deviations)  # yᵀF
        projections = class_sums @ vectors / squared.sqrt()
    else:
        features = found.rows + found.mean
        squared, vectors = moments.beyond_rounding(*torch.linalg.eigh(features @ features.T))
        labels = torch.from_numpy(evidence.features.labels.astype(np.int64)).to(vectors.device)
        projections = vectors.new_zeros(len(found.class_counts), len(squared)).index_add_(0, labels, vectors)
    present = found.class_counts > 0
    projected, length = projections[present].square(), found.class_counts[present]
    outside = length - projected.sum(1)
    return _Spectrum(found.count, squared, projected, torch.where(outside > 1e-12 * length, outside, 0.0))
