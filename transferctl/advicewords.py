"""What `advise` found, in words and tables: each choice with its evidence and what would change it, and the verdict."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from transferctl import strategies
from transferctl.advisedspec import Choice
from transferctl.budget import in_words as duration
from transferctl.datafacts import DataFacts
from transferctl.learningcurve import Curves
from transferctl.strategies import FEATURES, GIVEN, Decision, LeftOut, Measured, Space
from transferctl.wording import counted, percent, points_with_interval

NO_TEST = "Test data was not looked at."


@dataclass(frozen=True)
class Found:
    """All that decides. choosing, confirming: how many validation images did either; spread: each contender's accuracy
    by seed, by name."""

    facts: DataFacts
    curves: Curves
    space: Space
    trials: Sequence[Measured]
    left_out: Sequence[LeftOut]
    decision: Decision
    choosing: int
    confirming: int
    spread: Mapping[str, Sequence[float]]

    @property
    def why_no_given(self) -> str:
        """Why nothing can be said of the given spec; empty where it was measured, and failed with no seed."""
        was_tried = any(trial.candidate.name == GIVEN for trial in self.trials)
        return next((one.why for one in self.left_out if one.candidate.name == GIVEN), "" if was_tried else "not tried")


# -- tables -------------------------------------------------------------------------------------------------


def probe_rows(curves: Curves, facts: DataFacts) -> list[list[str]]:
    found = curves.out_of_fold
    rows = [
        ["always the largest class", percent(facts.majority), "of validation data"],
        ["by chance", percent(1 / len(facts.counts)), ""],
    ]
    if found is None:
        why = "a class has one image" if min(facts.counts.values()) < 2 else "there was no time for it on all labels"
        return [["linear probe", "", f"not cross-validated: {why}"], *rows]
    low, high = found.interval
    interval = f"95 % interval {100 * low:.1f} to {100 * high:.1f}"
    how = f"{interval}; {found.folds} folds of {counted(found.n, 'training image')}"
    return [["linear probe on frozen features", percent(found.accuracy), how], *rows]


def trial_rows(found: Found) -> list[list[str]]:
    has_source = any(trial.source_change is not None for trial in found.trials)
    front = {trial.candidate.name for trial in strategies.on_the_front(found.trials)} if found.trials else set()
    rows = []
    for trial in found.trials:
        source = "" if trial.source_change is None else f"{100 * trial.source_change:+.1f}"
        mark = "*" if trial.candidate.name in front else ""
        rows.append([
            trial.candidate.words, f"{100 * trial.accuracy:.1f}", *([f"{source}{mark}"] if has_source else []),
            _by_seed(found.spread.get(trial.candidate.name, ())), duration(trial.elapsed_s),
        ])  # fmt: skip
    return rows


def trial_columns(found: Found) -> list[str]:
    has_source = any(trial.source_change is not None for trial in found.trials)
    return ["strategy", "accuracy, %", *(["source, points"] if has_source else []), "confirmed, by seed", "took"]


def _by_seed(accuracies: Sequence[float]) -> str:
    return ", ".join(f"{100 * one:.1f}" for one in accuracies)


# -- the verdict --------------------------------------------------------------------------------------------


def verdict(found: Found) -> str:
    decision, on = found.decision, f"on {counted(found.confirming, 'validation image')} that chose nothing"
    seeds = counted(decision.rounds, "seed")
    if not found.trials:
        return (
            "There was no time for a trial, so nothing speaks for another spec than yours: keep it, or give a larger "
            f"--budget. {NO_TEST}"
        )
    if found.why_no_given:
        return f"Your spec: {found.why_no_given}. So nothing is said of whether the proposal beats it. {NO_TEST}"
    if decision.chosen.name == GIVEN:
        sure = f"over {seeds}, {on}" if decision.rounds else "on the images of one seed, which also chose"
        return f"Nothing that was tried is clearly better than your spec, {sure}: keep it. {NO_TEST}"
    if decision.against_given is None:
        return (
            "This was not confirmed with other seeds and images, so it is not claimed that the proposal beats your "
            f"spec. {NO_TEST}"
        )
    told = f"{points_with_interval(decision.against_given)} over {seeds}, {on}"
    if decision.is_better:
        return f"The proposal beats your spec: {told}. {NO_TEST}"
    few = "" if decision.rounds >= strategies.FEWEST_ROUNDS else "; one seed does not say what another would give"
    return f"It cannot be shown that the proposal beats your spec: {told}{few}. {_why(found)} {NO_TEST}"


def _why(found: Found) -> str:
    """Why this one, where it cannot be shown to be better."""
    if (found.decision.against_given or {}).get("accuracy_difference", 0) > 0:
        return "It is proposed as it did better, which may be chance."
    changes = {trial.candidate.name: trial.source_change for trial in found.trials}
    mine, given = changes.get(found.decision.chosen.name), changes.get(GIVEN)
    if mine is not None and given is not None and mine > given:
        return "It is proposed as it is not worse, within a standard error, and forgets less of the source."
    if found.decision.chosen.thawed < found.space.thawed:
        return "It is proposed as it is not worse, within a standard error, and simpler: fewer stages train."
    return "It is proposed as it is not worse, within a standard error."


# -- the choices --------------------------------------------------------------------------------------------


def choices(found: Found) -> list[Choice]:
    """One a setting that was decided, kept ones included; of extract those that it reads."""
    chosen = found.decision.chosen
    told = [_of_the_verb(found)]
    if any(key.startswith("head.") for key in chosen.changes):
        told.append(_of_the_head(found))
    if chosen.verb == "extract":
        return told
    if "head_first" in chosen.changes:
        told.append(_of_head_first(found))
    told.append(_of_the_depth(found))
    told.append(_of("optimizer.lr", found.space.rate, "a third, or three times", found))
    if found.space.target_weight is not None:
        told.append(_of("lambda", found.space.target_weight, "0.3, 1 and 3", found))
    return told


def _of_the_verb(found: Found) -> Choice:
    chosen, trials = found.decision.chosen, list(found.trials)
    features = next((trial for trial in trials if trial.candidate.name == FEATURES), None)
    tuned = [trial for trial in trials if trial.candidate.verb == "finetune"]
    if not trials:
        evidence = f"No trial was made. {_probe(found)}"
    else:
        few = _accuracies(_few(features, tuned))
        evidence = f"Validation accuracy, n = {found.choosing}: {few}. {_confirmed(found)}".rstrip()
    if chosen.verb == "extract":
        value = "extract, a head on frozen features"
        otherwise = "More labels, or more validation data, could show that fine-tuning gains something; a larger --budget confirms with more seeds."  # noqa: E501
    else:
        value = "finetune"
        otherwise = "Fewer labels, or a backbone nearer to the task, would make frozen features enough."
    return Choice("verb", value, evidence, otherwise)


def _few(features: Measured | None, tuned: Sequence[Measured]) -> list[Measured]:
    """The given spec, frozen features, and the best that fine-tunes, each once."""
    given = [trial for trial in tuned if trial.candidate.name == GIVEN]
    wanted = [*given, *([features] if features else []), *([strategies.best_of(tuned)] if tuned else [])]
    return list({trial.candidate.name: trial for trial in wanted}.values())


def _confirmed(found: Found) -> str:
    if not found.decision.accuracies:
        return ""
    by_name = {trial.candidate.name: trial.candidate.words for trial in found.trials}
    means = "; ".join(f"{by_name[name]} {percent(of)}" for name, of in found.decision.accuracies.items())
    return f"Again with {counted(found.decision.rounds, 'other seed')}, n = {found.confirming}: {means}."


def _probe(found: Found) -> str:
    fold = found.curves.out_of_fold
    majority = f"always the largest class {percent(found.facts.majority)}"
    if fold:
        return f"Linear probe {percent(fold.accuracy)}, {majority}."
    most = found.curves.probe[-1]
    return f"Linear probe on {most.labels:,} labels {percent(most.mean)} of validation data, {majority}."


def _of_the_head(found: Found) -> Choice:
    solver = found.space.head["solver"]
    return Choice(
        "head.solver", f"{solver}, the converged linear head",
        "It has no learning rate and no epochs to be chosen; its regularisation is cross-validated on training data.",
        "Hidden layers or dropout in the head take solver: sgd.",
    )  # fmt: skip


def _of_head_first(found: Found) -> Choice:
    tried = [trial for trial in found.trials if "head_first" in trial.candidate.changes]
    given = [trial for trial in found.trials if trial.candidate.name == GIVEN]
    return Choice(
        "head_first", "the new head is trained first, on frozen features (LP-FT)",
        "A head that starts at random sends gradients into the backbone that distort it. Validation accuracy: "
        f"{_accuracies([*given, *tried[:1]])}.",
        "Many labels and epochs make it matter less.",
    )  # fmt: skip


def _of_the_depth(found: Found) -> Choice:
    chosen = found.decision.chosen
    tried = [
        trial for trial in found.trials
        if trial.candidate.stem.startswith("thaw-") and "+" not in trial.candidate.name
    ]  # fmt: skip
    stages = found.space.stages[len(found.space.stages) - chosen.thawed :]
    value = (
        f"{counted(len(stages), 'stage')} of {len(found.space.stages)} train ({', '.join(stages)})"
        if stages
        else "no stage trains"
    )
    if not tried:
        return Choice("frozen", value, "As in your spec; no other depth was tried.", "A larger --budget tries others.")
    return Choice(
        "frozen", value, f"Validation accuracy, n = {found.choosing}, deeper while that helped: {_accuracies(tried)}.",
        "More labels let more stages learn.",
    )  # fmt: skip


def _of(key: str, given: float, others: str, found: Found) -> Choice:
    """A number: what was tried around it, all else alike."""
    is_rate = key == "optimizer.lr"
    moved = {key, "optimizer.stage_lr"} if is_rate else {key}
    value = found.decision.chosen.changes.get(key, given)
    tried = [trial for trial in found.trials if key in trial.candidate.changes]
    if is_rate:
        tried = [trial for trial in tried if "lambda" not in trial.candidate.changes]
    if not tried:
        return Choice(
            key, f"{value:g}, as in your spec", "No other was tried.", f"A larger --budget tries {others}."
        )  # fmt: skip

    def rest(trial: Measured) -> dict[str, Any]:
        return {name: of for name, of in trial.candidate.changes.items() if name not in moved}

    alike = [trial for trial in found.trials if trial.candidate.verb == "finetune" and rest(trial) == rest(tried[0])]
    kept = ", as in your spec" if value == given else ""
    kept += "; stage_lr with it" if is_rate and "optimizer.stage_lr" in found.decision.chosen.changes else ""
    return Choice(
        key, f"{value:g}{kept}", f"Validation accuracy, n = {found.choosing}: {_accuracies(alike)}.",
        "More epochs ask for a lower one, fewer for a higher one." if is_rate else
        "A larger λ weighs the target more, a smaller one what the backbone knew.",
    )  # fmt: skip


def _accuracies(trials: Sequence[Measured]) -> str:
    return "; ".join(f"{trial.candidate.words} {percent(trial.accuracy)}" for trial in trials)


# -- for --json -----------------------------------------------------------------------------------------------


def trials_as_json(trials: Sequence[Measured], left_out: Sequence[LeftOut]) -> dict[str, Any]:
    told = [
        {"name": trial.candidate.name, "strategy": trial.candidate.words, "verb": trial.candidate.verb,
         "changes": dict(trial.candidate.changes), "accuracy": trial.accuracy, "n": len(trial.right),
         "source_change": trial.source_change, "elapsed_s": round(trial.elapsed_s, 3)}
        for trial in trials
    ]  # fmt: skip
    return {"trials": told, "left_out": [{"strategy": one.candidate.words, "reason": one.why} for one in left_out]}


def as_json(found: Found) -> dict[str, Any]:
    decision, chosen = found.decision, found.decision.chosen
    confirmation: dict[str, Any] = {"rounds": decision.rounds, "n": found.confirming}
    confirmation |= {"accuracies": dict(decision.accuracies), "by_seed": {k: list(v) for k, v in found.spread.items()}}
    confirmation |= {"against_given": decision.against_given and dict(decision.against_given)}
    advised = {"name": chosen.name, "strategy": chosen.words, "verb": chosen.verb, "changes": dict(chosen.changes)}
    return {
        "confirmation": confirmation, "advised": advised | {"beats_given": decision.is_better},
        "verdict": verdict(found), "choices": [vars(choice) for choice in choices(found)],
    }  # fmt: skip
