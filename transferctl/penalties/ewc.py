"""EWC: stay near the start where it matters to the source, ½·Σ Fᵢ·(θᵢ − θ⁰ᵢ)², F the diagonal Fisher information.

Kirkpatrick et al., "Overcoming catastrophic forgetting in neural networks", PNAS 2017, equation 3; `weight` is its λ.
A sum over the parameters of the backbone and of the source head that train in this step: it does not depend on the
batch, and is 0 at the start. With `source.rehearsal: false` the source data serves it alone, and L_S is not computed.

F is a mean, over source training images, of squared gradients of the log-likelihood, each image's own (the squared
gradient of a batch's mean is not that). `fisher: model` draws each label from the model's own prediction: the Fisher
information, by one draw an image. `fisher: empirical` takes the data's label; where the model is right and sure, that
is nearly 0, and it is not the Fisher information (Kunstner et al., "Limitations of the Empirical Fisher Approximation
for Natural Gradient Descent", NeurIPS 2019).

F spans many orders of magnitude, so the weight has a narrow range: too small for most of F, or so large that SGD
overshoots, which it does, and diverges, once lr·weight·max F is over 2·(1 + momentum). The largest entry is said.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from transferctl.settings import PenaltySettings

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor, nn

    from transferctl.contracts import PenaltyStart, StepContext
    from transferctl.model import TransferModel

NEEDS = ("pretrained weights", "source data", "source head")
SAMPLES = "samples"


class Settings(PenaltySettings):
    samples: int = Field(
        1000, gt=0, description="Source training images that F is a mean over, drawn by the seed; at most all."
    )
    fisher: Literal["model", "empirical"] = Field(
        "model", description="Labels of the gradients in F: drawn from the model's prediction, or the data's."
    )


def build(settings: Settings, start: PenaltyStart) -> EWC:
    kept = start.once(lambda: _fisher(settings, start))
    fisher = {name: tensor for name, tensor in kept.items() if name != SAMPLES}
    trained = [name for name, p in start.model.backbone.named_parameters(prefix="backbone") if p.requires_grad]
    largest = max((float(fisher[name].max()) for name in trained), default=0.0)
    n = int(kept[SAMPLES])
    start.note(
        f"penalties.ewc: the Fisher information ({settings.fisher}) is a mean over {n} source training "
        f"images; its largest entry of a backbone weight that trains, {largest:.3g}, times the weight is the sharpest "
        "curvature"
    )
    return EWC(settings.weight, fisher, dict(_of_source(start.original.model)))


class EWC:
    """fisher, start: a tensor for each parameter of the backbone and the source head, by name."""

    def __init__(self, weight: float, fisher: dict[str, Tensor], start: dict[str, nn.Parameter]):
        self.weight = weight
        self._fisher, self._start = fisher, start

    def __call__(self, context: StepContext) -> Tensor:
        trained = [(name, p) for name, p in _of_source(context.model) if p.requires_grad]
        terms = [(self._fisher[name] * (p - self._start[name]).square()).sum() for name, p in trained]
        return sum(terms, start=context.features.pooled.new_zeros(()).float()) / 2


def _fisher(settings: Settings, start: PenaltyStart) -> dict[str, Tensor]:
    """The diagonal, by the parameters' names; and SAMPLES, the number of images that it is a mean over.

    One image after the other: that goes through every architecture, and ResNet-18 at 64 pixels takes 44 ms an image
    on one CPU core, where torch.func.vmap takes 72 to 77 ms in chunks of 4 to 16.
    """
    import numpy as np
    import torch
    from torch.nn import functional as F

    network = copy.deepcopy(start.original.model).requires_grad_(True)  # in eval mode, and the original stays frozen
    parameters = dict(_of_source(network))
    squares = {name: torch.zeros_like(p) for name, p in parameters.items()}
    random, n = np.random.default_rng([start.seed, 4]), 0
    for batch in start.batches("source", settings.samples):
        for i in range(len(batch.labels)):
            image, label = batch.inputs[i : i + 1], batch.labels[i : i + 1]
            logits = network.heads["source"](network.features(image, batch.after).in_fp32())
            if settings.fisher == "model":
                label = torch.full_like(label, _draw(logits, random))
            gradients = torch.autograd.grad(
                F.cross_entropy(logits, label), list(parameters.values()), materialize_grads=True
            )
            for square, gradient in zip(squares.values(), gradients, strict=True):
                square.addcmul_(gradient, gradient)
            n += 1
    return {name: square / n for name, square in squares.items()} | {SAMPLES: torch.tensor(n)}


def _draw(logits: Tensor, random: np.random.Generator) -> int:
    """A label from softmax(logits [1, C])."""
    probabilities = logits.detach()[0].cpu().double().softmax(0).numpy()
    return int(random.choice(len(probabilities), p=probabilities))


def _of_source(model: TransferModel) -> Iterator[tuple[str, nn.Parameter]]:
    """What computes the source's logits."""
    yield from model.backbone.named_parameters(prefix="backbone")
    yield from model.heads["source"].named_parameters(prefix="heads.source")
