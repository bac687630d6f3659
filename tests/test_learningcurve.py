"""The learning curve: which labels it draws, and what it says of them."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy.stats import binomtest

from transferctl import learningcurve, pipeline
from transferctl.budget import Clock, Forecast, Rates
from transferctl.data import DomainData
from transferctl.device import Compute
from transferctl.display import Display
from transferctl.errors import OutOfTime
from transferctl.learningcurve import PARTS, Curves, OutOfFold, Point
from transferctl.paired import Outcomes
from transferctl.spec import Spec


def point(labels: int, *shares: float, n: int = 200) -> Point:
    """Each draw gets the first images right, as many as its share says."""
    return Point(labels, tuple(np.arange(n) < share * n for share in shares))


def test_draws_are_nested_and_of_each_class_its_share() -> None:
    labels = np.repeat([0, 1, 2], [80, 40, 16]).astype(np.int32)
    drawn = learningcurve.nested_draws(labels, 3, PARTS, seed=0)
    assert [np.bincount(labels[rows]).tolist() for rows in drawn] == [[10, 5, 2], [20, 10, 4], [40, 20, 8]]
    for smaller, larger in pairwise(drawn):
        assert set(smaller.tolist()) < set(larger.tolist())
    assert len(np.unique(drawn[-1])) == len(drawn[-1])


def test_another_seed_draws_others_and_the_same_seed_the_same() -> None:
    labels = np.arange(100, dtype=np.int32) % 4
    first, again, other = (learningcurve.nested_draws(labels, 4, PARTS, seed) for seed in (0, 0, 1))
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert not np.array_equal(first[0], other[0])


def test_a_class_keeps_two_samples_where_it_has_them() -> None:
    labels = np.repeat([0, 1, 2], [40, 3, 1]).astype(np.int32)
    smallest = learningcurve.nested_draws(labels, 3, PARTS, seed=0)[0]
    assert np.bincount(labels[smallest]).tolist() == [5, 2, 1]


def test_fewer_labels_from_scratch_take_as_many_steps() -> None:
    """30 epochs of 200 images in batches of 32 are 210 steps; 25 images are one step an epoch."""
    assert learningcurve._as_long(30, 200, 25, 32) == 210
    assert learningcurve._as_long(30, 200, 200, 32) == 30


@pytest.mark.parametrize("is_stopped", [False, True])
def test_training_from_scratch_that_is_slower_than_expected_is_expected_to_stay_so(
    is_stopped: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two trainings would fit by the forecast; the first takes ten times as long, or is stopped at the end."""
    spec = Spec.model_validate({
        "backbone": {"name": "resnet18", "weights": "none"}, "preprocess": {"resize": 8, "crop": 8},
        "target": {"train": {"dataset": "digits", "per_class": 16, "classes": ["1", "2"]}},
    })  # fmt: skip
    target, now = pipeline.load_target(spec, Display()), [0.0]
    forecast = Forecast(Rates(0.0, (1e-3,), (0.0,)))
    a_run_s = 30 * len(target.train) * 3e-3  # 30 epochs, forward and back

    def trained(spec: Spec, epochs: int, target: DomainData, *rest: object) -> object:
        now[0] += 10 * a_run_s
        if is_stopped:
            raise OutOfTime
        return {}, Outcomes(np.ones(len(target.val), bool), np.zeros(len(target.val)))

    monkeypatch.setattr("transferctl.baseline.from_scratch", trained)
    curves = learningcurve.with_scratch(
        Curves(()), spec, target, Compute(torch.device("cpu"), False, ""), Clock(1e6, 0.0, lambda: now[0]), forecast,
        11 * a_run_s, Display(),
    )  # fmt: skip
    assert [point.labels for point in curves.scratch] == ([] if is_stopped else [len(target.train)])
    assert len(curves.left_out) == (4 if is_stopped else 3)
    assert ("stopped after" in curves.left_out[0]) == is_stopped


def test_where_few_labels_alone_show_that_transfer_helps_it_says_so_of_them() -> None:
    curves = Curves((point(50, 0.8, 0.8), point(100, 0.8)), (point(50, 0.4), point(100, 0.8)))
    told = learningcurve.sentences(curves)[0]
    assert told.startswith("Transfer helps with 50 labels; with more that cannot be told: with 100 labels")


@pytest.mark.parametrize(
    ("probe", "scratch", "said"),
    [
        (0.9, 0.5, "Transfer helps, with 100 labels: with 100 labels a linear probe"),
        (0.5, 0.9, "Frozen features are worse than training from scratch, with 100 labels"),
        (0.7, 0.7, "Transfer cannot be told from training from scratch"),
    ],
)
def test_whether_transfer_helps_is_said_by_the_interval_on_the_same_images(
    probe: float, scratch: float, said: str
) -> None:
    curves = Curves((point(50, 0.4, 0.5), point(100, probe)), (point(100, scratch),))
    assert learningcurve.sentences(curves)[0].startswith(said)
    (row,) = learningcurve.compared(curves)
    assert row["accuracy_difference"] == pytest.approx(probe - scratch)


def test_at_few_labels_transfer_may_help_and_at_many_not() -> None:
    curves = Curves((point(50, 0.8, 0.8), point(100, 0.8)), (point(50, 0.4), point(100, 0.95)))
    assert learningcurve.sentences(curves)[0].startswith("Transfer helps with 50 labels, and does not with 100: ")


def test_what_was_not_measured_is_said() -> None:
    helps, more = learningcurve.sentences(Curves((point(100, 0.8),)))
    assert "was not measured: there was no time to train from scratch" in helps
    assert "was not measured" in more


def test_more_labels_are_promised_nothing_that_the_interval_does_not_hold() -> None:
    flat = learningcurve.sentences(Curves((point(50, 0.79, 0.8, 0.81), point(100, 0.8))))[1]
    assert "cannot be told" in flat
    steep = learningcurve.sentences(Curves((point(50, 0.6, 0.62, 0.58), point(100, 0.8))))[1]
    assert "gained +20.0 points" in steep and "less" in steep


def test_the_probes_interval_is_wilsons() -> None:
    found = binomtest(150, 195).proportion_ci(0.95, method="wilson")
    assert OutOfFold(150, 195, 5).interval == pytest.approx((found.low, found.high))


def test_the_plot_shows_both_curves_and_is_the_same_twice() -> None:
    curves = Curves((point(50, 0.6, 0.7), point(100, 0.8)), (point(100, 0.5),))
    drawn = learningcurve.drawn(curves, 0.5)
    assert "from scratch" in drawn and "linear probe" in drawn and drawn == learningcurve.drawn(curves, 0.5)
    assert learningcurve.rows(curves) == [["50", "65.0", "± 7.1", ""], ["100", "80.0", "", "50.0"]]
