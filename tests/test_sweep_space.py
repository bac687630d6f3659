"""What --over means, and how settings are ranked: values in, values out."""

from __future__ import annotations

import math
from typing import Any

import pytest

from transferctl.display import Display
from transferctl.sweeps import methods, rows, show, space, specs
from transferctl.sweeps.book import Asked
from transferctl.sweeps.rows import Row
from transferctl.sweeps.space import Member, Points, Range

SPEC = "backbone: {name: resnet18, weights: none}\ntarget: {train: {dataset: digits}}\n"


def points(over: str) -> tuple[str, ...]:
    (axis,), problems = space.parse([over])
    assert isinstance(axis, Points) and not problems
    return axis.texts


@pytest.mark.parametrize(
    ("over", "texts"),
    [
        ("lambda=0.1,0.3,1", ("0.1", "0.3", "1")),
        ("frozen=layer2, layer3 ,none", ("layer2", "layer3", "none")),
        ("frozen=[layer1, layer2],none", ("[layer1, layer2]", "none")),
        ("frozen={1: all, 3: none},all", ("{1: all, 3: none}", "all")),
        ("backbone.weights='a,b.pth',c.pth", ("'a,b.pth'", "c.pth")),
        ("epochs=2:10:2", ("2", "4", "6", "8", "10")),
        ("epochs=2:9:3", ("2", "5", "8", "9")),  # both ends, as eval --interpolate has it
        ("ema=0.1:0.5:0.2", ("0.1", "0.3", "0.5")),
        ("device=cuda:0,cuda:1", ("cuda:0", "cuda:1")),
    ],
)
def test_values_are_listed_or_stepped(over: str, texts: tuple[str, ...]) -> None:
    assert points(over) == texts


def test_steps_are_those_of_interpolate() -> None:
    from transferctl.interpolation import alphas

    for text in ("0:1:0.1", "0:1:0.3", "0.2:0.9:0.25"):
        assert [float(value) for value in points(f"ema={text}")] == alphas(text)


def test_points_of_a_log_range_are_a_factor_apart_and_have_its_ends() -> None:
    found = [float(text) for text in points("optimizer.lr=log:0.0001:0.1:4")]
    assert found == pytest.approx([0.0001, 0.001, 0.01, 0.1]) and (found[0], found[-1]) == (0.0001, 0.1)


@pytest.mark.parametrize(
    ("over", "message"),
    [
        ("lambda", "write it as KEY=VALUES"),
        ("lambda=", "write it as KEY=VALUES"),
        ("lambda=1,,2", "has an empty value"),
        ("lambda=1,1", "has 1 twice"),
        ("lambda=2:1", "a start below the stop"),
        ("lambda=0:1:0", "a step above 0"),
        ("lambda=0:1:0.0001", "more than 1000 points"),
        ("lambda=log:0:1", "needs 0 < LOW < HIGH"),
        ("lambda=log:1", "write log:LOW:HIGH"),
        ("lambda=log:1:2:1.5", "a whole number N of points"),
        ("seed=0:9", "seeds are repeats"),
        ("name=a,b", "names the members' run folders"),
        ("target.test=a,b", "is read once, at the end"),
    ],
)
def test_what_cannot_be_swept_is_told_with_the_way_to_write_it(over: str, message: str) -> None:
    _, (problem,) = space.parse([over])
    assert message in str(problem) and problem.where == f"--over {over}"


def test_all_that_is_wrong_is_told_at_once(tmp_path: Any) -> None:
    (tmp_path / "spec.yaml").write_text(f"{SPEC}batch_size: no\n")
    overs = ["epochz=1,2", "optimizer.lr=-1,x,0.1", "lambda=0.1,0.3", "epochs=0:9", "seed=1", "seed=2"]
    axes, problems = space.parse(overs, ["seed=3"])
    problems += specs.faults(tmp_path / "spec.yaml", [], specs.corners(axes))
    told = "\n".join(map(str, problems))
    for expected in (
        "--over seed=2: seed is swept twice", "--over seed=1: seed is given by --set too",
        f"{tmp_path}/spec.yaml:3: batch_size: must be a whole number", "--over epochz=1,2: epochz: is not a setting",
        "--over optimizer.lr=-1: optimizer.lr: must be greater than 0", "--over optimizer.lr=x: optimizer.lr: must be a",
        "--over lambda=0.1,0.3: lambda: weighs L_T against L_S, but there is no `source`",
        "--over epochs=0: epochs: must be greater than 0",
    ):  # fmt: skip
        assert told.count(expected) == 1, told


