"""LEEP: 1/n Σᵢ ln Σ_z P(yᵢ | z) p(z | xᵢ), the log-likelihood of labels guessed by way of the source classes z.

Nguyen et al., "LEEP: A New Measure to Evaluate Transferability of Learned Representations", ICML 2020. p(z | x): the
source head's probabilities; P(y | z) = Σ over samples of class y of p(z | x) / Σ over all samples. At most 0.
"""

from __future__ import annotations

import torch

from transferctl.evidence import Evidence

LABEL = "LEEP"
NEEDS_SOURCE_HEAD = True


def score(evidence: Evidence) -> float:
    """Two passes over the probabilities; memory C × Z."""
    joint = torch.zeros(0)
    for labels, source in evidence.source_chunks():
        if not len(joint):
            joint = source.new_zeros(evidence.features.classes, source.shape[1])
        joint.index_add_(0, labels, source)
    conditional = joint / joint.sum(0).clamp(min=torch.finfo(joint.dtype).tiny)  # P(y | z); 0 where no sample has z
    total = sum(float((conditional[labels] * source).sum(1).log().sum()) for labels, source in evidence.source_chunks())
    return min(total / len(evidence.features.labels), 0.0)
