"""TransRate: R(Z) − Σ_c n_c/n R(Z_c), R(Z) = ½ ln det(I + Zᵀ Z / (n ε)), what labels say of features, by coding rates.

Huang et al., "Frustratingly Easy Transferability Estimation", ICML 2022; ε = 1e-4. Z [n, D]: features about the mean of
all, Z_c also. At least 0, as ln det is concave and the second moments of classes, weighed by n_c/n, have Z's as their
mean; with the 1/C of the paper's listing that holds for classes of equal sizes alone.

R depends on the scale of Z, which says nothing of a backbone: Z is scaled to a total variance of 1.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from transferctl.evidence import Evidence
from transferctl.moments import Moments, add_upper, mirrored
from transferctl.probe import Samples

LABEL = "TransRate"
NEEDS_SOURCE_HEAD = False

EPSILON = 1e-4
ROOM = 2**26  # float64 numbers that classes may fill at once, 512 MiB; at least those of one class are


def score(evidence: Evidence) -> float:
    """As many more passes as it takes to have each class at once, n_c × D or D × D numbers, within ROOM."""
    moments = evidence.varying_moments
    scale = EPSILON * moments.total / moments.count
    whole = float((moments.spectrum.values / (moments.count * scale)).log1p().sum()) / 2
    counts = moments.class_counts.long().tolist()
    within = 0.0
    for group in groups(counts, len(moments.mean)):
        for c, gathered in _gather(evidence.features, moments, group).items():
            within += counts[c] / moments.count * _rate(gathered.gram(), counts[c] * scale)
    return max(whole - within, 0.0)


def groups(counts: list[int], features: int, room: int = ROOM) -> Iterator[list[int]]:
    """The classes that have samples, in groups that fill no more than `room` numbers, or of one class."""
    group, filled = list[int](), 0
    for c in np.flatnonzero(counts).tolist():
        needed = features * (counts[c] if counts[c] <= features else 2 * features)
        if group and filled + needed > room:
            yield group
            group, filled = [], 0
        group.append(c)
        filled += needed
    yield group


def _gather(samples: Samples, moments: Moments, group: list[int]) -> dict[int, _Gathered]:
    gathered = {c: _Gathered(int(moments.class_counts[c]), moments.mean) for c in group}
    for _, x, labels in samples.chunks(torch.float64, moments.mean):
        for c in sorted(gathered.keys() & set(labels.tolist())):
            gathered[c].add(x[labels == c])
    return gathered


class _Gathered:
    """The second moments of a class: its rows [n_c, D] where these are at most D, else their scatter [D, D], to which
    D rows at once are added: each time writes D × D numbers, however few the rows."""

    def __init__(self, count: int, mean: Tensor):
        features = len(mean)
        self._rows, self._filled = mean.new_empty(min(count, features), features), 0
        self._scatter = mean.new_zeros(features, features) if count > features else None

    def add(self, x: Tensor) -> None:
        """x: [m, D]."""
        while len(x):
            part = x[: len(self._rows) - self._filled]
            self._rows[self._filled : self._filled + len(part)] = part
            self._filled += len(part)
            x = x[len(part) :]
            if self._filled == len(self._rows):
                self._fold()

    def gram(self) -> Tensor:
        """Z Zᵀ [n_c, n_c] or Zᵀ Z [D, D], whichever is smaller; both have the same ln det(I + ·)."""
        if self._scatter is None:
            return self._rows @ self._rows.T
        self._fold()
        return mirrored(self._scatter)

    def _fold(self) -> None:
        if self._scatter is not None:
            add_upper(self._scatter, self._rows[: self._filled])
            self._filled = 0


def _rate(gram: Tensor, scale: float) -> float:
    """½ ln det(I + gram / scale)."""
    shifted = gram / scale
    shifted.diagonal().add_(1)
    return float(torch.linalg.cholesky(shifted).diagonal().log().sum())
