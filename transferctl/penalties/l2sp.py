"""L2-SP: stay near the start, ½·‖w − w⁰‖² over the backbone + head_ratio/2·‖w‖² over the target head.

Li, Grandvalet & Davoine, "Explicit Inductive Bias for Transfer Learning with Convolutional Networks",
ICML 2018, equation 6; `weight` is its α, and `head_ratio` β/α. A sum over parameters: it does not depend on the batch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from transferctl.settings import PenaltySettings

if TYPE_CHECKING:
    from torch import Tensor, nn

    from transferctl.contracts import PenaltyStart, StepContext

NEEDS = ("pretrained weights",)


class Settings(PenaltySettings):
    head_ratio: float = Field(0.1, ge=0, description="β/α: decay of the new head, relative to the weight.")


def build(settings: Settings, start: PenaltyStart) -> L2SP:
    return L2SP(settings.weight, settings.head_ratio, start)


class L2SP:
    """Returns (‖w − w⁰‖² + ratio·‖w_head‖²)/2, to be multiplied by `weight`; 0 + the head's part at the start."""

    def __init__(self, weight: float, head_ratio: float, start: PenaltyStart):
        self.weight = weight
        self._head_ratio = head_ratio
        self._start = dict(start.original.model.backbone.named_parameters())

    def __call__(self, context: StepContext) -> Tensor:
        head = context.model.heads["target"]
        drift = sum((p - self._start[name]).square().sum() for name, p in _thawed(context.model.backbone))
        size = sum(p.square().sum() for _, p in _thawed(head))
        penalty: Tensor = (drift + self._head_ratio * size) / 2
        return penalty


def _thawed(module: nn.Module) -> list[tuple[str, nn.Parameter]]:
    return [(name, p) for name, p in module.named_parameters() if p.requires_grad]
