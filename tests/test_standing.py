"""Places, ties and advice, from what each model predicts of the same samples."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest

from transferctl import standing
from transferctl.assessment import Share
from transferctl.standing import Advice, Entrant


def entrant(
    label: str, hits: int, n: int = 400, *, gflop: float = 1.0, first: int = 0, neighbours: float | None = None,
    barred: bool = False, random: bool = False, features: str = "",
) -> Entrant:  # fmt: skip
    """Right on `hits` samples from the `first` on."""
    right = np.zeros(n, dtype=bool)
    right[first : first + hits] = True
    share = Share.of(right)
    return Entrant(label, right, share.low, share.high, gflop, 100 / gflop, neighbours, barred, random, features)


def advised(*entrants: Entrant, majority: float = 0.1) -> Advice:
    return standing.advise([entrants[i] for i in standing.order(entrants)], majority)


@pytest.mark.parametrize(("hits", "n"), [(0, 10), (7, 10), (10, 10), (160, 195)])
def test_an_accuracys_interval_is_wilsons(hits: int, n: int) -> None:
    p, z = hits / n, 1.959963984540054
    middle, half = p + z**2 / (2 * n), z * math.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    found = Share.of(np.arange(n) < hits)
    assert (found.value, found.n) == (p, n)
    assert found.low == pytest.approx((middle - half) / (1 + z**2 / n), abs=1e-12)
    assert found.high == pytest.approx((middle + half) / (1 + z**2 / n), abs=1e-12)


def test_the_best_is_first_and_of_equals_the_cheaper() -> None:
    entrants = [entrant("a", 200), entrant("b", 300, gflop=2), entrant("c", 300, gflop=1)]
    assert standing.order(entrants) == [2, 1, 0]


def test_a_place_is_a_range_where_intervals_overlap() -> None:
    """a and b overlap, b and c do too, a and c do not; d is below all."""
    ordered = [entrant("a", 340), entrant("b", 318), entrant("c", 296), entrant("d", 100)]
    assert ordered[0].low > ordered[2].high and ordered[0].low < ordered[1].high and ordered[1].low < ordered[2].high
    found = standing.standings(ordered)
    assert [str(one) for one in found] == ["1–2", "1–3", "2–3", "4"]
    assert [one.ties for one in found] == [("b",), ("a", "c"), ("b",), ()]


def test_the_distance_to_the_first_is_paired() -> None:
    """The same 20 samples lost out of 400: 5 points, whose spread is that of the 20 alone."""
    first, second = standing.standings([entrant("a", 340), entrant("b", 320)])
    assert first.behind["accuracy_to_best"] == 0 == first.behind["accuracy_to_best_low"]
    assert second.behind["accuracy_to_best"] == pytest.approx(-0.05)
    half = 1.96 * math.sqrt(0.05 * 0.95 / 400)
    assert second.behind["accuracy_to_best_high"] == pytest.approx(-0.05 + half, abs=0.003)


def test_one_that_is_surely_the_best_is_taken_with_the_distance_to_the_next() -> None:
    found = advised(entrant("big", 380, gflop=50), entrant("small", 200, gflop=1))
    assert found.label == "big" and "small, is behind" in found.text and "-45.0 points" in found.text


def test_random_weights_are_taken_where_they_are_shown_to_be_better_alone() -> None:
    tied = advised(entrant("random", 345, random=True, gflop=0.5), entrant("pretrained", 340, first=20))
    assert tied.label == "pretrained" and "random, has random weights" in tied.text
    behind = advised(entrant("random", 340, random=True, gflop=0.5, first=20), entrant("pretrained", 345))
    assert behind.label == "pretrained" and "random ties with it (-1.3 points" in behind.text
    assert advised(entrant("random", 380, random=True), entrant("pretrained", 200)).label == "random"
    assert advised(entrant("random", 380, random=True), entrant("other", 379, random=True)).label == "random"


def test_a_cheaper_one_is_taken_that_is_not_shown_to_be_worse() -> None:
    found = advised(
        entrant("big", 330, gflop=4), entrant("small", 328, gflop=1, first=10), entrant("poor", 90, gflop=0.1)
    )
    assert found.label == "small" and "takes 1 GFLOP an image where that takes 4" in found.text
    assert "100 images/s here against 25" in found.text


def test_paired_differences_tell_worse_what_intervals_leave_open() -> None:
    """Intervals overlap, but every sample that the cheap one has right the other has too, and 20 more."""
    big, small = entrant("big", 340, gflop=4), entrant("small", 320, gflop=1)
    assert small.high > big.low
    assert advised(big, small, entrant("poor", 90)).label == "big"


def test_what_saves_less_than_a_tenth_costs_the_same() -> None:
    assert advised(entrant("a", 330), entrant("b", 328, gflop=0.95, first=10), entrant("poor", 90)).label == "a"


def test_of_such_as_cost_the_same_k_nn_decides() -> None:
    tied = entrant("a", 330, neighbours=0.70), entrant("b", 328, first=10, neighbours=0.78)
    found = advised(*tied, entrant("poor", 90, neighbours=0.2))
    assert found.label == "b" and "78.0 % against 70.0 %" in found.text


def test_where_all_tie_it_says_so_and_how_many_samples_would_tell() -> None:
    """Half-widths fall with the root of n: at the number named the intervals of these accuracies just part."""
    entrants = [entrant("a", 42, 50), entrant("b", 38, 50, first=5)]
    found = advised(*entrants)
    assert "cannot tell both apart" in found.text and found.label == "a"
    needed = int(re.search(r"about ([\d,]+) would", found.text)[1].replace(",", ""))  # type: ignore[index]
    assert 200 < needed < 1500
    at, below = ([Share.of(np.arange(n) < round(share * n)) for share in (0.84, 0.76)] for n in (needed, needed // 2))
    assert at[0].low > at[1].high - 0.005 and below[0].low < below[1].high


def test_equal_accuracies_name_no_number_of_samples() -> None:
    found = advised(entrant("a", 40, 50), entrant("b", 40, 50, first=5, gflop=0.5))
    assert found.label == "b" and "would" not in found.text


def test_none_is_advised_that_is_no_better_than_the_most_frequent_class() -> None:
    found = advised(entrant("a", 210), entrant("b", 200), majority=0.5)
    assert found.label is None and "50.0 %" in found.text


def test_a_cheaper_one_that_is_no_better_than_the_most_frequent_class_is_not_advised_for_a_tie() -> None:
    """Neither is shown to be worse than the other, but by the one alone something is learnt."""
    learnt, cheap = entrant("learnt", 225, gflop=4), entrant("cheap", 215, gflop=0.1, first=30)
    assert cheap.low < 0.5 < learnt.low and advised(learnt, cheap, majority=0.3).label == "cheap"
    found = advised(learnt, cheap, majority=0.5)
    assert found.label == "learnt" and "no other is shown to be better than" in found.text and "50.0 %" in found.text


def test_what_has_learnt_from_the_samples_is_not_advised() -> None:
    seen, fair = entrant("seen", 400, barred=True), entrant("fair", 300)
    assert advised(seen, fair).label == "fair"
    assert advised(seen).label is None and "learnt" in advised(seen).text


def test_those_that_compute_the_same_features_are_one() -> None:
    a, copy = entrant("a", 340, features="x"), entrant("copy", 340, features="x")
    alone = advised(a, copy)
    assert alone.label == "a" and "no other to compare" in alone.text and "cannot tell" not in alone.text
    assert alone.text.endswith("; a, copy compute the same features, and count as one")
    beside = advised(a, copy, entrant("b", 338, first=10, features="y"))
    assert "cannot tell both apart" in beside.text and beside.text.endswith("a, copy compute the same features, "
                                                                           "and count as one")  # fmt: skip
    assert "count as one" not in advised(entrant("a", 340), entrant("b", 340)).text


def test_what_one_of_the_same_is_the_others_are() -> None:
    learnt = entrant("unknown", 400, features="x"), entrant("seen", 400, features="x", barred=True)
    assert advised(*learnt, entrant("fair", 300)).label == "fair"
    random = entrant("file", 345, features="x"), entrant("random", 345, features="x", random=True)
    assert advised(*random, entrant("pretrained", 340, first=20)).label == "pretrained"


def test_a_single_one_is_taken_as_such() -> None:
    assert "no other to compare" in advised(entrant("only", 300)).text
