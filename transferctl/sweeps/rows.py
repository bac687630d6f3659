"""What a sweep found, as values: of each member a row, of each setting what its members say together; which is best,
which others may be as good, and which nothing beats in two things at once."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from transferctl.reporting import checked
from transferctl.sweeps.space import Member
from transferctl.wording import one_line

EQUAL_TIMES = math.log(1.1)  # the same run on the same machine differs by as much
STATES = ("finished", "pruned", "failed", "stopped", "missing")


@dataclass(frozen=True)
class Row:
    """A member. accuracy, low, high, loss, n: on target validation data, of its best epoch; source: accuracy on the
    source's validation data after the training, change: less that before; leads: whether others found in the cache
    what it computed; reason: why it failed."""

    member: Member
    state: str = "missing"
    run: str = ""
    accuracy: float | None = None
    low: float | None = None
    high: float | None = None
    loss: float | None = None
    n: int | None = None
    source: float | None = None
    change: float | None = None
    seconds: float | None = None
    pruned: tuple[int, int] | None = None
    leads: bool = False
    exit_code: int = 0
    reason: str = ""


def row_of(member: Member, run: str, summary: Mapping[str, Any]) -> Row:
    """By its summary.json."""
    pruned = checked.mapping(summary.get("pruned"))
    epoch, of = checked.count(pruned.get("epoch")), checked.count(pruned.get("of"))
    state = _STATE_OF.get(str(summary.get("status")), "missing")
    state = "pruned" if state == "finished" and epoch and of else state
    seconds = checked.number(summary.get("elapsed_s"))
    code, reason = checked.count(summary.get("exit_code")) or 0, one_line(summary.get("error") or "", 2000)
    if state not in ("finished", "pruned"):
        return Row(member, state, run, seconds=seconds, exit_code=code, reason=reason)
    val = checked.mapping(checked.mapping(summary.get("best")).get("val"))
    source = checked.mapping(summary.get("source"))
    accuracy, low, high, loss = (
        checked.number(val.get(name)) for name in ("accuracy", "accuracy_low", "accuracy_high", "loss")
    )
    return Row(
        member, state, run, accuracy, low, high, loss, n=checked.count(val.get("n")),
        source=checked.number(checked.mapping(source.get("after")).get("accuracy")),
        change=checked.number(source.get("accuracy_change")), seconds=seconds,
        pruned=(epoch, of) if epoch and of and state == "pruned" else None,
    )  # fmt: skip


_STATE_OF = {"finished": "finished", "failed": "failed", "interrupted": "stopped", "running": "stopped"}


@dataclass(frozen=True)
class Setting:
    """Members that differ in the seed alone. Its numbers are means over those that have them."""

    rows: tuple[Row, ...]

    @property
    def values(self) -> dict[str, str]:
        return dict(self.rows[0].member.setting)

    @property
    def state(self) -> str:
        """Finished if all are, else what the worst of them is."""
        return max((row.state for row in self.rows), key=STATES.index)

    @property
    def is_complete(self) -> bool:
        return self.state == "finished"

    @property
    def accuracy(self) -> float | None:
        return self.mean(lambda row: row.accuracy)

    @property
    def sd(self) -> float | None:
        """Over the seeds."""
        found = [row.accuracy for row in self.rows if row.accuracy is not None]
        return statistics.stdev(found) if len(found) > 1 else None

    @property
    def interval(self) -> tuple[float, float] | None:
        """95 %, of one member's validation data: the mean of the members' ends. More seeds do not make it narrower, as
        they may look at the same images."""
        low, high = self.mean(lambda row: row.low), self.mean(lambda row: row.high)
        return None if low is None or high is None else (low, high)

    @property
    def loss(self) -> float | None:
        return self.mean(lambda row: row.loss)

    @property
    def seconds(self) -> float | None:
        return self.mean(lambda row: row.seconds)

    @property
    def source(self) -> float | None:
        return self.mean(lambda row: row.source)

    @property
    def change(self) -> float | None:
        return self.mean(lambda row: row.change)

    def mean(self, of: Callable[[Row], float | None]) -> float | None:
        found = [value for row in self.rows if (value := of(row)) is not None]
        return statistics.fmean(found) if found else None

    @property
    def median(self) -> Row:
        """The member that stands for the others: in the middle by accuracy, then loss; of two in the middle the worse.
        The best of the seeds would be the luckiest, and its score no expectation of another run's."""
        scored = [row for row in self.rows if row.accuracy is not None] or self.rows
        ordered = sorted(scored, key=lambda row: (*_order(row.accuracy, row.loss), row.member.number))
        return ordered[len(ordered) // 2]


def ranked(rows: Sequence[Row]) -> list[Setting]:
    """Settings by target validation accuracy, then loss; those of which a member was pruned, failed or is missing come
    after those that are complete."""
    groups: dict[tuple[tuple[str, str], ...], list[Row]] = {}
    for row in rows:
        groups.setdefault(row.member.setting, []).append(row)
    settings = [Setting(tuple(group)) for group in groups.values()]
    return sorted(settings, key=_place)


def _place(setting: Setting) -> tuple[int, float, float, int]:
    after = 0 if setting.is_complete else STATES.index(setting.state) if setting.accuracy is not None else len(STATES)
    return after, *_order(setting.accuracy, setting.loss), setting.rows[0].member.number


def _order(accuracy: float | None, loss: float | None) -> tuple[float, float]:
    """The best first; what has none last."""
    return 1.0 if accuracy is None else -accuracy, float("inf") if loss is None else loss


def picked(settings: Sequence[Setting]) -> Setting | None:
    """The best that is complete; where none is, the best that has a score. settings: ranked."""
    return settings[0] if settings and settings[0].accuracy is not None else None


def as_good(best: Setting, settings: Sequence[Setting]) -> list[Setting]:
    """The other complete ones whose intervals overlap the best's."""
    own = best.interval
    return [
        other
        for other in settings
        if other is not best and other.is_complete and own and other.interval and other.interval[1] >= own[0]
    ]


def cheapest(settings: Sequence[Setting]) -> Setting:
    """The one that took the least time; the first of several."""
    return min(settings, key=lambda setting: float("inf") if setting.seconds is None else setting.seconds)


def fronts(settings: Sequence[Setting]) -> dict[str, list[int]]:
    """Positions of complete settings that no other beats: in target and source accuracy (where there is source), in
    target accuracy and time. Times that differ by less than a tenth are taken for equal. One alone makes no front."""
    found = {}
    ways: dict[str, tuple[Callable[[Setting], float | None], float]] = {
        "source": (lambda setting: setting.source, 0.0),
        "time": (_quickness, EQUAL_TIMES),
    }  # fmt: skip
    for name, (other, slack) in ways.items():
        points = [
            (i, setting.accuracy, value)
            for i, setting in enumerate(settings)
            if setting.is_complete and setting.accuracy is not None and (value := other(setting)) is not None
        ]
        if len(points) > 1:
            best = undominated([(accuracy, value) for _, accuracy, value in points], slack)
            found[name] = [points[i][0] for i in best]
    return found


def _quickness(setting: Setting) -> float | None:
    """Log of the seconds, negative: equal ratios of times are equally far apart."""
    return None if setting.seconds is None else -math.log(max(setting.seconds, 1e-3))


def undominated(points: Sequence[tuple[float, float]], slack: float = 0.0) -> list[int]:
    """Positions of the points that no other is as good as in both coordinates and better than in one; more is better.
    slack: by how much second coordinates differ that are taken for equal."""

    def is_beaten(a: float, b: float) -> bool:
        return any((c > a and d >= b - slack) or (c == a and d > b + slack) for c, d in points)

    return [i for i, point in enumerate(points) if not is_beaten(*point)]
