"""GBC: −Σ over pairs of classes i ≠ j of exp(−D_B(i, j)), how much Gaussians fitted to the classes overlap.

Pándy et al., "Transferability Estimation using Bhattacharyya Class Separability", CVPR 2022: each class a Gaussian of
equal variance v in all directions, among the d = 64 principal components of all features (fewer where samples differ in
fewer); pairs count twice, as (i, j) and (j, i). Between −C(C − 1) and 0.

    D_B = ‖μᵢ − μⱼ‖² / (4 (vᵢ + vⱼ)) + d/2 ln((vᵢ + vⱼ) / (2 √(vᵢ vⱼ)))

The distance in full: the paper's code leaves the d out. A class of variance 0 (one sample, or equal ones) overlaps
with no other, which is the limit of v → 0; where classes of two or three samples abound, GBC says little.
"""

from __future__ import annotations

import torch
from torch import Tensor

from transferctl.evidence import Evidence

LABEL = "GBC"
NEEDS_SOURCE_HEAD = False

COMPONENTS = 64


def score(evidence: Evidence) -> float:
    moments = evidence.varying_moments
    components = moments.spectrum.vectors[:, :COMPONENTS]
    squares = torch.zeros_like(moments.class_counts)
    for _, x, labels in evidence.features.chunks(torch.float64, moments.mean):
        within = (x - moments.class_deviations[labels]) @ components
        squares.index_add_(0, labels, within.square().sum(1))
    present = moments.class_counts > 0
    variances = (squares / moments.class_counts)[present] / components.shape[1]
    return -_overlap(moments.class_deviations[present] @ components, variances)


def _overlap(means: Tensor, variances: Tensor) -> float:
    """Σ over i ≠ j of exp(−D_B). means: [C, d]; variances: [C]."""
    apart = torch.cdist(means, means, compute_mode="donot_use_mm_for_euclid_dist").square()  # [C, C]
    both, root = variances[:, None] + variances, variances.sqrt()
    coefficients = (2 * root[:, None] * root / both).pow(means.shape[1] / 2) * (-apart / (4 * both)).exp()
    coefficients = torch.where(both > 0, coefficients, (apart == 0).to(coefficients))  # two points
    return float(coefficients.fill_diagonal_(0).sum())
