"""LwF: keep the source head's answers on target images, T²·KL(softmax(z⁰/T) ‖ softmax(z/T)), a mean over images.

Learning without Forgetting: Li & Hoiem, TPAMI 2018; it needs no source data. z⁰: [N, C] the source head's logits as
fine-tuning starts, z: as they are now. T² keeps the size of the gradient whatever T is (Hinton, Vinyals & Dean,
"Distilling the Knowledge in a Neural Network", 2015). Li & Hoiem have no T² and write the cross-entropy, which is the
KL plus a constant, the entropy of softmax(z⁰/T). The source head trains along, as in the paper.

0 at the start, but for dropout and BatchNorm that takes the batch's statistics: the original has neither.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from transferctl.settings import PenaltySettings

if TYPE_CHECKING:
    from torch import Tensor

    from transferctl.contracts import PenaltyStart, StepContext
    from transferctl.model import Original

NEEDS = ("pretrained weights", "source head")


class Settings(PenaltySettings):
    temperature: float = Field(
        2.0, gt=0, le=1e3, description="T: the higher, the more the improbable classes of the source count."
    )


def build(settings: Settings, start: PenaltyStart) -> LwF:
    return LwF(settings.weight, settings.temperature, start.original)


class LwF:
    def __init__(self, weight: float, temperature: float, original: Original):
        self.weight = weight
        self._temperature = temperature
        self._head = original.model.heads["source"]

    def __call__(self, context: StepContext) -> Tensor:
        from torch.nn import functional as F

        rows, t = context.batch.target, self._temperature
        now = context.model.heads["source"](context.features[rows].in_fp32())
        then = self._head(context.original_target_features.in_fp32())
        kl = F.kl_div((now / t).log_softmax(1), (then / t).log_softmax(1), log_target=True, reduction="batchmean")
        return t**2 * kl
