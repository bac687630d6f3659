"""A time budget: how it is written, and how long trainings are expected to take."""

from __future__ import annotations

import pytest

from transferctl import budget
from transferctl.budget import BACKWARD, PASSES, Clock, Forecast, Rates, Work
from transferctl.errors import SpecError

RATES = Rates(decode_s=0.01, stages_s=(0.1, 0.2, 0.3), weights_s=(0.0, 0.0, 0.001))


@pytest.mark.parametrize(("text", "seconds"), [("90s", 90), ("10m", 600), ("2h", 7200), ("1.5h", 5400), (" 5 m ", 300)])
def test_a_budget_is_a_number_and_a_unit(text: str, seconds: float) -> None:
    assert budget.parse(text) == seconds


@pytest.mark.parametrize("text", ["", "10", "m", "-5m", "0s", "1e3s", "5 min", "99999h", "nan s", "10m 3s"])
def test_what_is_no_time_is_refused_with_how_to_write_it(text: str) -> None:
    with pytest.raises(SpecError, match="--budget"):
        budget.parse(text)


@pytest.mark.parametrize(
    ("seconds", "words"), [(-3, "0.0 s"), (45, "45 s"), (160, "2.7 min"), (1500, "25 min"), (7200, "2.0 h")]
)
def test_durations_in_words(seconds: float, words: str) -> None:
    assert budget.in_words(seconds) == words


def test_frozen_stages_run_forward_alone_and_thawed_ones_back_too() -> None:
    work = Work(epochs=2, steps=5, images=10, scored=4, frozen=2)
    trained = 10 * (0.01 + 0.3 + (1 + BACKWARD) * 0.3)
    assert RATES.seconds(work) == pytest.approx(2 * (trained + 4 * 0.3 + 5 * PASSES * 0.001))


def test_what_is_kept_is_neither_decoded_nor_computed_again() -> None:
    again, kept = (Work(1, 1, 10, 0, 2, is_kept) for is_kept in (False, True))
    assert RATES.seconds(again) - RATES.seconds(kept) == pytest.approx(10 * (0.01 + 0.3))


def test_thawing_all_decodes_validation_images_after_each_epoch() -> None:
    assert RATES.seconds(Work(3, 0, 0, 7, 0)) == pytest.approx(3 * 7 * (0.01 + 0.6))


def test_runs_that_finished_teach_how_long_the_next_takes() -> None:
    forecast, work = Forecast(RATES), Work(1, 0, 10, 0, 0)
    forecast = forecast.taught(None, 1.0)
    assert forecast.seconds(None) == 1.0
    computed = RATES.seconds(work)
    assert forecast.seconds(work) == pytest.approx(1 + computed)
    forecast = forecast.taught(work, 1 + 2 * computed)
    assert forecast.seconds(work) == pytest.approx(1 + 2 * computed)
    assert forecast.seconds(Work(2, 0, 10, 0, 0)) == pytest.approx(1 + 4 * computed)


def test_one_run_that_was_held_up_does_not_decide() -> None:
    forecast, work = Forecast(RATES, overhead_s=0.0), Work(1, 0, 10, 0, 0)
    for factor in (1.0, 9.0, 1.2):
        forecast = forecast.taught(work, factor * RATES.seconds(work))
    assert forecast.factor == pytest.approx(1.2)


def test_a_clock_says_what_is_left() -> None:
    now = [100.0]
    clock = Clock(60.0, 100.0, lambda: now[0])
    now[0] = 145.0
    assert (clock.spent_s, clock.left_s) == (45.0, 15.0)
