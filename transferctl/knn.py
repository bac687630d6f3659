"""k-nearest-neighbour predictions of samples by all others: accuracy that nothing was trained for.

Neighbours by the cosine of features, each with a vote of exp(cos/0.07), as in Wu et al., "Unsupervised Feature Learning
via Non-Parametric Instance Discrimination", CVPR 2018, and in self-supervised learning since (DINO: k = 20).
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from transferctl.evidence import Undefined
from transferctl.probe import Samples

NEIGHBOURS = 20
TEMPERATURE = 0.07
MOST_QUERIES = 5_000  # predicted; 95 % intervals of accuracy are then within 1.4 points


def neighbours(labels: np.ndarray) -> int:
    """k: 20, or as many as the smallest class leaves for each of its samples, which would else be outvoted; at least
    one. labels: int64 [n]."""
    counts = np.bincount(labels)
    return max(1, min(NEIGHBOURS, int(counts[counts > 0].min()) - 1))


def predict(samples: Samples, seed: int, most_queries: int = MOST_QUERIES) -> tuple[np.ndarray, np.ndarray]:
    """Positions int64 [q], ascending, and what all other samples say of each, int64 [q]; all n where these are at most
    `most_queries`, else as many of them, drawn by the seed.

    In two passes over chunks of m; memory q × (D + m). Raises Undefined where there is no other sample, or features are
    not finite.
    """
    n = len(samples.labels)
    if n < 2:
        raise Undefined("there is one sample, which has no neighbours")
    positions = np.arange(n)
    if n > most_queries:
        random = np.random.default_rng([seed, *b"knn"])
        positions = np.sort(random.choice(n, most_queries, replace=False))
    asked = torch.from_numpy(positions).to(samples.device)
    similarity, label = _nearest(samples, asked, min(neighbours(samples.labels), n - 1))
    votes = torch.zeros(len(asked), samples.classes, dtype=torch.float64, device=samples.device)
    votes.scatter_add_(1, label, (similarity.double() / TEMPERATURE).exp())
    return positions, votes.argmax(1).cpu().numpy()


def _nearest(samples: Samples, asked: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Cosines [q, k] and labels [q, k] of the k most similar samples to each one asked, itself left out."""
    queries = _queries(samples, asked)
    similarity = queries.new_full((len(asked), 0), 0.0)
    label = asked.new_zeros(len(asked), 0)
    for rows, x, labels in samples.chunks(torch.float32, queries.new_zeros(1)):
        cosine = queries @ _unit(x).T
        itself = ((asked >= rows.start) & (asked < rows.stop)).nonzero()[:, 0]
        cosine[itself, asked[itself] - rows.start] = -torch.inf
        similarity = torch.cat([similarity, cosine], 1)
        similarity, kept = similarity.topk(min(k, similarity.shape[1]))
        label = torch.cat([label, labels.expand(len(asked), -1)], 1).gather(1, kept)
    return similarity, label


def _queries(samples: Samples, asked: Tensor) -> Tensor:
    """Unit features [q, D] of the samples asked."""
    queries = nothing = torch.zeros(1, device=samples.device)
    for rows, x, _ in samples.chunks(torch.float32, nothing):
        if not rows.start:
            queries = x.new_empty(len(asked), x.shape[1])
        within = (asked >= rows.start) & (asked < rows.stop)
        queries[within] = _unit(x)[asked[within] - rows.start]
    return queries


def _unit(x: Tensor) -> Tensor:
    """x: [m, D]. Scaled by the largest component first, whose square might overflow. Features that are all 0 stay so:
    similar to none. Raises Undefined."""
    if not x.isfinite().all():
        raise Undefined("the features are not finite")
    return torch.nn.functional.normalize(x / x.abs().amax(1, keepdim=True).clamp(min=torch.finfo(x.dtype).tiny))
