"""What `advise` says of what it found: made-up trials, no training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from transferctl import advicewords, strategies
from transferctl.advicewords import Found
from transferctl.datafacts import DataFacts
from transferctl.learningcurve import Curves, OutOfFold, Point
from transferctl.strategies import GIVEN, Candidate, Decision, LeftOut, Measured, Space

SPACE = Space(("stem", "layer1", "layer2"), 3, 0.001, {"layer2": 0.0005}, target_weight=1.0)
YOURS = Candidate(GIVEN, "your spec", "finetune", {}, 3)
SHALLOW, DEEP = strategies.head_first(SPACE, 1), strategies.head_first(SPACE, 2)
HIGH, LOW = (strategies._with_rate(SPACE, SHALLOW, factor) for factor in (3.0, 1 / 3))
HEAVY = HIGH.with_change("lambda", 3.0)


def found(trials: dict[str, tuple[Candidate, int]], chosen: Candidate, **others: Any) -> Found:
    """trials: candidates and how many of 10 images each gets right."""
    measured = [Measured(candidate, np.arange(10) < right, 1.0) for candidate, right in trials.values()]
    facts = DataFacts(20, 10, {"a": 10, "b": 10}, 0.5, 64, 0.0, 64, 64)
    values = {"curves": Curves(()), "left_out": [], "decision": Decision(chosen), **others}
    return Found(facts, values["curves"], SPACE, measured, values["left_out"], values["decision"], 10, 0, {})


def evidence(of: Sequence[Any]) -> dict[str, str]:
    return {choice.key: choice.evidence for choice in of}


TRIED = {
    "yours": (YOURS, 1), "features": (strategies.on_features(SPACE), 2), "shallow": (SHALLOW, 3), "deep": (DEEP, 4),
    "high": (HIGH, 5), "low": (LOW, 6), "heavy": (HEAVY, 7),
}  # fmt: skip


def test_the_evidence_for_a_number_is_what_differs_in_it_alone() -> None:
    told = evidence(advicewords.choices(found(TRIED, HEAVY)))
    rates = "head first, then layer2 30.0 %; head first, then layer2, learning rate 0.003 50.0 %; head first, then "
    assert told["optimizer.lr"] == f"Validation accuracy, n = 10: {rates}layer2, learning rate 0.00033 60.0 %."
    weights = "learning rate 0.003 50.0 %; head first, then layer2, learning rate 0.003, λ 3 70.0 %"
    assert told["lambda"] == f"Validation accuracy, n = 10: head first, then layer2, {weights}."


def test_a_rate_varied_around_the_given_spec_is_shown_beside_it() -> None:
    varied = strategies._with_rate(SPACE, YOURS, 3.0)
    tried = found({"yours": (YOURS, 1), "features": TRIED["features"], "varied": (varied, 9)}, varied)
    told = evidence(advicewords.choices(tried))
    assert (
        told["optimizer.lr"] == "Validation accuracy, n = 10: your spec 10.0 %; your spec, learning rate 0.003 90.0 %."
    )


def test_without_a_trial_the_spec_stays_and_it_says_which_probe_there_is() -> None:
    given, some = strategies.as_given(SPACE), Point(5, (np.arange(10) < 6, np.arange(10) < 8))
    for curves, probe in (
        (Curves((some,)), "Linear probe on 5 labels 70.0 % of validation data"),
        (Curves((some,), out_of_fold=OutOfFold(8, 10, 5)), "Linear probe 80.0 %"),
    ):
        told = found({}, given, curves=curves)
        assert (
            evidence(advicewords.choices(told))["verb"]
            == f"No trial was made. {probe}, always the largest class 50.0 %."
        )
        assert "keep it" in advicewords.verdict(told)


def test_a_given_spec_that_failed_with_another_seed_is_not_compared_with() -> None:
    failed = [LeftOut(YOURS, "failed with seed 1: out of memory")]
    told = advicewords.verdict(found(TRIED, SHALLOW, left_out=failed))
    assert told.startswith("Your spec: failed with seed 1: out of memory. So nothing is said of whether")
