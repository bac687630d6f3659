"""What is no number stops the training before it reaches a weight: exit 6, with the step, the term and the samples."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import nn

from transferctl.contracts import Batch
from transferctl.errors import DivergedError
from transferctl.objective import Losses
from transferctl.wording import shown


def refuse_terms(terms: Mapping[str, float], batch: Batch, epoch: int, step: int) -> None:
    """Of the step's objective. Raises DivergedError, which names the terms (not their sum) and the samples."""
    if broken := [name for name, value in terms.items() if not math.isfinite(value)]:
        named = [name for name in broken if name != "loss"] or broken  # a finite sum may still overflow
        raise _diverged(epoch, step, ", ".join(f"{name} is {terms[name]}{_on(name, batch)}" for name in named))


def refuse_gradients(
    weights: Mapping[str, nn.Parameter], passes: Callable[[], Iterable[Losses]], batch: Batch, epoch: int, step: int
) -> None:
    """One pass over the gradients (ResNet-50 on two cores: 3 to 7 ms of a step). passes: computes the step's losses
    again, for what a gradient cannot say. Raises DivergedError, which names the terms, the weights and the samples."""
    gradients = {name: p.grad for name, p in weights.items() if p.grad is not None}
    if not gradients or bool(torch.stack(torch._foreach_norm(list(gradients.values()))).isfinite().all()):
        return
    broken = [name for name, gradient in gradients.items() if not bool(gradient.isfinite().all())]
    if broken:  # else the norm alone overflows
        terms = _terms_with_broken_gradients(weights, passes)
        at = f"the gradient of {shown(terms)} at {shown(broken)} is no finite number"
        raise _diverged(epoch, step, at + _on(terms[0] if len(terms) == 1 else "loss", batch))


def _terms_with_broken_gradients(
    weights: Mapping[str, nn.Parameter], passes: Callable[[], Iterable[Losses]]
) -> list[str]:
    trained = [p for p in weights.values() if p.requires_grad]
    found = dict[str, None]()
    for losses in passes():
        for name, term in losses.named().items():
            if name == "loss" or not term.requires_grad:
                continue
            gradients = torch.autograd.grad(term, trained, retain_graph=True, allow_unused=True)
            if not all(bool(gradient.isfinite().all()) for gradient in gradients if gradient is not None):
                found[name] = None
    return list(found) or ["loss"]


def refuse_score(metrics: Mapping[str, Any], epoch: int, step: int) -> None:
    """A model whose validation loss is no number is never the best. Raises DivergedError."""
    if not math.isfinite(metrics["loss"]):
        raise _diverged(epoch, step, f"the validation loss is {metrics['loss']}")


def _on(term: str, batch: Batch) -> str:
    """The samples that a term is computed on; penalties look at the target's."""
    names = batch.names[batch.source if term == "loss_source" or not batch.names[batch.target] else batch.target]
    return f" on {shown(names)}" if names else ""


def _diverged(epoch: int, step: int, what: str) -> DivergedError:
    advice = "lower optimizer.lr, λ or the penalties' weights, or look at the data. What is saved stays as it is"
    return DivergedError(f"epoch {epoch}, step {step}: {what}; {advice}")
