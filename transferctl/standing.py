"""Where each of several models stands, as far as the samples that all of them predict can tell; and which to take."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from transferctl import paired
from transferctl.wording import shown, two_digits

ALIKE = 0.9  # of another's operations: what saves less than a tenth costs as much


@dataclass(frozen=True)
class Entrant:
    """right: bool [n], of each sample whether it is predicted; low, high: the accuracy's 95 % interval. barred: whether
    its accuracy flatters, so that it is not advised. random: whether nothing was learnt before. features: a text
    that those who compute the very same ones share; empty: no other does."""

    label: str
    right: np.ndarray
    low: float
    high: float
    gflop: float
    images_per_s: float
    neighbours: float | None = None
    barred: bool = False
    random: bool = False
    features: str = ""

    @property
    def accuracy(self) -> float:
        return float(self.right.mean())

    @property
    def both(self) -> float:
        """The mean of both accuracies. Of networks that tie by the probe it tells more than the probe alone: of a
        ResNet-18 and its fourth epoch, on twelve draws of 195 photographs, it found the better one in ten, where the
        probe did in seven."""
        return self.accuracy if self.neighbours is None else (self.accuracy + self.neighbours) / 2


@dataclass(frozen=True)
class Standing:
    """first, last: the places from 1 that it may have. ties: labels of those whose intervals overlap its own. behind:
    its accuracy less the first one's, with the paired 95 % interval (accuracy_to_best, …_low, …_high)."""

    first: int
    last: int
    ties: tuple[str, ...]
    behind: dict[str, float]

    def __str__(self) -> str:
        return str(self.first) if self.first == self.last else f"{self.first}–{self.last}"


@dataclass(frozen=True)
class Advice:
    """label: of what to take; None where nothing is to be taken."""

    label: str | None
    text: str


def order(entrants: Sequence[Entrant]) -> list[int]:
    """By accuracy, the best first; of equals the cheaper one, then as they came."""
    return sorted(range(len(entrants)), key=lambda i: (-entrants[i].accuracy, entrants[i].gflop))


def standings(ordered: Sequence[Entrant]) -> list[Standing]:
    """Of entrants in their order. A place is open between those whose intervals overlap: one that is surely better has
    all of its interval above."""
    found = []
    for one in ordered:
        better = sum(other.low > one.high for other in ordered)
        worse = sum(other.high < one.low for other in ordered)
        ties = tuple(other.label for other in ordered if other is not one and _overlap(one, other))
        behind = paired.accuracy_difference(ordered[0].right, one.right, "to_best")
        found.append(Standing(1 + better, len(ordered) - worse, ties, behind))
    return found


def _overlap(one: Entrant, other: Entrant) -> bool:
    return one.low <= other.high and other.low <= one.high


def advise(ordered: Sequence[Entrant], majority: float) -> Advice:
    """What to take, in a sentence with its reason; those that compute the same features count as one. majority: the
    share of the most frequent class, which a model that has learnt nothing predicts."""
    groups: dict[str, list[Entrant]] = {}
    for one in ordered:
        groups.setdefault(one.features or f"of {one.label} alone", []).append(one)
    advice = _advise([_as_one(group) for group in groups.values()], majority)
    alike = [[one.label for one in group] for group in groups.values() if len(group) > 1]
    told = "".join(f"; {shown(labels, 20)} compute the same features, and count as one" for labels in alike)
    return replace(advice, text=advice.text + told)


def _as_one(group: Sequence[Entrant]) -> Entrant:
    """What is known of one of them is true of all."""
    return replace(group[0], barred=any(one.barred for one in group), random=any(one.random for one in group))


def _advise(ordered: Sequence[Entrant], majority: float) -> Advice:
    fair = [one for one in ordered if not one.barred]
    if not fair:
        return Advice(None, "none is advised: all have learnt from these very images, so that their accuracies flatter")
    if fair[0].low <= majority:
        return Advice(None, _none_has_learnt(fair[0], majority))
    if len(fair) == 1:
        text = f"take {fair[0].label}, at {_percent(fair[0])}: there is no other to compare it with"
        return Advice(fair[0].label, text)
    return _among(fair, majority)


