"""Co-Tuning: source labels for target images, −Σ p(y_s|y_t)·log softmax(z_s), a mean over target images.

You, Kou, Long & Wang, "Co-Tuning for Transfer Learning", NeurIPS 2020. z_s: [N, C_s], the source head's logits.
p(y_s|y_t) is learnt before the first step by the paper's direct approach: the mean of the source head's probabilities
over all target training images of a class. (Its other approach learns p(y_t|y_s) and inverts it by Bayes' rule.)

The probabilities are calibrated first, as in the paper: a temperature is fitted on the source's validation images
(Guo et al., "On Calibration of Modern Neural Networks", ICML 2017). Without such images they are taken as they are.
Not 0 at the start: it is a cross-entropy, and the source head trains with it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from transferctl.settings import PenaltySettings

if TYPE_CHECKING:
    from torch import Tensor

    from transferctl.contracts import PenaltyStart, StepContext

    LabelledLogits = tuple[Tensor, Tensor]  # the source head's logits [N, C_s], the images' labels [N]

NEEDS = ("pretrained weights", "source head")
COLDEST, HOTTEST = 0.05, 20.0  # where every prediction is right, no temperature is cold enough


class Settings(PenaltySettings):
    pass


def build(settings: Settings, start: PenaltyStart) -> CoTuning:
    return CoTuning(settings.weight, start.once(lambda: {"relation": _calibrated_relation(start)})["relation"])


def _calibrated_relation(start: PenaltyStart) -> Tensor:
    temperature, how = 1.0, "not calibrated: there are no source validation images"
    if validation := list(_source_logits(start, "source_val")):
        temperature, how = fitted_temperature(validation), "fitted on the source's validation images"
    start.note(f"penalties.cotuning: the source head's temperature is {temperature:.3g} ({how})")
    return relation(_source_logits(start, "target"), temperature, len(start.model.classes["target"]))


class CoTuning:
    """relation: p(y_s|y_t) [C_t, C_s]."""

    def __init__(self, weight: float, relation: Tensor):
        self.weight = weight
        self._relation = relation

    def __call__(self, context: StepContext) -> Tensor:
        from torch.nn import functional as F

        rows = context.batch.target
        wanted = self._relation[context.batch.labels[rows]]
        if context.batch.mixed:
            mixed = context.batch.mixed[rows]
            share = mixed.share[:, None]
            wanted = share * wanted + (1 - share) * self._relation[mixed.partners]
        return F.cross_entropy(context.model.heads["source"](context.features[rows].in_fp32()), wanted)


def fitted_temperature(validation: Iterable[LabelledLogits]) -> float:
    """The T that minimises the mean cross-entropy of logits/T, from COLDEST to HOTTEST.

    It is convex in 1/T: its derivative, the logit that the model expects less that of the label, rises, and bisection
    finds where it is 0.
    """
    import torch

    logits, labels = (torch.cat(parts).cpu() for parts in zip(*validation, strict=True))
    logits = logits.double()
    of_labels = logits.gather(1, labels[:, None]).mean()
    low, high = 1 / HOTTEST, 1 / COLDEST
    for _ in range(50):
        middle = (low + high) / 2
        expected = ((logits * middle).softmax(1) * logits).sum(1).mean()
        low, high = (low, middle) if expected > of_labels else (middle, high)
    return 2 / (low + high)


def relation(target: Iterable[LabelledLogits], temperature: float, n_classes: int) -> Tensor:
    """p(y_s|y_t) [n_classes, C_s], a row a target class; 0 for a class without images."""
    import torch
    from torch.nn import functional as F

    sums, counts = torch.zeros(()), torch.zeros(())
    for logits, labels in target:  # a large data set's logits need not fit in memory
        one_hot = F.one_hot(labels, n_classes).float()
        sums = sums + one_hot.T @ (logits / temperature).softmax(1)
        counts = counts + one_hot.sum(0)
    return sums / counts.clamp(min=1)[:, None]


def _source_logits(start: PenaltyStart, images: str) -> Iterator[LabelledLogits]:
    head = start.original.model.heads["source"]
    for batch in start.batches(images, None):
        yield head(start.original.features(batch.inputs, batch.after).in_fp32()), batch.labels
