"""H-score, regularised: (1 − s) tr(Σ_s⁻¹ Σ_y), the features' variance between classes in units of their variance.

Ibrahim, Ponomareva & Mazumder, "Newer is not always better: Rethinking transferability metrics, their peculiarities,
stability and performance", ECML PKDD 2022, after Bao et al., ICIP 2019. Σ: the covariance of features; Σ_y: that of
their class means, each as often as its samples; Σ_s = (1 − s) Σ + s (tr Σ/D) I, with s as in Ledoit & Wolf, "A
well-conditioned estimator for large-dimensional covariance matrices", 2004: without it, nearly all features have C − 1
where n ≤ D. Between 0 and C − 1.
"""

from __future__ import annotations

from transferctl.evidence import Evidence
from transferctl.moments import Moments

LABEL = "H-score"
NEEDS_SOURCE_HEAD = False


def score(evidence: Evidence) -> float:
    moments = evidence.varying_moments
    shrinkage, spectrum = _shrinkage(moments), moments.spectrum
    shares = moments.class_counts / moments.count
    between = shares @ (moments.class_deviations @ spectrum.vectors).square()  # of each direction [r]
    mean_variance = moments.total / moments.count / len(moments.mean)
    variances = (1 - shrinkage) * spectrum.values / moments.count + shrinkage * mean_variance
    return float((1 - shrinkage) * (between / variances).sum())


def _shrinkage(moments: Moments) -> float:
    """Ledoit & Wolf's: how far the sample covariance is from the true one, estimated by how far each x xᵀ is from it,
    over how far it is from a multiple of I; both ‖·‖²_F/D. Σ ‖x xᵀ − Σ‖² = Σ ‖x‖⁴ − n ‖Σ‖², so no x is kept."""
    n, features = moments.count, len(moments.mean)
    variances = moments.spectrum.values / n
    mean_variance = moments.total / n / features
    absent = features - len(variances)  # directions of variance 0
    spread = float((variances - mean_variance).square().sum()) + absent * mean_variance**2
    noise = (moments.fourth / n - float(variances.square().sum())) / n
    return min(max(noise, 0.0) / spread, 1.0) if spread > 0 else 0.0
