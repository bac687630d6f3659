"""Two models on the same samples: what differs, and whether chance alone would make it differ as much."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor
from torch.nn import functional as F

from transferctl import bootstrap, scratch
from transferctl.display import Display

ACCURACY_DRAWS = 10_000
LOSS_DRAWS = 2_000  # fewer beyond 50,000 samples


@dataclass(frozen=True)
class Outcomes:
    """Of each sample, in order: whether its class was predicted, bool [n], and its loss, float64 [n]."""

    right: np.ndarray
    losses: np.ndarray


Scored = tuple[dict[str, Any], Outcomes]  # metrics and outcomes of the same samples


class Recorder:
    """Collects the outcomes of each batch that is scored."""

    def __init__(self) -> None:
        self._right, self._losses = scratch.Growing(bool), scratch.Growing(np.float64)

    def __call__(self, logits: Tensor, labels: Tensor) -> None:
        """logits: [N, C]; labels: int64 [N]."""
        self._right.append((logits.argmax(1) == labels).numpy())
        self._losses.append(F.cross_entropy(logits.double(), labels, reduction="none").numpy())

    def outcomes(self) -> Outcomes:
        return Outcomes(self._right.array(), self._losses.array())


def scalars(noun: str) -> list[str]:
    """The names that `difference` gives."""
    return [f"{metric}_{noun}{end}" for metric in ("accuracy", "loss") for end in ("", "_low", "_high")]


def difference(before: Outcomes, after: Outcomes, noun: str) -> dict[str, float]:
    """Accuracy and loss after less before (accuracy_NOUN, loss_NOUN), each with its 95 % interval (…_low, …_high).

    The percentile bootstrap over samples, paired: a sample is drawn with both its outcomes (Efron & Tibshirani 1993,
    chapter 13). Of accuracy, the numbers of samples gained and lost suffice, which are multinomial.
    """
    assert len(before.right) == len(after.right), "the same samples, in the same order"
    random, n = np.random.default_rng(0), len(before.right)
    accuracy = accuracy_difference(before.right, after.right, noun, random)
    differences, drawn = scratch.empty(n, np.float64), scratch.empty(n, np.float64)
    np.subtract(after.losses, before.losses, out=differences)
    draws = min(LOSS_DRAWS, max(bootstrap.WORK // n, bootstrap.FEWEST_DRAWS))
    losses = np.array([_redrawn(differences, random, drawn).mean() for _ in range(draws)])
    return accuracy | _interval(f"loss_{noun}", float(differences.mean()), losses)


def accuracy_difference(
    before: np.ndarray, after: np.ndarray, noun: str, random: np.random.Generator | None = None
) -> dict[str, float]:
    """Of two models' hits on the same samples, bool [n]: accuracy after less before, with its interval."""
    random, n = random or np.random.default_rng(0), len(before)
    gained, lost = np.count_nonzero(after & ~before) / n, np.count_nonzero(before & ~after) / n
    counts = random.multinomial(n, [gained, lost, max(1 - gained - lost, 0)], ACCURACY_DRAWS)
    return _interval(f"accuracy_{noun}", gained - lost, (counts[:, 0] - counts[:, 1]) / n)


@dataclass(frozen=True)
class Round:
    """What a model of one seed got right: bool [n], of the samples called `names`."""

    names: tuple[str, ...]
    right: np.ndarray


def pooled_accuracy(rounds: Sequence[Round]) -> float:
    """Over the samples of all rounds."""
    return float(np.concatenate([one.right for one in rounds]).mean())