def axes_of(*overs: str) -> list[space.Axis]:
    axes, problems = space.parse(overs)
    assert not problems
    return axes


def test_a_grid_is_every_combination_and_refuses_ranges_with_the_way_to_write_points() -> None:
    axes = axes_of("lambda=1,2", "frozen=a,b,c")
    found = [tuple(one.values()) for one in methods.grid(axes)]
    assert found == [(x, y) for x in "12" for y in "abc"]
    (problem,) = methods.problems(axes_of("optimizer.lr=0.001:0.1"), "grid", 0, prune=False)
    assert all(way in str(problem) for way in ("0.001:0.1:STEP", "log:0.001:0.1:4", "--method random"))
    assert not methods.problems(axes_of("optimizer.lr=0.001:0.1"), "random", 5, prune=False)
    assert "more than the 1,000" in str(methods.problems(axes_of("epochs=1:999:1", "seed=0,1"), "grid", 0, prune=False))
    assert "only 2 settings" in str(methods.problems(axes_of("lambda=1,2"), "random", 3, prune=False))
    assert "--method optuna" in str(methods.problems(axes_of("lambda=1,2"), "optuna", 3, prune=False))
    assert [methods.trials_of(axes_of(over), None) for over in ("lambda=1,2", "epochs=1:9", "seed=1,2")] == [2, 20, 1]
    assert "has no mean" in str(methods.problems(axes_of("lambda=1,2", "seed=0,1"), "grid", 0, prune=True))


def test_draws_are_even_by_the_scale_that_was_asked_for() -> None:
    """Against the distributions' own quantiles: Kolmogorov–Smirnov."""
    from scipy import stats

    axes = axes_of("optimizer.lr=log:0.0001:1", "ema=0.2:0.4", "frozen=a,b")
    drawn = list(methods.random(axes, 500, seed=0))
    rates = [math.log10(float(one["optimizer.lr"])) for one in drawn]
    assert stats.kstest(rates, stats.uniform(-4, 4).cdf).pvalue > 0.01
    assert stats.kstest([float(one["ema"]) for one in drawn], stats.uniform(0.2, 0.2).cdf).pvalue > 0.01
    assert 200 < sum(one["frozen"] == "a" for one in drawn) < 300
    assert drawn[:7] == list(methods.random(axes, 7, seed=0)) != list(methods.random(axes, 7, seed=1))


def test_whole_numbers_are_drawn_where_a_setting_takes_no_others(tmp_path: Any) -> None:
    from transferctl import yamlfile

    (tmp_path / "spec.yaml").write_text(SPEC)
    maker = specs.Specs(yamlfile.load(tmp_path / "spec.yaml"))
    epochs, smoothing = maker.with_whole_ranges(axes_of("epochs=2:5", "ema=log:0.25:0.5"))
    assert isinstance(epochs, Range) and isinstance(smoothing, Range) and not smoothing.is_whole
    drawn = [epochs.at(i / 400) for i in range(400)]
    assert [drawn.count(text) for text in "2345"] == [100] * 4


# -- ranking ------------------------------------------------------------------------------------------


def row(number: int, accuracy: float | None, loss: float = 1.0, state: str = "finished", **more: Any) -> Row:
    settings = more.pop("settings", {"lambda": str(number)})
    ends = {} if accuracy is None else {"low": accuracy - 0.1, "high": accuracy + 0.1}
    return Row(Member(number, settings), state, accuracy=accuracy, loss=loss, n=50, **ends, **more)


def numbers(settings: list[rows.Setting]) -> list[int]:
    return [setting.rows[0].member.number for setting in settings]


