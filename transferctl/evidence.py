"""What a transferability score may look at: the target's training data as a backbone sees them, nothing trained."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from torch import Tensor

from transferctl.probe import Samples


@dataclass(frozen=True)
class Evidence:
    """Target samples as one backbone sees them; n of them, D features, C target classes, Z source classes.

    features: the labelled features, in passes over chunks; no score holds all n at once unless n < D.
    source_probabilities: p(z | x) of the pretrained head, a float32 [m, Z] a chunk, in the samples' order; None where
    there is no such head, and `no_source_head` says why.
    """

    features: Samples
    source_probabilities: Callable[[], Iterable[Tensor]] | None = None
    no_source_head: str = ""
