"""One label a sample: linear or small MLP head, cross-entropy, accuracy and what belongs to it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from transferctl import bootstrap
from transferctl.contracts import Batch, Features, Mixed
from transferctl.evaluation import Evaluation

BOOTSTRAP_DRAWS = 10_000


def head(feature_dim: int, outputs: int, *, hidden: Sequence[int] = (), dropout: float = 0.0) -> Head:
    """Features [N, feature_dim] -> logits [N, outputs]; with `hidden`, Linear-ReLU layers in between."""
    return Head(feature_dim, outputs, hidden, dropout)


class Head(nn.Module):
    def __init__(self, feature_dim: int, outputs: int, hidden: Sequence[int], dropout: float):
        super().__init__()
        layers: list[nn.Module] = []
        for inputs, width in zip((feature_dim, *hidden), hidden, strict=False):
            layers += [nn.Dropout(dropout), nn.Linear(inputs, width), nn.ReLU()]
        layers += [nn.Dropout(dropout), nn.Linear((feature_dim, *hidden)[-1], outputs)]
        self.layers = nn.Sequential(*layers)

    def forward(self, features: Features) -> Tensor:
        return self.layers(features.pooled)  # type: ignore[no-any-return]


def collate(samples: Sequence[Tensor], labels: Sequence[int], n_source: int = 0, names: Sequence[str] = ()) -> Batch:
    """samples: each uint8 [3, H, W], source first. The batch is channels_last, as the samples lie in memory."""
    inputs = torch.stack([sample.permute(1, 2, 0) for sample in samples]).permute(0, 3, 1, 2)
    return Batch(inputs, torch.tensor(labels, dtype=torch.int64), n_source, tuple(names))


def loss(
    head: nn.Module,
    features: Features,
    targets: Tensor,
    *,
    label_smoothing: float = 0.0,
    class_weights: Tensor | None = None,
) -> Tensor:
    """Mean cross-entropy over the samples, in fp32. targets: int64 [N], or probabilities [N, C].

    Label smoothing ε: the target is (1 − ε) the label and ε/C every class (Szegedy et al., CVPR 2016). With class
    weights [C], which average 1 over the training set, each sample's loss is multiplied by that of its label, or
    labels. Divided by their sum in the batch, as torch has it, they would cancel where a batch has one class, so that a
    class's share depended on the batch size; and torch's tilt the smoothed part, as they are inside its sum.
    """
    with torch.autocast(features.pooled.device.type, enabled=False):
        logits = head(features.in_fp32())
        if class_weights is None:
            return F.cross_entropy(logits, targets, label_smoothing=label_smoothing)
        labels = targets if targets.is_floating_point() else F.one_hot(targets, logits.shape[1]).float()
        weights = labels * class_weights
        nll = -logits.log_softmax(1)
        smoothed = (1 - label_smoothing) * nll + label_smoothing * nll.mean(1, keepdim=True)
        mean: Tensor = (weights * smoothed).sum() / len(targets)
        return mean


def soft_targets(labels: Tensor, mixed: Mixed, outputs: int) -> Tensor:
    """Probabilities [N, outputs] of mixed samples. labels: int64 [N]."""
    one_hot, partners = (F.one_hot(of, outputs).float() for of in (labels, mixed.partners))
    return mixed.share[:, None] * one_hot + (1 - mixed.share[:, None]) * partners


def meter(class_names: Sequence[str]) -> ClassificationMeter:
    return ClassificationMeter(class_names)


def evaluation(class_names: Sequence[str], top: Sequence[int] = ()) -> Evaluation:
    return Evaluation(meter(class_names), len(class_names), top)


class ClassificationMeter:
    """Confusion counts, the summed loss and top-5 hits. Row: true class; column: predicted."""

    def __init__(self, class_names: Sequence[str]):
        self.class_names = tuple(class_names)
        self.confusion = np.zeros((len(class_names), len(class_names)), dtype=np.int64)
        self.loss_sum = 0.0
        self.top5_hits = 0

    def update(self, logits: Tensor, labels: Tensor) -> None:
        """logits: float [N, C]; labels: int64 [N]."""
        logits, labels = logits.detach().double().cpu(), labels.cpu()
        self.loss_sum += float(F.cross_entropy(logits, labels, reduction="sum"))
        np.add.at(self.confusion, (labels.numpy(), logits.argmax(1).numpy()), 1)
        top5 = logits.topk(min(5, logits.shape[1]), dim=1).indices
        self.top5_hits += int((top5 == labels[:, None]).any(1).sum())

    def merge(self, other: ClassificationMeter) -> None:
        self.confusion += other.confusion
        self.loss_sum += other.loss_sum
        self.top5_hits += other.top5_hits

    def compute(self) -> dict[str, Any]:
        """n, loss (mean), accuracy with its 95 % interval, macro and per-class precision, recall and F1.

        The interval is the percentile bootstrap over samples. Resampling n samples of which k are right
        gives Binomial(n, k/n) right ones, so counts suffice (Efron & Tibshirani 1993, chapter 13). Where all are right,
        or none, it is exact, as samples drawn again are all alike.
        Precision and recall of an empty class are 0, and it does not enter the macro means (as
        scikit-learn's defaults have it). top5_accuracy only with more than five classes.
        """
        n = int(self.confusion.sum())
        if n == 0:
            return {"n": 0}
        right = int(np.trace(self.confusion))
        low, high = _interval(right, n)
        per_class = self._per_class()
        present = [row for row in per_class if row["support"] or row["predicted"]]
        metrics: dict[str, Any] = {
            "n": n,
            "loss": self.loss_sum / n,
            "accuracy": right / n,
            "accuracy_low": low,
            "accuracy_high": high,
        }
        if len(self.class_names) > 5:
            metrics["top5_accuracy"] = self.top5_hits / n
        for name in ("precision", "recall", "f1"):
            metrics[f"macro_{name}"] = float(np.mean([row[name] for row in present]))
        return metrics | {"per_class": per_class, "confusion": self.confusion.tolist()}

    def _per_class(self) -> list[dict[str, Any]]:
        rows = []
        for i, name in enumerate(self.class_names):
            hits, support, predicted = (
                int(self.confusion[i, i]),
                int(self.confusion[i].sum()),
                int(self.confusion[:, i].sum()),
            )
            rows.append(
                {
                    "class": name,
                    "support": support,
                    "predicted": predicted,
                    "precision": hits / predicted if predicted else 0.0,
                    "recall": hits / support if support else 0.0,
                    "f1": 2 * hits / (support + predicted) if support + predicted else 0.0,
                }
            )
        return rows


def _interval(right: int, n: int) -> tuple[float, float]:
    if right in (0, n):
        return bootstrap.exact_share(right, n)
    draws = np.random.default_rng(0).binomial(n, right / n, BOOTSTRAP_DRAWS) / n
    low, high = np.quantile(draws, [0.025, 0.975])
    return float(low), float(high)
