"""The objective: L_S(θ) + λ·L_T(θ) + Σ w·Ω(θ)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from transferctl.contracts import Batch, Features, Penalty, StepContext, Task
from transferctl.microbatches import Share
from transferctl.model import Original, TransferModel


@dataclass(frozen=True)
class DomainLoss:
    """How the mean loss over one domain is taken. class_weights: [C], or all classes count as they come."""

    label_smoothing: float = 0.0
    class_weights: Tensor | None = None


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


@dataclass(frozen=True)
class Objective:
    """min over θ of L_S + λ·L_T + Σ w·Ω.

    target_weight: λ; original: the model as it starts, for the penalties that look back at it.
    """

    task: Task
    target_weight: float = 1.0
    penalties: Mapping[str, Penalty] = field(default_factory=dict)
    original: Original | None = None
    domains: Mapping[str, DomainLoss] = field(default_factory=dict)

    def __call__(self, model: TransferModel, features: Features, batch: Batch, share: Share | None = None) -> Losses:
        """Each loss is a mean over its own domain, so λ does not depend on batch sizes. A domain without samples in
        the batch has no term; with the target alone there is no λ. share: of a micro-batch in its step, which its
        terms are multiplied by, so that they add up to the step's."""
        share = share or Share(1.0, 1.0, batch.n_source > 0)
        loss_source = loss_target = None
        terms: dict[str, Tensor] = {}
        total = torch.zeros((), device=features.pooled.device)
        if batch.n_source:
            loss_source = share.source * self._mean_loss("source", model, features, batch, batch.source)
            total = total + loss_source
        if batch.n_source < len(batch.labels):
            loss_target = share.target * self._mean_loss("target", model, features, batch, batch.target)
            total = total + (self.target_weight * loss_target if share.has_source else loss_target)
            context = StepContext(model, features, batch, self.original)
            terms = {name: share.target * penalty(context) for name, penalty in self.penalties.items()}
            total = total + sum(self.penalties[name].weight * value for name, value in terms.items())
        return Losses(total, loss_source, loss_target, terms)

    def _mean_loss(self, domain: str, model: TransferModel, features: Features, batch: Batch, rows: slice) -> Tensor:
        targets = batch.labels[rows]
        if batch.mixed:
            mixed = batch.mixed[rows]
            targets = self.task.soft_targets(targets, mixed, len(model.classes[domain]))
        how = self.domains.get(domain, DomainLoss())
        return self.task.loss(
            model.heads[domain], features[rows], targets,
            label_smoothing=how.label_smoothing, class_weights=how.class_weights,
        )  # fmt: skip


def gradient_cosine(losses: Losses, backbone: nn.Module) -> Tensor | None:
    """cos(∇L_S, ∇L_T) over the thawed backbone, which both domains share: below 0 they pull apart. None where a
    step has but one of the two, or everything is frozen. Leaves the graph for the step's own backward pass."""
    shared = [p for p in backbone.parameters() if p.requires_grad]
    if losses.source is None or losses.target is None or not shared:
        return None
    source, target = (
        torch.cat([g.flatten() for g in torch.autograd.grad(loss, shared, retain_graph=True, materialize_grads=True)])
        for loss in (losses.source, losses.target)
    )
    return F.cosine_similarity(source, target, dim=0)


def in_symbols(has_source: bool, target_weight: float, penalties: Mapping[str, float]) -> str:
    terms = ["L_S", f"{target_weight:g}·L_T"] if has_source else ["L_T"]
    terms += [f"{weight:g}·Ω_{name}" for name, weight in penalties.items()]
    return f"min over θ of {' + '.join(terms)}"
