"""First and second moments of features, of all and by class, in two passes over chunks of them.

About the mean, in float64: means of a network's features may be many times their spread, which Σ x xᵀ − n μ μᵀ would
lose. Memory is O(D² + C·D) whatever n: kept is the scatter [D, D] where n ≥ D, else the n rows, which are fewer.

Shapes: n samples in chunks of m, D features, C classes, r directions in which samples differ.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from transferctl.probe import Samples

ROUNDING = 1e-13  # of the largest eigenvalue of sums of squares: what is smaller may be rounding alone
BLOCK = 256  # columns of the scatter that a product fills


@dataclass(frozen=True)
class Spectrum:
    """The scatter's eigenvalues beyond rounding, from the largest, [r], and their unit vectors [D, r]."""

    values: Tensor
    vectors: Tensor


@dataclass(frozen=True)
class Moments:
    """float64, on the samples' device.

    class_counts: [C]; mean: [D]; class_deviations [C, D]: the mean of each class less `mean`, 0 where it has no sample;
    fourth: Σ ‖x − mean‖⁴; scatter: Σ (x − mean)(x − mean)ᵀ [D, D], or None and rows: x − mean [n, D], where n < D.
    """

    count: int
    class_counts: Tensor
    mean: Tensor
    class_deviations: Tensor
    fourth: float
    scatter: Tensor | None
    rows: Tensor | None

    @cached_property
    def total(self) -> float:
        """Σ ‖x − mean‖²."""
        if self.scatter is not None:
            return float(self.scatter.trace())
        assert self.rows is not None
        return float(self.rows.square().sum())

    @property
    def constant(self) -> bool:
        """Whether samples differ by no more than the mean is rounded: float32 differs by 1e-7 or not at all."""
        return self.total <= self.count * float(self.mean.square().sum()) * 1e-24

    @cached_property
    def spectrum(self) -> Spectrum:
        if self.scatter is not None:
            values, vectors = torch.linalg.eigh(self.scatter)
        else:
            assert self.rows is not None
            values, vectors = torch.linalg.eigh(self.rows @ self.rows.T)
        values, vectors = beyond_rounding(values, vectors)
        if self.rows is not None:
            vectors = self.rows.T @ vectors / values.sqrt()
        return Spectrum(values, vectors)


def of(samples: Samples) -> Moments:
    """Of all samples, of which there is at least one. Features that are not finite make `mean` not finite."""
    device, n = samples.device, len(samples.labels)
    mean = nothing = torch.zeros(1, dtype=torch.float64, device=device)
    for _, x, _ in samples.chunks(torch.float64, nothing):
        mean = mean + x.sum(0) / n
    features = len(mean)
    class_sums = mean.new_zeros(samples.classes, features)
    fourth = mean.new_zeros(())
    kept = mean.new_zeros(min(n, features), features)
    for rows, x, labels in samples.chunks(torch.float64, mean):
        class_sums.index_add_(0, labels, x)
        fourth += x.square().sum(1).square().sum()
        if n < features:
            kept[rows] = x
        else:
            add_upper(kept, x)
    class_counts = torch.from_numpy(np.bincount(samples.labels, minlength=samples.classes)).to(device, torch.float64)
    deviations = class_sums / class_counts.clamp(min=1)[:, None]
    scatter, by_row = (None, kept) if n < features else (mirrored(kept), None)
    return Moments(n, class_counts, mean, deviations, float(fourth), scatter, by_row)


def add_upper(scatter: Tensor, x: Tensor) -> None:
    """Σ x xᵀ added to the upper triangle, and to no more than BLOCK columns below: three fifths of a whole product's
    time at 2,048 features."""
    for i in range(0, x.shape[1], BLOCK):
        scatter[i : i + BLOCK, i:].addmm_(x[:, i : i + BLOCK].T, x[:, i:])


def mirrored(upper: Tensor) -> Tensor:
    """The symmetric matrix of an upper triangle."""
    return upper.triu() + upper.triu(1).T


def beyond_rounding(values: Tensor, vectors: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues as torch.linalg.eigh has them, those that may be rounding left out, from the largest; and vectors."""
    kept = values > ROUNDING * values[-1]
    return values[kept].flip(0), vectors[:, kept].flip(1)
