"""A sweep for people: a line a member that ends, the table of settings, what was picked and how surely, the plot."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from transferctl import plots
from transferctl.display import Display
from transferctl.plots import Panel, Point
from transferctl.sweeps.book import Asked
from transferctl.sweeps.methods import split
from transferctl.sweeps.rows import Row, Setting, as_good, cheapest
from transferctl.sweeps.space import SEED, Points
from transferctl.wording import counted, printable, shown

SHOWN_SETTINGS = 40
SHOWN_REASONS = 5
LONGEST_VALUE = 30


def fixed(asked: Asked) -> set[str]:
    """Keys that are swept over one value, and so do not vary."""
    return {axis.key for axis in asked.axes if isinstance(axis, Points) and len(axis.texts) == 1}


def plan(asked: Asked, total: int) -> str:
    """What will be run, in a line."""
    varied, seeds = split(asked.axes)
    over = " × ".join(
        f"{axis.key} ({len(axis.texts)})" if isinstance(axis, Points) else f"{axis.key} ({axis})"
        for axis in varied
    )  # fmt: skip
    if not varied:
        return f"sweep: {counted(total, 'member')} of {asked.verb}: one setting with {counted(len(seeds), 'seed')}"
    how = {"grid": "a grid", "random": f"{asked.trials} drawn at random (seed {asked.seed})"}
    method = how.get(asked.method, f"{asked.trials} proposed by Optuna (TPE, seed {asked.seed})")
    repeats = f", each with {counted(len(seeds), 'seed')}" if seeds != ("",) else ""
    return f"sweep: {counted(total, 'member')} of {asked.verb}: {method} over {over}{repeats}"


def progress_line(row: Row, done: Sequence[Row], total: int) -> str:
    """done: members that have ended, this one among them."""
    words = f"member {row.member.number} ({len(done)} of {total} done): {in_words(row.member.settings)}: "
    if row.state == "failed":
        return words + f"failed: {row.reason}"
    best = max((other.accuracy or 0.0 for other in done if other is not row), default=0.0)
    is_repeat = SEED in row.member.settings  # of which the best is the luckiest
    mark = "; best so far" if (row.accuracy or 0.0) > best and not is_repeat else ""
    return words + f"{', '.join(filter(None, [_interval(row), _change(row.change), _pruned(row), _time(row)]))}{mark}"


def in_words(settings: Mapping[str, str]) -> str:
    return ", ".join(f"{key}={_value(text)}" for key, text in settings.items())


def table(asked: Asked, settings: Sequence[Setting], fronts: Mapping[str, Sequence[int]], display: Display) -> None:
    """Settings in the order of the pick's rule. settings: ranked; fronts: positions in them."""
    keys = [key for key in settings[0].values if key not in fixed(asked)] or list(settings[0].values)
    repeats = max(len(setting.rows) for setting in settings) > 1
    is_one = repeats and len(settings) == 1
    if is_one:  # a row a repeat tells more
        settings, keys, repeats = [Setting((row,)) for row in settings[0].rows], [SEED], False
    columns: dict[str, Callable[[int, Setting], str]] = {
        "member": lambda i, one: _numbers(one),
        **{_title(key): lambda i, one, key=key: _value(one.rows[0].member.settings[key]) for key in keys},  # type: ignore[misc]
        "val, %": lambda i, one: _accuracy(one, repeats),
        "source": lambda i, one: _points(one.change),
        "s": lambda i, one: _seconds(one),
        "state": lambda i, one: _state(one),
        "front": lambda i, one: ", ".join(name for name, on in fronts.items() if i in on),
    }
    shown_ones = list(enumerate(settings[:SHOWN_SETTINGS]))
    cells = {title: [cell(i, one) for i, one in shown_ones] for title, cell in columns.items()}
    cells = {title: values for title, values in cells.items() if any(values)}
    how = "mean ± sd over seeds" if repeats else "95 % interval"
    source = "; source: its accuracy's change, points" if "source" in cells else ""
    what, then = ("Repeats of one setting: ", "") if is_one else ("Settings by ", ", then loss")
    title = f"{what}target validation accuracy ({how}){then}{source}"
    display.table(title, list(cells), list(zip(*cells.values(), strict=True)))
    if len(settings) > SHOWN_SETTINGS:
        display.result(f"{len(settings) - SHOWN_SETTINGS} more are in summary.json")
    if any(row.leads for setting in settings for row in setting.rows):
        display.result("* its time has work in it that the others found done: of frozen stages, or stage 0")
    if any(row.state == "finished" and row.seconds is None for setting in settings for row in setting.rows):
        display.result("without seconds: it was stopped and gone on with")
    _reasons(settings, display)