def test_settings_are_ranked_by_accuracy_then_loss_and_incomplete_ones_come_last() -> None:
    found = [row(1, 0.8), row(2, 0.9, 2.0), row(3, 0.9), row(4, 0.99, state="pruned"), row(5, None, state="failed")]
    assert numbers(rows.ranked(found)) == [3, 2, 1, 4, 5]


def test_a_setting_of_which_a_seed_failed_is_not_picked_by_those_that_did_not() -> None:
    seeds = [row(i, 0.9, settings={"lambda": "1", "seed": str(i)}) for i in (1, 2)]
    failed = row(3, None, state="failed", settings={"lambda": "1", "seed": "3"})
    best = rows.picked(rows.ranked([*seeds, failed, row(4, 0.5)]))
    assert best is not None and best.rows[0].member.number == 4


def test_source_as_a_setting_has_a_column_beside_that_of_its_accuracy(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[Any] = []
    display = Display()
    monkeypatch.setattr(display, "table", lambda title, columns, rows: shown.extend([columns, *rows]))
    found = [row(i, 0.9, change=-0.01 * i, settings={"source": text}) for i, text in enumerate(("null", "{a: b}"), 1)]
    over = "source=null,{a: b}"
    asked = Asked("finetune", axes_of(over), "grid", 0, prune=False, seed=0)
    show.table(asked, rows.ranked(found), {}, display)
    assert [cells[1:4:2] for cells in map(list, shown)] == [
        ["source =", "source"],
        ["null", "-1.0"],
        ["{a: b}", "-2.0"],
    ]


def test_overlapping_settings_are_counted_and_the_cheapest_of_them_named() -> None:
    settings = rows.ranked([row(1, 0.9, seconds=9), row(2, 0.75, seconds=3), row(3, 0.6, seconds=1)])
    near = rows.as_good(settings[0], settings)
    assert numbers(near) == [2]  # 0.65–0.85 reaches 0.8–1.0, and 0.5–0.7 does not
    assert numbers([rows.cheapest([settings[0], *near])]) == [2]


def test_fronts_hold_what_nothing_beats_in_both() -> None:
    found = [row(1, 0.9, source=0.3, seconds=9), row(2, 0.8, source=0.5, seconds=9), row(3, 0.7, source=0.4, seconds=1)]
    assert rows.fronts(rows.ranked(found)) == {"source": [0, 1], "time": [0, 2]}
    assert rows.undominated([(1, 1), (1, 1), (0, 2), (0, 1)]) == [0, 1, 2]
    assert rows.fronts(rows.ranked([row(1, 0.9)])) == {}


def test_times_that_differ_by_their_noise_alone_draw_no_front() -> None:
    alike = [row(1, 0.9, seconds=10), row(2, 0.8, seconds=9.5), row(3, 0.7, seconds=9.2)]
    assert rows.fronts(rows.ranked(alike)) == {"time": [0]}
    assert rows.fronts(rows.ranked([*alike, row(4, 0.6, seconds=5)])) == {"time": [0, 3]}
    assert rows.fronts(rows.ranked([row(1, 0.9, seconds=9.5), row(2, 0.9, seconds=10)])) == {"time": [0, 1]}


def test_the_plot_names_settings_by_their_keys_and_says_what_its_marks_are() -> None:
    found = [
        row(i, 0.9 - 0.1 * i, seconds=10 / i, settings={"optimizer.lr": text, "epochs": "3"})
        for i, text in enumerate(("0.1", "0.01", "0.001"), 1)
    ]
    found.append(row(4, 0.3, seconds=20, settings={"optimizer.lr": "1", "epochs": "3"}))
    asked = Asked("finetune", axes_of("optimizer.lr=0.1,0.01,0.001,1", "epochs=3"), "grid", 0, prune=False, seed=0)
    settings = rows.ranked(found)
    drawn = show.drawn(asked, settings, rows.fronts(settings), settings[0])
    for text in (
        "member 1: optimizer.lr=0.1<", "member 3: optimizer.lr=0.001<", "other settings<", "picked<",
        "bars: 95 % interval of target validation accuracy<", "front: no other setting is better in both<",
    ):  # fmt: skip
        assert f">{text}" in drawn
    assert "4: optimizer.lr=1" not in drawn  # it is on no front
