"""NCE: −H(Y | Z), the negative conditional entropy (nats) of target labels given the source head's most probable class.

Tran et al., "Transferability and Hardness of Supervised Classification Tasks", ICCV 2019. At most 0; 0 where the source
class determines the label, as it also does where nearly every sample has a source class to itself.
"""

from __future__ import annotations

import torch

from transferctl.evidence import Evidence

LABEL = "NCE"
NEEDS_SOURCE_HEAD = True


def score(evidence: Evidence) -> float:
    counts = torch.zeros(0)
    for labels, source in evidence.source_chunks():
        if not len(counts):
            counts = source.new_zeros(evidence.features.classes, source.shape[1])
        counts.index_put_((labels, source.argmax(1)), counts.new_ones(()), accumulate=True)
    nonzero = counts.nonzero(as_tuple=True)
    joint, source_counts = counts[nonzero], counts.sum(0)[nonzero[1]]
    return min(float((joint * (joint / source_counts).log()).sum() / counts.sum()), 0.0)