def explain_fronts(fronts: Mapping[str, Sequence[int]], display: Display) -> None:
    second = {"source": "source accuracy (source)", "time": "time (time)"}
    equal = "; times within a tenth of each other count as equal" if "time" in fronts else ""
    if fronts:
        others = " or ".join(second[name] for name in fronts)
        display.result(f"front: no other setting is better in target accuracy without being worse in {others}{equal}")


def pick(best: Setting, settings: Sequence[Setting], display: Display) -> dict[str, Any]:
    """How sure the choice is, in words and numbers."""
    complete = [setting for setting in settings if setting.is_complete]
    near = as_good(best, settings)
    least = cheapest([best, *near])
    row = best.median
    member = f"member {row.member.number} ({in_words(row.member.settings)}), {_interval(row)}, n = {row.n}"
    if len(best.rows) > 1:
        _repeats(best, settings, member, display)
    else:
        display.result(f"picked: {member}")
    if not best.is_complete:
        display.result("it is not complete: no setting has all its members finished")
    others = len(complete) - 1
    if others:
        display.result(how_sure(len(near), others))
    if near:
        is_it = "it is the cheapest of them" if least is best else f"the cheapest of them: {_cheap(least)}"
        if least.seconds is not None:
            display.result(is_it)
    return {
        "seeds": len(best.rows), "accuracy": best.accuracy, "accuracy_sd": best.sd,
        "complete_settings": len(complete), "overlapping": len(near),
        "cheapest": {"settings": least.values, "members": [one.member.number for one in least.rows]},
    }  # fmt: skip


def how_sure(near: int, others: int) -> str:
    """near: how many of the other complete settings have an interval that overlaps the best's."""
    if not near and others == 1:
        return "the interval of the other complete setting does not overlap its own"
    if not near:
        return f"none of the {others} other complete settings has an interval that overlaps its own"
    some = "all" if near == others else f"{near} of the"
    who = "the other complete setting" if others == 1 else f"{some} {others} other complete settings"
    why = "as the intervals overlap; and picking the best of several flatters it"
    return f"{who} cannot be told from it by validation data, {why}"


def _repeats(best: Setting, settings: Sequence[Setting], member: str, display: Display) -> None:
    """Of a setting with several seeds: what they say together, and which one stands for them."""
    scored = sum(row.accuracy is not None for row in best.rows)
    together = f"val accuracy {_accuracy(best, repeats=True)} % (mean ± sd over {counted(scored, 'seed')})"
    display.result(f"{f'picked: {in_words(best.values)}' if len(settings) > 1 else 'seeds are repeats'}: {together}")
    display.result(f"it is represented by {member}: the median of its seeds, not the luckiest")


def drawn(asked: Asked, settings: Sequence[Setting], fronts: Mapping[str, Sequence[int]], best: Setting | None) -> str:
    """sweep.svg: target against source accuracy, where there is source, and against time."""
    axes: dict[str, tuple[str, Callable[[Setting], float | None]]] = {
        "source": ("source validation accuracy, %", lambda one: None if one.source is None else 100 * one.source),
        "time": ("time, seconds", lambda one: one.seconds),
    }
    panels = []
    for name, on in fronts.items():
        label, value = axes[name]
        points = [
            Point(x, 100 * one.accuracy, _numbers(one), _varied(asked, one), i in on, one is best, _ends(one))
            for i, one in enumerate(settings)
            if (x := value(one)) is not None and one.accuracy is not None and one.is_complete
        ]
        panels.append(Panel(points, label, "target validation accuracy, %"))
    bars = "± sd over seeds" if any(one.sd is not None for one in settings) else "95 % interval"
    return plots.trade_offs(panels, f"{bars} of target validation accuracy")


