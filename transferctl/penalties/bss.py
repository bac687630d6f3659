"""BSS: shrink what transfers least, (σ₁² + … + σₖ²)/N, σᵢ the k smallest singular values of the target features [N, D].

Batch Spectral Shrinkage: Chen et al., "Catastrophic Forgetting Meets Negative Transfer: Batch Spectral Shrinkage for
Safe Transfer Learning", NeurIPS 2019. The paper does not divide by N, so that its η for batches of N is a `weight` of
N·η. σ² grows with the number of images; σ²/N, an eigenvalue of the features' second moments, does not. With fewer
images than D, as in most fine-tuning, that is only nearly so: the fewer, the larger is the smallest singular value.

Not 0 at the start, which it does not look back at: it drops what seems not to transfer, and protects nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from transferctl.settings import PenaltySettings

if TYPE_CHECKING:
    from torch import Tensor

    from transferctl.contracts import PenaltyStart, StepContext

NEEDS: tuple[str, ...] = ()


class Settings(PenaltySettings):
    k: int = Field(1, gt=0, description="How many of a batch's singular values shrink, from the smallest; at most all.")


def build(settings: Settings, start: PenaltyStart) -> BSS:
    return BSS(settings.weight, settings.k)


class BSS:
    def __init__(self, weight: float, k: int):
        self.weight = weight
        self._k = k

    def __call__(self, context: StepContext) -> Tensor:
        import torch

        pooled = context.features.pooled[context.batch.target].float()
        if not pooled.isfinite().all():  # svdvals would raise; that a loss is no number is for the loop to say
            return pooled.sum() * float("nan")
        singular: Tensor = torch.linalg.svdvals(pooled)  # the largest first
        return singular[-self._k :].square().sum() / len(pooled)
