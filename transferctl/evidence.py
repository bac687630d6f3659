"""What a transferability score may look at: the target's training data as a backbone sees them, nothing trained."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from transferctl import moments
from transferctl.moments import Moments
from transferctl.probe import Samples


class Undefined(ValueError):
    """A score has no value for this evidence; the text says why."""


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

    @cached_property
    def moments(self) -> Moments:
        """Of the features, taken once for all scores. Raises Undefined where no score of features is defined."""
        self._refuse_one_class()
        found = moments.of(self.features)
        if not found.mean.isfinite().all():
            raise Undefined("the features are not finite")
        return found

    @cached_property
    def varying_moments(self) -> Moments:
        """The same, for scores that compare with the features' variance: raises Undefined where there is none."""
        if self.moments.constant:
            raise Undefined("the features are the same for all samples")
        return self.moments

    def source_chunks(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Labels int64 [m] and p(z | x) float64 [m, Z], each row's sum 1, chunk by chunk. Raises Undefined."""
        if self.source_probabilities is None:
            raise Undefined(self.no_source_head or "there is no source head")
        self._refuse_one_class()
        start = 0
        for chunk in self.source_probabilities():
            probabilities = chunk.to("cpu", torch.float64)
            probabilities = probabilities / probabilities.sum(1, keepdim=True)  # to 1e-16 where float32 has 1e-7
            if not probabilities.isfinite().all():
                raise Undefined("the source head's probabilities are not finite")
            labels = torch.from_numpy(self.features.labels[start : start + len(chunk)].astype(np.int64))
            yield labels, probabilities
            start += len(chunk)
        assert start == len(self.features.labels), "a row of probabilities a sample"

    def _refuse_one_class(self) -> None:
        if len(np.unique(self.features.labels)) < 2:
            raise Undefined("all samples are of one class")
