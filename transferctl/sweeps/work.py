"""The members of a sweep, run one after the other in this process, or side by side in processes of their own."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch

from transferctl import errors, members, signals
from transferctl.display import Display
from transferctl.errors import ExitCode
from transferctl.memberpool import Ended, Epoch, Event, Pool
from transferctl.members import Outcome, Say, Task
from transferctl.sweeps import methods, show
from transferctl.sweeps.book import Book
from transferctl.sweeps.rows import Row, Setting
from transferctl.sweeps.schedule import Schedule
from transferctl.sweeps.space import Member
from transferctl.sweeps.specs import Specs
from transferctl.sweeps.study import Study

LOG = "workers.log"  # what libraries print in the processes
IMAGES_DEPEND_ON = ("target", "source", "on_bad_sample")


@dataclass
class Work:
    """What is to be done. stage0: where runs of stage 0 are looked for and made; study: proposes settings, if the
    method is optuna, and prunes members, if that is asked for."""

    book: Book
    specs: Specs
    study: Study | None
    stage0: Path
    display: Display
    schedule: Schedule = field(init=False)
    _said: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.schedule = Schedule(self.specs.of, self.book.asked.verb)
        self._axes, self._seeds = methods.split(self.book.asked.axes)

    def do(self, waiting: Iterable[Member], jobs: int) -> None:
        """Run members until none is left. A signal passes, once those that run are saved. Raises DataError for what is
        wrong with data that they share."""
        for row in self.book.rows():
            if row.state in ("finished", "pruned"):
                self.schedule.remember(row.member)
        for member in waiting:
            self.schedule.add(member)
        self._tell_study(self.book.members)
        if jobs == 1:
            self._one_by_one()
        else:
            self._side_by_side(jobs)

    def _one_by_one(self) -> None:
        while (member := self._next()) is not None:
            goes_on = partial(self._goes_on, member.number)
            self._ended(member, members.attempt(self._task(member), self._warn, goes_on, self.display))

    def _side_by_side(self, jobs: int) -> None:
        threads = max(1, torch.get_num_threads() // jobs)
        each = f"in a process of its own with {threads} of {torch.get_num_threads()} threads"
        self.display.note(f"{jobs} members at a time, each {each}")
        log = self.book.path / LOG
        with Pool(jobs, threads, log) as pool:
            while True:
                while pool.has_room and (member := self._next()) is not None:
                    pool.start(member.number, self._task(member))
                if not pool.running:
                    break
                for event in pool.wait():
                    self._hear(event, pool)
        if log.exists() and not log.stat().st_size:
            log.unlink()

    def _hear(self, event: Event, pool: Pool) -> None:
        if isinstance(event, Epoch):
            pool.answer(event.number, self._goes_on(event.number, event.epochs, event.val))
        elif isinstance(event, Ended):
            self._ended(self._member(event.number), event.outcome)
        else:
            self._warn(event.text)

    def _member(self, number: int) -> Member:
        return self.book.members[number - 1]

    def _task(self, member: Member) -> Task:
        return Task(self.specs.of(member), self.book.asked.verb, self.book.folder, self.stage0)

    # -- which is next

    def _next(self) -> Member | None:
        """None where all are done or run, or where those that are left wait for one that runs."""
        if self.schedule.is_empty:
            self._propose()
        member = self.schedule.next()
        self.book.leads |= self.schedule.leaders
        return member

    def _propose(self) -> None:
        """The next setting that Optuna wants to know, in the book before it is tried."""
        asked, seeds = self.book.asked, self._seeds
        index = len(self.book.members) // len(seeds)
        if asked.method != "optuna" or self.study is None or index >= asked.trials:
            return
        tried = {frozenset(member.setting) for member in self.book.members}
        settings = self.study.propose(index, self._axes, tried)
        if settings is None:
            self._say_once(
                self.display.note, f"Optuna proposes no other settings than the {len(tried)} that were tried"
            )
            return
        found = methods.repeated(settings, seeds, asked.axes, len(self.book.members) + 1)
        with signals.held():
            self.book.members += found
            self.book.save()
            for member in found:
                self.schedule.add(member)

    # -- what becomes of it

    def _goes_on(self, number: int, epochs: int, val: Mapping[str, Any]) -> bool:
        """A member is asked after each epoch; at the first its frozen work is done."""
        self.schedule.has_computed(number)
        if not self.book.asked.prune or self.study is None:
            return True
        return self.study.goes_on(number, epochs, float(val["accuracy"]))

    def _ended(self, member: Member, outcome: Outcome) -> None:
        self.schedule.has_ended(member.number, well=outcome.code == ExitCode.OK)
        with signals.held():
            row = self.book.ended(member, outcome)
        for line in outcome.trace.splitlines():
            self.display.line(line, shown=False)
        if outcome.is_of_images and not self._varies_images():
            raise errors.of_code(outcome.code, outcome.message)
        done = [row for row in self.book.rows() if row.state in ("finished", "pruned", "failed")]
        self.display.note(show.progress_line(row, done, self._total()))
        self._tell_study(other for other in self.book.members if other.setting == member.setting)

    def _total(self) -> int:
        asked = self.book.asked
        return asked.trials * len(self._seeds) if asked.method == "optuna" else len(self.book.members)

    def _varies_images(self) -> bool:
        return any(axis.key.split(".")[0] in IMAGES_DEPEND_ON for axis in self.book.asked.axes)

    def _tell_study(self, of: Iterable[Member]) -> None:
        """What the settings of these members have come to, where all their members have ended."""
        if self.book.asked.method != "optuna" or self.study is None:
            return
        rows = {row.member.number: row for row in self.book.rows()}
        settings: dict[int, list[Row]] = {}
        for member in of:
            settings.setdefault((member.number - 1) // len(self._seeds), []).append(rows[member.number])
        for index, found in settings.items():
            if all(row.state in ("finished", "pruned", "failed") for row in found):
                has_failed = any(row.state == "failed" for row in found)
                self.study.tell(index, None if has_failed else Setting(tuple(found)).accuracy)

    def _warn(self, text: str) -> None:
        """What several members warn of is told once."""
        self._say_once(self.display.warn, text)

    def _say_once(self, say: Say, text: str) -> None:
        if text not in self._said:
            self._said.add(text)
            say(text)


def all_failed(rows: Sequence[Row], problems: Sequence[errors.Problem]) -> errors.TransferctlError:
    """With the exit code of the first, and what it said; once, where all said the same."""
    first = next(row for row in rows if row.state == "failed")
    alike = all(row.reason == first.reason for row in rows)
    if problems and alike:
        return errors.SpecError(problems)
    many = f"all {len(rows)} members failed{' alike' if alike else ''}: " if len(rows) > 1 else ""
    told = many + first.reason
    return errors.of_code(ExitCode(first.exit_code), told)
