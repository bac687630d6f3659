"""The objective: L_S(θ) + λ·L_T(θ) + Σ w·Ω(θ)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from transferctl.contracts import Batch, Features, Penalty, StepContext, Task
from transferctl.model import TransferModel


@dataclass(frozen=True)
class Losses:
    """Scalars of one step. source, target: mean losses over their own samples, or None without samples."""

    total: Tensor
    source: Tensor | None
    target: Tensor | None
    penalties: Mapping[str, Tensor]

    def named(self) -> dict[str, Tensor]:
        terms = {"loss": self.total, "loss_source": self.source, "loss_target": self.target}
        present = {name: value for name, value in terms.items() if value is not None}
        return present | {f"penalty_{name}": value for name, value in self.penalties.items()}


def joint_objective(
    model: TransferModel,
    task: Task,
    features: Features,
    batch: Batch,
    target_weight: float,
    penalties: Mapping[str, Penalty],
) -> Losses:
    """L_S + λ·L_T + Σ w·Ω on one batch; each loss is a mean over its own domain, so λ does not depend on
    batch sizes. A domain without samples in the batch has no term; with the target alone there is no λ."""
    loss_source = loss_target = None
    total = features.pooled.new_zeros((), dtype=features.pooled.dtype).float()
    if batch.n_source:
        loss_source = task.loss(model.heads["source"], features[batch.source], batch.labels[batch.source])
        total = total + loss_source
    if batch.n_source < len(batch.labels):
        loss_target = task.loss(model.heads["target"], features[batch.target], batch.labels[batch.target])
        total = total + (target_weight * loss_target if batch.n_source else loss_target)
    terms = {name: penalty(StepContext(model, features, batch)) for name, penalty in penalties.items()}
    total = total + sum(penalties[name].weight * value for name, value in terms.items())
    return Losses(total, loss_source, loss_target, terms)


def in_symbols(has_source: bool, target_weight: float, penalties: Mapping[str, float]) -> str:
    terms = ["L_S", f"{target_weight:g}·L_T"] if has_source else ["L_T"]
    terms += [f"{weight:g}·Ω_{name}" for name, weight in penalties.items()]
    return f"min over θ of {' + '.join(terms)}"