# -- cells ----------------------------------------------------------------------------------------------


def _title(key: str) -> str:
    """`source` as a setting stands beside the column of what was forgotten of it."""
    return "source =" if key == "source" else key


def _varied(asked: Asked, setting: Setting) -> str:
    """With the names of what varies."""
    varied = {key: text for key, text in setting.values.items() if key not in fixed(asked)}
    return f"member {_numbers(setting)}: {in_words(varied)}"


def _ends(setting: Setting) -> tuple[float, float] | None:
    if setting.sd is not None and setting.accuracy is not None:
        return 100 * (setting.accuracy - setting.sd), 100 * (setting.accuracy + setting.sd)
    return None if setting.interval is None else (100 * setting.interval[0], 100 * setting.interval[1])


def _value(text: str) -> str:
    text = printable(text)
    if len(text) <= LONGEST_VALUE:
        return text
    return f"…{text[1 - LONGEST_VALUE :]}" if "/" in text else f"{text[: LONGEST_VALUE - 1]}…"


def _numbers(setting: Setting) -> str:
    numbers = [row.member.number for row in setting.rows]
    return str(numbers[0]) if len(numbers) == 1 else f"{numbers[0]}–{numbers[-1]}"


def _accuracy(setting: Setting, repeats: bool) -> str:
    if setting.accuracy is None:
        return ""
    if repeats:
        return f"{100 * setting.accuracy:.1f}" + ("" if setting.sd is None else f" ± {100 * setting.sd:.1f}")
    ends = "" if setting.interval is None else f" ({100 * setting.interval[0]:.0f}–{100 * setting.interval[1]:.0f})"
    return f"{100 * setting.accuracy:.1f}{ends}"


def _points(change: float | None) -> str:
    return "" if change is None else f"{100 * change:+.1f}"


def _seconds(setting: Setting) -> str:
    star = "*" if any(row.leads for row in setting.rows) else ""
    return "" if setting.seconds is None else f"{setting.seconds:.1f}{star}"


def _state(setting: Setting) -> str:
    """Nothing of what is as it should be."""
    if setting.is_complete:
        return ""
    if len(setting.rows) == 1:
        return _pruned(setting.rows[0]) or setting.state
    others = sum(row.state == setting.state for row in setting.rows)
    return setting.state if others == len(setting.rows) else f"{others} of {len(setting.rows)} {setting.state}"


def _reasons(settings: Sequence[Setting], display: Display) -> None:
    failed: dict[str, list[str]] = {}
    for row in (row for setting in settings for row in setting.rows if row.state == "failed"):
        failed.setdefault(row.reason, []).append(str(row.member.number))
    for reason, numbers in list(failed.items())[:SHOWN_REASONS]:
        display.result(f"failed: member {shown(numbers, 5)}: {reason}")
    if len(failed) > SHOWN_REASONS:
        display.result(f"{len(failed) - SHOWN_REASONS} more reasons are in summary.json")


def _interval(row: Row) -> str:
    if row.accuracy is None:
        return ""
    ends = "" if row.low is None or row.high is None else f" ({100 * row.low:.1f}–{100 * row.high:.1f})"
    return f"val accuracy {100 * row.accuracy:.1f} %{ends}"


def _change(change: float | None) -> str:
    return "" if change is None else f"source {100 * change:+.1f} points"


def _pruned(row: Row) -> str:
    return f"pruned at {row.pruned[0]}/{row.pruned[1]}" if row.pruned else ""


def _time(row: Row) -> str:
    return "" if row.seconds is None else f"{row.seconds:.1f} s"


def _cheap(setting: Setting) -> str:
    seconds = "" if setting.seconds is None else f", {setting.seconds:.1f} s"
    accuracy = "" if setting.accuracy is None else f", {100 * setting.accuracy:.1f} %"
    return f"{in_words(setting.values)} (member {_numbers(setting)}){accuracy}{seconds}"
