"""DELTA: keep the last feature maps on target images, (FM − FM⁰)², a mean over images, channels and positions.

Li et al., "DELTA: Deep Learning Transfer using Feature Map with Attention for Convolutional Networks", ICLR 2019,
less its attention: there each channel counts by how much the loss grows without it, here all count alike.
It also aligns the maps of several layers, with a sum over each map, here the last ones, with a mean: so `weight` does
not depend on the size of images and network. Where a backbone has no maps, the pooled features [N, D] take their place.

0 at the start, but for dropout and BatchNorm that takes the batch's statistics: the original has neither.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from transferctl.settings import PenaltySettings

if TYPE_CHECKING:
    from torch import Tensor

    from transferctl.contracts import Features, PenaltyStart, StepContext

NEEDS = ("pretrained weights",)


class Settings(PenaltySettings):
    pass


def build(settings: Settings, start: PenaltyStart) -> Delta:
    return Delta(settings.weight)


class Delta:
    def __init__(self, weight: float):
        self.weight = weight

    def __call__(self, context: StepContext) -> Tensor:
        rows = context.batch.target
        now, then = _last(context.features[rows]), _last(context.original_target_features)
        return (now - then).square().mean()


def _last(features: Features) -> Tensor:
    features = features.in_fp32()
    return features.pooled if features.maps is None else features.maps