def _among(fair: Sequence[Entrant], majority: float) -> Advice:
    """Of those that have learnt something and are not worse than the first, as far as the samples tell, the cheapest;
    of such as cost the same the one that k-NN speaks for too.

    Random weights must be shown to be better: a probe does well on their features where images are simple, and they
    are fine-tuned from nothing all the same. On digits (tests/benchmarks/selection.py) random weights that tie with
    pretrained ones, 95.3 to 96.8 % and 93.1 to 90.6 %, were fine-tuned to 91.1 where those came to 96.3 %, and to 87.1
    where those came to 93.5 %."""
    best, n = fair[0], len(fair[0].right)
    tied = [one for one in fair if one.low > majority and not _is_worse(one, best)]
    tied = [one for one in tied if not one.random] or tied
    least = min(one.gflop for one in tied)
    chosen = max((one for one in tied if ALIKE * one.gflop <= least), key=lambda one: one.both)
    if best.random and not chosen.random:
        text = f"take {chosen.label}, at {_percent(chosen)}: {_not_at_random(chosen, best)}"
    elif len(tied) == len(fair):
        text = _all_tie(best, fair[-1], chosen, n, len(fair))
    elif len(tied) == 1:
        text = f"take {best.label}, at {_percent(best)}: {_alone(best, fair[1], majority)}"
    elif chosen is best:
        reason = f"the first of {len(tied)} that {n:,} images cannot tell apart, none of them much cheaper"
        text = f"take {best.label}, at {_percent(best)}: {reason}"
    else:
        tie = f"it is not shown to be worse than the first, {best.label} ({_difference(chosen, best)})"
        text = f"take {chosen.label}, at {_percent(chosen)}: {tie}, {_reason(chosen, best)}"
    return Advice(chosen.label, text)


_SELDOM = "fine-tuning seldom makes up for what was never learnt"


def _not_at_random(chosen: Entrant, best: Entrant) -> str:
    return (
        f"the first, {best.label}, has random weights and is not shown to be better ({_difference(chosen, best)}); "
        f"{_SELDOM}"
    )


def _reason(chosen: Entrant, best: Entrant) -> str:
    """Why to take one that ties with the best."""
    if chosen.gflop < ALIKE * best.gflop:
        speeds = f"{two_digits(chosen.images_per_s)} images/s here against {two_digits(best.images_per_s)}"
        return f"and takes {chosen.gflop:.2g} GFLOP an image where that takes {best.gflop:.2g} ({speeds})"
    neighbours = [f"{100 * (one.neighbours or 0):.1f}" for one in (chosen, best)]
    return f"costs no more, and is ahead by k-NN, at {neighbours[0]} % against {neighbours[1]} %"


def _is_worse(one: Entrant, best: Entrant) -> bool:
    """By its interval, or by the paired one, which tells more on the same samples."""
    change = paired.accuracy_difference(best.right, one.right, "change")
    return not _overlap(one, best) or change["accuracy_change_high"] < 0


def _none_has_learnt(best: Entrant, majority: float) -> str:
    return (
        f"none is advised: not even {best.label}, at {_percent(best)}, is shown to be better than always naming the "
        f"most frequent class ({100 * majority:.1f} %); label more images, or rank others"
    )


def _percent(one: Entrant) -> str:
    return f"{100 * one.accuracy:.1f} % ({100 * one.low:.1f}–{100 * one.high:.1f})"


def _difference(one: Entrant, best: Entrant) -> str:
    change = paired.accuracy_difference(best.right, one.right, "change")
    value, low, high = (100 * change[f"accuracy_change{end}"] for end in ("", "_low", "_high"))
    return f"{value:+.1f} points, {low:+.1f} to {high:+.1f}"


def _alone(best: Entrant, second: Entrant, majority: float) -> str:
    if _is_worse(second, best):
        return f"the next, {second.label}, is behind on the same images ({_difference(second, best)})"
    if second.random and second.low > majority:
        return f"{second.label} ties with it ({_difference(second, best)}), but has random weights; {_SELDOM}"
    return f"no other is shown to be better than always naming the most frequent class ({100 * majority:.1f} %)"


def _all_tie(best: Entrant, last: Entrant, chosen: Entrant, n: int, number: int) -> str:
    which = "both" if number == 2 else f"all {number}"
    why = "the first, and none is much cheaper" if chosen is best else f"at {_percent(chosen)}: it "
    why += "" if chosen is best else _reason(chosen, best).removeprefix("and ")
    return (
        f"{n:,} images cannot tell {which} apart ({best.label} {_percent(best)}, {last.label} {_percent(last)}"
        f"{_enough(best, last, n)}); until then take {chosen.label}, {why}"
    )


def _enough(best: Entrant, last: Entrant, n: int) -> str:
    """How many samples would part the first from the last, were their accuracies to stay: an interval's width falls
    with the root of n."""
    gap = best.accuracy - last.accuracy
    if gap <= 0:
        return ""
    widths = best.accuracy - best.low + last.high - last.accuracy
    needed = math.ceil(n * (widths / gap) ** 2)
    magnitude = 10 ** max(len(str(needed)) - 2, 0)
    return f"; about {math.ceil(needed / magnitude) * magnitude:,} would, if these accuracies stayed"
