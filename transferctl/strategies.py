"""What `advise` tries, in which order, and what it proposes in the end: pure functions over what was measured.

Selection on one small validation set is mostly chance: of ten equally good trials on 50 images, the best looks five
points better than it is. So (1) the trials are few and go coordinate by coordinate; (2) what is not clearly worse than
the best, by a standard error of the paired difference, counts as equally good, and of these the one that forgets least
and is simplest is preferred (the one-standard-error rule: Hastie, Tibshirani & Friedman, The Elements of Statistical
Learning, 2009, section 7.10); (3) it is then confirmed on images and with seeds that chose nothing.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from transferctl import paired
from transferctl.paired import Round

GIVEN, FEATURES = "given", "features"
RATE_FACTOR = 3.0
MOST_RATE_STEPS = 2  # in one direction
WEIGHTS = (0.3, 1.0, 3.0)  # λ
ROUNDING = 1e-9  # accuracies are fractions
FEWEST_ROUNDS = 2  # seeds, for a claim: one says nothing of what another would give
ENOUGH_ROUNDS = 3  # that time is kept for: Student's interval over two seeds is as wide as twelve standard errors


@dataclass(frozen=True)
class Space:
    """What there is to choose from. stages: those with parameters, input to output; thawed: how many of the last of
    them the given spec trains; rate: its learning rate; stage_rates: of stages that have one of their own;
    target_weight: its λ, None where L_S is not in the objective; head: how the trials' new heads are trained, as
    settings of `head`; has_head_first: whether it asks for LP-FT."""

    stages: tuple[str, ...]
    thawed: int
    rate: float
    stage_rates: Mapping[str, float] = field(default_factory=dict)
    target_weight: float | None = None
    head: Mapping[str, Any] = field(default_factory=lambda: {"solver": "lbfgs"})
    has_head_first: bool = False


@dataclass(frozen=True)
class Candidate:
    """A strategy. stem, what: what trains, as a name and in words; verb: that trains it; changes: to the given spec, by
    dotted key; thawed: how many stages train."""

    stem: str
    what: str
    verb: str
    changes: Mapping[str, Any]
    thawed: int

    @property
    def name(self) -> str:
        """Of its run."""
        return "+".join([self.stem, *(f"{word}-{value:g}" for word, value in self._numbers("rate", "lambda"))])

    @property
    def words(self) -> str:
        return ", ".join([self.what, *(f"{word} {value:g}" for word, value in self._numbers("learning rate", "λ"))])

    def _numbers(self, rate: str, weight: str) -> list[tuple[str, float]]:
        keys = {"optimizer.lr": rate, "lambda": weight}
        return [(word, self.changes[key]) for key, word in keys.items() if key in self.changes]

    def with_change(self, key: str, value: Any) -> Candidate:
        return replace(self, changes={**self.changes, key: value})


@dataclass(frozen=True)
class Measured:
    """A trial. right: bool [n], of the validation images that choose; loss: their mean, None where it is not of these
    alone; source_change: of the source's accuracy, None without source."""

    candidate: Candidate
    right: np.ndarray
    elapsed_s: float
    loss: float | None = None
    source_change: float | None = None

    @property
    def accuracy(self) -> float:
        return float(self.right.mean())

    def is_better_than(self, other: Measured) -> bool:
        mine, theirs = int(self.right.sum()), int(other.right.sum())
        if mine != theirs or self.loss is None or other.loss is None:
            return mine > theirs
        return self.loss < other.loss


@dataclass(frozen=True)
class LeftOut:
    """A strategy that was not measured, and why."""

    candidate: Candidate
    why: str


Trials = Generator[Candidate, Measured | None, None]  # is sent what was measured, or None where a trial was left out


def candidates(space: Space) -> Trials:
    """One after the other: the given spec; a head on frozen features; LP-FT, deeper while that helps; then, around the
    best of what fine-tunes, the learning rate and λ."""
    best = yield as_given(space)
    yield on_features(space)
    deepest = None
    for thawed in depths(len(space.stages)):
        found = yield head_first(space, thawed)
        if found is None or (deepest and not found.is_better_than(deepest)):
            break
        deepest = found
    if deepest and (best is None or deepest.is_better_than(best)):
        best = deepest
    if best is None:
        return
    for factor in (RATE_FACTOR, 1 / RATE_FACTOR):
        before = best
        for _ in range(MOST_RATE_STEPS):
            found = yield _with_rate(space, best.candidate, factor)
            if found is None or not found.is_better_than(best):
                break
            best = found
        if best is not before:  # the other way is worse, as far as one optimum goes
            break
    if space.target_weight is not None:
        base = best.candidate
        for weight in WEIGHTS:
            if weight != space.target_weight:
                yield base.with_change("lambda", weight)


def depths(stages: int) -> list[int]:
    """How many of the last stages are thawed, in turn: 1, 2, 4 …, all."""
    return [*(2**power for power in range(stages.bit_length()) if 2**power < stages), stages]


def as_given(space: Space) -> Candidate:
    return Candidate(GIVEN, "your spec", "finetune", {}, space.thawed)


def on_features(space: Space) -> Candidate:
    return Candidate(FEATURES, "a head on frozen features", "extract", _head(space), 0)