def pooled_difference(before: Sequence[Round], after: Sequence[Round]) -> dict[str, float]:
    """Of two ways of training, each with the same seeds, on the same samples seed by seed: accuracy after less before
    over all of them, with its standard error and 95 % interval.

    Seeds and samples are both drawn again, crossed (the pigeonhole bootstrap: Owen, Annals of Applied Statistics 2007):
    a sample that several seeds saw is one sample, and a bad seed is bad for all of its samples. A few seeds drawn again
    are too alike, as two have half of their variance; so the interval is at least as wide as Student's over the
    differences of the seeds. Of one seed, chance in training is not in the interval.
    """
    positions: dict[str, int] = {}
    for one in before:
        for name in one.names:
            positions.setdefault(name, len(positions))
    n, seeds = len(positions), len(before)
    gained, seen = np.zeros((2, n, seeds))
    for seed, (old, new) in enumerate(zip(before, after, strict=True)):
        assert old.names == new.names, "the same samples, in the same order"
        rows = [positions[name] for name in old.names]
        np.add.at(gained[:, seed], rows, new.right.astype(float) - old.right)
        np.add.at(seen[:, seed], rows, 1)
    draws = bootstrap.draws_for(n, 2 * seeds)
    sums = np.zeros((2, draws, seeds))
    for part, weights in bootstrap.weights(n, draws):
        sums += np.stack([weights @ gained[part], weights @ seen[part]])
    of_seeds = np.random.default_rng(0).multinomial(seeds, [1 / seeds] * seeds, draws)
    top, bottom = (sums * of_seeds).sum(2)
    drawn = top[bottom > 0] / bottom[bottom > 0]
    name, difference = "accuracy_difference", float(gained.sum() / seen.sum())
    found = _interval(name, difference, drawn)
    half = _students_half(gained.sum(0) / seen.sum(0))
    if not np.ptp(drawn):  # no sample tells them apart, or all do alike: others might
        half = max(half, bootstrap.exact_share(0, n)[1])
    found[f"{name}_low"] = max(min(found[f"{name}_low"], difference - half), -1.0)
    found[f"{name}_high"] = min(max(found[f"{name}_high"], difference + half), 1.0)
    return found | {"standard_error": float(drawn.std())}


def _students_half(differences: np.ndarray) -> float:
    """Half of the 95 % interval of a mean by Student (1908): [n], one a seed; 0 of one alone, which tells no spread."""
    from scipy.stats import t

    n = len(differences)
    return float(t.ppf(0.975, n - 1) * differences.std(ddof=1) / n**0.5) if n > 1 else 0.0


def mcnemar(before: np.ndarray, after: np.ndarray) -> dict[str, float | int]:
    """McNemar's exact test (1947): if both were as good, of the samples that one alone gets right each would have half.

    before, after: bool [n], whether each sample's class was predicted. gained, lost: how many `after` alone, and
    `before` alone, has right; mcnemar_p: how likely a split as uneven as that, or more, would be (two-sided).
    """
    from scipy.stats import binomtest

    gained, lost = int(np.count_nonzero(after & ~before)), int(np.count_nonzero(before & ~after))
    p = binomtest(gained, gained + lost).pvalue if gained + lost else 1.0
    return {"gained": gained, "lost": lost, "mcnemar_p": float(p)}


def show(
    display: Display, title: str, columns: tuple[str, str], before: Mapping[str, Any], after: Mapping[str, Any],
    differences: Mapping[str, float], noun: str,
) -> None:  # fmt: skip
    """A table of both and what lies between them. columns: what the two are called."""
    points = {key: 100 * differences[key] for key in scalars(noun) if key.startswith("accuracy")}
    rows = [
        ["accuracy, %", f"{100 * before['accuracy']:.1f}", f"{100 * after['accuracy']:.1f}",
         *_signed(points, f"accuracy_{noun}", 1, " points")],
        ["loss", f"{before['loss']:.4f}", f"{after['loss']:.4f}", *_signed(differences, f"loss_{noun}", 4)],
    ]  # fmt: skip
    display.table(title, ["metric", *columns, noun, "95 % interval"], rows)


def _redrawn(values: np.ndarray, random: np.random.Generator, out: np.ndarray) -> np.ndarray:
    """values[random.integers(n, size=n)], without the index in memory."""
    for part in scratch.pieces(len(values)):
        out[part] = values[random.integers(len(values), size=part.stop - part.start)]
    return out


def _interval(name: str, value: float, draws: np.ndarray) -> dict[str, float]:
    low, high = np.quantile(draws, [0.025, 0.975])
    return {name: float(value), f"{name}_low": float(low), f"{name}_high": float(high)}


def _signed(values: Mapping[str, float], name: str, digits: int, unit: str = "") -> list[str]:
    value, low, high = (f"{values[key]:+.{digits}f}" for key in (name, f"{name}_low", f"{name}_high"))
    return [value + unit, f"{low} to {high}"]
