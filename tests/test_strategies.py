"""What `advise` tries and decides, on made-up measurements: no training."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import pytest
from scipy.stats import binomtest, ttest_1samp

from transferctl import paired, strategies
from transferctl.paired import Round
from transferctl.strategies import FEATURES, GIVEN, Candidate, Measured, Space

RESNET = ("stem", "layer1", "layer2", "layer3", "layer4")
SPACE = Space(RESNET, thawed=2, rate=0.001)


def hits(n: int, right: int) -> np.ndarray:
    return np.arange(n) < right


def measured(candidate: Candidate, right: int, n: int = 100, source_change: float | None = None) -> Measured:
    return Measured(candidate, hits(n, right), 1.0, None, source_change)


def explored(space: Space, accuracy: Callable[[Candidate], float | None]) -> list[Candidate]:
    """What is tried, in order, where the accuracies are these; None: there was no time."""
    proposals, tried = strategies.candidates(space), list[Candidate]()
    candidate = next(proposals)
    while True:
        share = accuracy(candidate)
        if share is not None:
            tried.append(candidate)
        try:
            candidate = proposals.send(None if share is None else measured(candidate, round(1000 * share), 1000))
        except StopIteration:
            return tried


def names(tried: list[Candidate]) -> list[str]:
    return [candidate.name for candidate in tried]


# -- what is tried ----------------------------------------------------------------------------------------


def test_the_given_spec_comes_first_then_frozen_features_then_deeper_while_that_helps() -> None:
    share = {GIVEN: 0.5, FEATURES: 0.7, "thaw-layer4": 0.72, "thaw-layer3": 0.74, "thaw-layer1": 0.73}
    tried = names(explored(SPACE, lambda one: share.get(one.name, 0.1)))
    assert tried[:5] == [GIVEN, FEATURES, "thaw-layer4", "thaw-layer3", "thaw-layer1"]
    assert "thaw-all" not in tried
    assert tried[5:] == ["thaw-layer3+rate-0.003", "thaw-layer3+rate-0.00033"]


def test_all_stages_are_thawed_where_each_depth_helps() -> None:
    tried = explored(SPACE, lambda one: 0.5 + one.thawed / 100)
    frozen = {one.name: one.changes["frozen"] for one in tried if one.stem.startswith("thaw")}
    assert frozen["thaw-layer4"] == "layer3" and frozen["thaw-layer1"] == "stem" and frozen["thaw-all"] == "none"


@pytest.mark.parametrize(("best", "most"), [(0.01, 0.009), (0.001, 0.001), (0.0001, 0.00011)])
def test_the_rate_goes_on_in_the_direction_that_helps(best: float, most: float) -> None:
    def share(one: Candidate) -> float:
        rate = one.changes.get("optimizer.lr", SPACE.rate)
        return (0.6 if one.name.startswith("thaw-layer4") else 0.5) - 0.05 * abs(np.log10(rate / best))

    tried = explored(SPACE, share)
    chosen = max(tried, key=share)
    assert chosen.changes.get("optimizer.lr", SPACE.rate) == pytest.approx(most)
    assert chosen.changes["frozen"] == "layer3", "the depth stays as it was found"


def test_a_higher_rate_that_helps_spares_the_lower_one() -> None:
    tried = names(explored(SPACE, lambda one: 0.5 + 10 * one.changes.get("optimizer.lr", 0.001)))
    assert not any("0.00033" in name for name in tried)
    assert "given+rate-0.003" in tried, "the given spec is what is best here, so its rate is varied"


def test_stages_with_a_rate_of_their_own_keep_their_proportion() -> None:
    space = Space(RESNET, 2, 0.001, {"layer4": 0.0001, "head": 0.01})
    tried = explored(space, lambda one: 0.5 + 10 * one.changes.get("optimizer.lr", 0.001))
    assert {one.changes["optimizer.lr"]: one.changes["optimizer.stage_lr"] for one in tried if "+rate" in one.name} == {
        0.003: {"layer4": 0.0003, "head": 0.03}, 0.009: {"layer4": 0.0009, "head": 0.09},
    }  # fmt: skip


def test_lambda_is_tried_only_where_the_source_is_rehearsed_and_never_as_it_is() -> None:
    assert not any("lambda" in one.changes for one in explored(SPACE, lambda _: 0.5))
    rehearsing = Space(RESNET, 2, 0.001, target_weight=1.0)
    assert [one.changes["lambda"] for one in explored(rehearsing, lambda _: 0.5) if "lambda" in one.changes] == [0.3, 3]


def test_what_there_was_no_time_for_ends_its_coordinate_alone() -> None:
    tried = names(explored(SPACE, lambda one: None if one.thawed > 2 or one.name == GIVEN else 0.5 + one.thawed / 100))
    assert tried[:3] == [FEATURES, "thaw-layer4", "thaw-layer3"] and len(tried) > 3


def test_where_nothing_fine_tunes_in_time_nothing_is_built_on_it() -> None:
    assert names(explored(SPACE, lambda one: 0.7 if one.name == FEATURES else None)) == [FEATURES]


@pytest.mark.parametrize(("stages", "counts"), [(1, [1]), (2, [1, 2]), (5, [1, 2, 4, 5]), (8, [1, 2, 4, 8])])
def test_depths_double(stages: int, counts: list[int]) -> None:
    assert strategies.depths(stages) == counts


def test_a_spec_that_trains_its_head_first_keeps_how() -> None:
    assert "head_first" not in strategies.head_first(Space(RESNET, 2, 0.001, has_head_first=True), 1).changes
    assert strategies.head_first(SPACE, 1).changes["head_first"] == {}


def test_no_two_candidates_have_the_same_name() -> None:
    tried = names(explored(Space(RESNET, 2, 0.001, target_weight=1.0), lambda one: 0.5 + one.thawed / 100))
    assert len(tried) == len(set(tried))


# -- what is chosen ---------------------------------------------------------------------------------------


def deep(name: str, thawed: int, **changes: object) -> Candidate:
    return Candidate(name, name, "finetune", changes, thawed)


def test_one_image_is_never_more_than_a_standard_error() -> None:
    """McNemar: √(gained + lost)/n."""
    one, two = hits(49, 40), hits(49, 41)
    assert strategies.standard_error(one, two) == pytest.approx(1 / 49)
    assert strategies.standard_error(hits(100, 50), ~hits(100, 50)) == pytest.approx(10 / 100)
    trials = [measured(deep("simple", 1), 40, 49), measured(deep("best", 5), 41, 49)]
    assert strategies.preferred(strategies.not_worse(trials)).candidate.name == "simple"


def test_what_is_clearly_worse_is_not_preferred_however_simple() -> None:
    trials = [measured(deep("simple", 0), 60), measured(deep("best", 5), 90)]
    assert strategies.preferred(strategies.not_worse(trials)).candidate.name == "best"


def test_of_equally_good_ones_what_forgets_least_then_what_trains_least_then_what_changes_least() -> None:
    def chosen(*trials: Measured) -> str:
        return strategies.preferred(strategies.not_worse(trials)).candidate.name

    forgets = measured(deep("forgets", 1), 80, source_change=-0.1)
    keeps = measured(deep("keeps", 5), 80, source_change=-0.01)
    assert chosen(forgets, keeps) == "keeps"
    assert chosen(measured(deep("deep", 5), 80), measured(deep("shallow", 1), 80)) == "shallow"
    assert chosen(measured(deep("changed", 2, lr=1), 80), measured(deep("as given", 2), 80)) == "as given"


def test_the_front_has_what_nothing_is_ahead_of_on_both() -> None:
    trials = [
        measured(deep("good", 1), 90, source_change=-0.2),
        measured(deep("keeps", 1), 70, source_change=0.0),
        measured(deep("behind", 1), 70, source_change=-0.2),
        measured(deep("equal", 1), 90, source_change=-0.2),
    ]
    assert [one.candidate.name for one in strategies.on_the_front(trials)] == ["good", "keeps", "equal"]


def test_contenders_are_the_given_spec_frozen_features_the_preferred_and_the_best() -> None:
    trials = [
        measured(Candidate(GIVEN, "", "finetune", {}, 2), 50), measured(Candidate(FEATURES, "", "extract", {}, 0), 60),
        measured(deep("shallow", 1), 90), measured(deep("best", 5), 91), measured(deep("other", 2), 70),
    ]  # fmt: skip
    assert [one.candidate.name for one in strategies.contenders(trials)] == [GIVEN, FEATURES, "shallow", "best"]


# -- what is decided ----------------------------------------------------------------------------------------


def rounds(n: int, shares: Mapping[str, float], seeds: int = 3, seed: int = 0) -> list[Mapping[str, Round]]:
    """Independent outcomes, each seed on images of its own."""
    random = np.random.default_rng(seed)
    return [
        {name: Round(tuple(f"{k}/{i}" for i in range(n)), random.random(n) < share) for name, share in shares.items()}
        for k in range(seeds)
    ]


GIVEN_TRIAL = measured(Candidate(GIVEN, "your spec", "finetune", {}, 2), 50)
OTHER = measured(deep("other", 1, frozen="layer3"), 80)


def test_a_clear_gain_is_claimed_and_its_interval_is_above_zero() -> None:
    decision = strategies.decide([GIVEN_TRIAL, OTHER], rounds(100, {GIVEN: 0.5, "other": 0.8}))
    assert decision.chosen.name == "other" and decision.is_better and decision.rounds == 3
    assert decision.against_given and decision.against_given["accuracy_difference_low"] > 0


def test_a_single_seed_claims_nothing() -> None:
    decision = strategies.decide([GIVEN_TRIAL, OTHER], rounds(300, {GIVEN: 0.5, "other": 0.9}, seeds=1))
    assert decision.chosen.name == "other" and not decision.is_better


def test_equally_good_ones_are_hardly_ever_claimed_to_differ() -> None:
    found = [
        strategies.decide([GIVEN_TRIAL, OTHER], rounds(60, {GIVEN: 0.7, "other": 0.7}, seed=seed))
        for seed in range(100)
    ]
    assert sum(decision.is_better for decision in found) <= 5
    assert sum(decision.chosen.name == "other" for decision in found) > 70, "which is simpler, and not worse"


def test_what_is_worse_when_confirmed_is_dropped_for_the_given_spec() -> None:
    decision = strategies.decide([GIVEN_TRIAL, OTHER], rounds(100, {GIVEN: 0.8, "other": 0.5}))
    assert decision.chosen.name == GIVEN and decision.against_given is None and not decision.is_better


def test_without_rounds_nothing_is_claimed() -> None:
    decision = strategies.decide([GIVEN_TRIAL, OTHER], [])
    assert decision.chosen.name == "other" and decision.against_given is None and not decision.is_better


@pytest.mark.parametrize("seeds", [0, 1])
def test_a_simpler_one_that_only_seems_as_good_does_not_replace_the_given_spec(seeds: int) -> None:
    """On one set of images, or one seed, a strategy that is five points worse often looks as good."""
    trials = [measured(GIVEN_TRIAL.candidate, 58), measured(OTHER.candidate, 59)]
    same = Round(tuple(map(str, range(100))), hits(100, 58))
    confirmed = [{GIVEN: same, "other": same}] * 2
    assert strategies.decide(trials, confirmed[:seeds]).chosen.name == GIVEN
    assert strategies.decide(trials, confirmed).chosen.name == "other", "which is simpler"


# -- the pooled difference ----------------------------------------------------------------------------------


def test_of_one_seed_the_pooled_difference_is_the_paired_one() -> None:
    random = np.random.default_rng(0)
    before, after = random.random(200) < 0.6, random.random(200) < 0.75
    names = tuple(map(str, range(200)))
    pooled = paired.pooled_difference([Round(names, before)], [Round(names, after)])
    alone = paired.accuracy_difference(before, after, "difference")
    differences = after.astype(float) - before
    assert pooled["accuracy_difference"] == pytest.approx(differences.mean())
    assert pooled["standard_error"] == pytest.approx(differences.std() / np.sqrt(200), rel=0.1)
    for end in ("low", "high"):
        assert pooled[f"accuracy_difference_{end}"] == pytest.approx(alone[f"accuracy_difference_{end}"], abs=0.02)


@pytest.mark.parametrize(("before", "after"), [(8, 8), (0, 8)])
def test_where_no_image_differs_from_the_others_the_interval_is_clopper_and_pearsons(before: int, after: int) -> None:
    """Eight images on which two strategies agree do not say that they always do."""
    names = tuple("abcdefgh")
    found = paired.pooled_difference([Round(names, hits(8, before))] * 2, [Round(names, hits(8, after))] * 2)
    none_of_eight = binomtest(0, 8).proportion_ci(0.95, method="exact").high
    difference = (after - before) / 8
    assert found["accuracy_difference_low"] == pytest.approx(difference - none_of_eight)
    assert found["accuracy_difference_high"] == pytest.approx(min(difference + none_of_eight, 1))


def test_the_same_images_with_more_seeds_are_not_more_images() -> None:
    """Three seeds that get the same images right say as much as one; on other images each, they say more."""
    random = np.random.default_rng(1)
    before, after = random.random(100) < 0.6, random.random(100) < 0.7
    same = [tuple(map(str, range(100)))] * 3
    other = [tuple(f"{seed}/{i}" for i in range(100)) for seed in range(3)]

    def width(names: list[tuple[str, ...]]) -> float:
        found = paired.pooled_difference(
            [Round(one, before) for one in names], [Round(one, after) for one in names]
        )  # fmt: skip
        return found["accuracy_difference_high"] - found["accuracy_difference_low"]

    one = width(same[:1])
    assert width(same) == pytest.approx(one, rel=0.1)
    assert width(other) < 0.8 * one


def test_the_interval_holds_the_true_difference_where_seeds_and_images_both_vary() -> None:
    """A bad seed lowers all of its images, a hard image is hard for all seeds; the true difference is 0."""
    random, held = np.random.default_rng(2), 0
    for _ in range(100):
        hardness, names = random.normal(0, 1, 80), tuple(map(str, range(80)))
        arms = [
            [Round(names, hardness + random.normal(0, 0.3) + random.normal(0, 0.7, 80) < 0.5) for _ in range(4)]
            for _ in range(2)
        ]
        found = paired.pooled_difference(*arms)
        held += found["accuracy_difference_low"] <= 0 <= found["accuracy_difference_high"]
    assert held >= 92


@pytest.mark.parametrize("seeds", [2, 3])
def test_two_bad_seeds_of_many_images_are_no_claim(seeds: int) -> None:
    """Many images tell each seed's accuracy to a point or two; what other seeds would give, only other seeds tell."""
    random, held = np.random.default_rng(3), 0
    names = [tuple(f"{seed}/{i}" for i in range(500)) for seed in range(seeds)]
    for _ in range(150):
        arms = [
            [Round(one, random.normal(0, 1, 500) + random.normal(0, 0.3) < 0.6) for one in names] for _ in range(2)
        ]  # fmt: skip
        found = paired.pooled_difference(*arms)
        held += found["accuracy_difference_low"] <= 0 <= found["accuracy_difference_high"]
    assert held >= 0.92 * 150


def test_where_seeds_differ_most_the_interval_is_students() -> None:
    shares, names = (0.1, 0.3, 0.2, 0.45), tuple(map(str, range(1000)))
    before = [Round(names, hits(1000, 500)) for _ in shares]
    after = [Round(names, hits(1000, 500 + round(1000 * share))) for share in shares]
    found = paired.pooled_difference(before, after)
    expected = ttest_1samp(shares, 0).confidence_interval(0.95)
    assert found["accuracy_difference_low"] == pytest.approx(expected.low)
    assert found["accuracy_difference_high"] == pytest.approx(expected.high)