def head_first(space: Space, thawed: int) -> Candidate:
    """LP-FT (Kumar et al., ICLR 2022): the head first, on frozen features; then the last stages too."""
    frozen = space.stages[-thawed - 1] if thawed < len(space.stages) else "none"
    first = space.stages[-thawed]
    changes = _head(space) | ({} if space.has_head_first else {"head_first": {}}) | {"frozen": frozen}
    what = "all stages" if frozen == "none" else first if thawed == 1 else f"{first} to {space.stages[-1]}"
    return Candidate(f"thaw-{'all' if frozen == 'none' else first}", f"head first, then {what}", "finetune",
                     changes, thawed)  # fmt: skip


def _head(space: Space) -> dict[str, Any]:
    return {f"head.{key}": value for key, value in space.head.items()}


def _with_rate(space: Space, base: Candidate, factor: float) -> Candidate:
    """Of all stages: those that have a rate of their own keep their proportion."""
    rate = _rounded(factor * base.changes.get("optimizer.lr", space.rate))
    changed = base.with_change("optimizer.lr", rate)
    own = {stage: _rounded(rate / space.rate * of) for stage, of in space.stage_rates.items()}
    return changed.with_change("optimizer.stage_lr", own) if own else changed


def _rounded(rate: float) -> float:
    return float(f"{rate:.2g}")


# -- choosing ---------------------------------------------------------------------------------------------


def standard_error(one: np.ndarray, other: np.ndarray) -> float:
    """Of the difference of two accuracies on the same samples, were both as good: √(gained + lost)/n, as in McNemar's
    test (1947); so that a single sample is never more than it. one, other: bool [n]."""
    return float(np.sqrt(np.count_nonzero(one != other)) / len(one))


def best_of(trials: Sequence[Measured]) -> Measured:
    """The first of the best."""
    best = trials[0]
    for trial in trials[1:]:
        best = trial if trial.is_better_than(best) else best
    return best


def not_worse(trials: Sequence[Measured]) -> list[Measured]:
    """Those within a standard error of the best."""
    best = best_of(trials)
    return [t for t in trials if best.accuracy - t.accuracy <= standard_error(best.right, t.right) + ROUNDING]


def preferred(trials: Sequence[Measured]) -> Measured:
    """Of trials that are equally good on the target: what forgets least, which is on the Pareto front of both; then
    what trains fewest stages, changes the given spec least, and takes least time."""

    def order(trial: Measured) -> tuple[float, int, int, float]:
        candidate = trial.candidate
        return -(trial.source_change or 0.0), candidate.thawed, len(candidate.changes), trial.elapsed_s

    return min(trials, key=order)


def contenders(trials: Sequence[Measured]) -> list[Measured]:
    """What is worth confirming, each once: the given spec, frozen features, which cost next to nothing, what is
    preferred, and the best."""
    basic = [trial for trial in trials if trial.candidate.name in (GIVEN, FEATURES)]
    wanted = [*basic, preferred(not_worse(trials)), best_of(trials)]
    return list({trial.candidate.name: trial for trial in wanted}.values())


def on_the_front(trials: Sequence[Measured]) -> list[Measured]:
    """The Pareto front of target accuracy and the source's change: none other is as good on both and better on one."""

    def ahead(one: Measured, other: Measured) -> bool:
        ours = one.accuracy, one.source_change or 0.0
        theirs = other.accuracy, other.source_change or 0.0
        return ours != theirs and ours[0] >= theirs[0] and ours[1] >= theirs[1]

    return [trial for trial in trials if not any(ahead(other, trial) for other in trials)]


# -- deciding ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Decision:
    """What is proposed. accuracies: of the contenders, by name, over all rounds; against_given: the paired difference
    to the given spec with its 95 % interval, None where that was not confirmed or is what is proposed; rounds: seeds
    that confirmed it; is_better: whether it can be said to beat the given spec."""

    chosen: Candidate
    accuracies: Mapping[str, float] = field(default_factory=dict)
    against_given: Mapping[str, float] | None = None
    rounds: int = 0
    is_better: bool = False


def decide(contending: Sequence[Measured], rounds: Sequence[Mapping[str, Round]]) -> Decision:
    """The preferred one among those within a standard error of the best, by images and seeds that chose nothing: over
    all rounds, each with the outcomes of every contender, by name. Without rounds, by the trials themselves, and then
    nothing is claimed. The given spec stays where it is among the best and too few rounds speak for another."""
    if not rounds:
        return Decision(_proposed(not_worse(contending), 0))
    by_name = {trial.candidate.name: trial for trial in contending}
    outcomes = {name: [one[name] for one in rounds] for name in by_name}
    accuracies = {name: paired.pooled_accuracy(of) for name, of in outcomes.items()}
    best = max(accuracies, key=accuracies.__getitem__)

    def is_equal(name: str) -> bool:
        error = paired.pooled_difference(outcomes[name], outcomes[best])["standard_error"]
        return accuracies[best] - accuracies[name] <= error + ROUNDING

    chosen = _proposed([trial for name, trial in by_name.items() if is_equal(name)], len(rounds))
    if GIVEN not in by_name or chosen.name == GIVEN:
        return Decision(chosen, accuracies, None, len(rounds))
    against = paired.pooled_difference(outcomes[GIVEN], outcomes[chosen.name])
    is_better = len(rounds) >= FEWEST_ROUNDS and against["accuracy_difference_low"] > 0
    return Decision(chosen, accuracies, against, len(rounds), is_better)


def _proposed(equal: Sequence[Measured], rounds: int) -> Candidate:
    """Of those that are equally good. A simpler one that only seems as good is no reason to change a spec."""
    given = [trial for trial in equal if trial.candidate.name == GIVEN]
    return preferred(given if given and rounds < FEWEST_ROUNDS else equal).candidate
