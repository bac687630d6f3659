"""Which trials there are: every kill, every failing call, and the rest of what may befall a run."""

from __future__ import annotations

import errno
import random
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from signal import SIGINT, SIGTERM
from typing import NamedTuple

from harness import CLOCK_BACK, FAIL_ON, FAIL_ONCE, GROWING, KILL, KILL_HALFWAY, KINDS, NO_FAULT, SIGNAL, Fault, mask
from mounts import on_full_disk, on_read_only_disk
from trials import Outcome, Reference, Trials

DAY_S = 86400


class Planned(NamedTuple):
    """A trial to be: of Trials' methods, or of functions that take Trials first."""

    method: Callable[..., Outcome]
    arguments: Sequence[object]

    def do(self, trials: Trials) -> Outcome:
        return self.method(trials, *self.arguments)


def kills(reference: Reference) -> Iterator[Planned]:
    """Before each call, and halfway in each write."""
    for at, call in enumerate(reference.calls, 1):
        yield Planned(Trials.killed, (reference, Fault(KILL, at)))
        if call.kind == "write":
            yield Planned(Trials.killed, (reference, Fault(KILL_HALFWAY, at)))


def kills_of_the_next(reference: Reference, stopped: Fault, trials: Trials) -> Iterator[Planned]:
    """Before each call of the command that carries on a run which `stopped` killed."""
    n = trials.killed(reference, stopped, NO_FAULT).calls[1]
    for at in range(1, n + 1):
        yield Planned(Trials.killed, (reference, stopped, Fault(KILL, at)))


def kills_at_random(reference: Reference, n: int) -> Iterator[Planned]:
    """Twice in each trial: the run, and the command that carries it on."""
    for _ in range(n):
        delays_s = random.uniform(0, reference.seconds), random.uniform(0, reference.seconds / 2)
        yield Planned(Trials.killed_after, (reference, *delays_s))


def signals_at_calls(reference: Reference, number: int) -> Iterator[Planned]:
    for at in range(1, len(reference.calls) + 1):
        yield Planned(Trials.signalled, (reference, Fault(SIGNAL, at, number)))


def signals_at_random(reference: Reference, n: int) -> Iterator[Planned]:
    """SIGTERM and SIGINT in turn."""
    for turn in range(n):
        number = (SIGTERM, SIGINT)[turn % 2]
        yield Planned(Trials.signalled_after, (reference, number, random.uniform(0.1, reference.seconds)))


def failures(reference: Reference, code: int) -> Iterator[Planned]:
    """Each call, it alone."""
    for at in range(1, len(reference.calls) + 1):
        yield Planned(Trials.failing, (reference, Fault(FAIL_ONCE, at, code)))


def full_disks(reference: Reference) -> Iterator[Planned]:
    """From each call on."""
    for at in range(1, len(reference.calls) + 1):
        yield Planned(Trials.failing, (reference, Fault(FAIL_ON, at, errno.ENOSPC, mask(GROWING))))


def small_disks(reference: Reference, folder: Path, n: int) -> Iterator[Planned]:
    """Real ones, from one that takes nothing to one that takes all."""
    for part in range(1, n + 1):
        yield Planned(on_full_disk, (reference, folder, reference.bytes * 3 // 2 * part // n))


def read_only(reference: Reference, folder: Path | None) -> Iterator[Planned]:
    """All of it, the cache alone; and a real disk in `folder`, where one may mount there."""
    for below in ("root", "root/cache"):
        yield Planned(Trials.failing, (reference, Fault(FAIL_ON, 1, errno.EROFS, mask(KINDS)), below))
    if folder:
        yield Planned(on_read_only_disk, (reference, folder))


def workers_killed(reference: Reference, n: int) -> Iterator[Planned]:
    for _ in range(n):
        yield Planned(Trials.worker_killed, (reference, random.uniform(0, 0.9 * reference.seconds)))


def clocks_back(reference: Reference) -> Iterator[Planned]:
    """From each call on; and only in what carries on a run that was killed there."""
    for at in range(1, len(reference.calls) + 1):
        yield Planned(Trials.killed, (reference, Fault(CLOCK_BACK, at, DAY_S)))
        yield Planned(Trials.killed, (reference, Fault(KILL, at), Fault(CLOCK_BACK, 0, DAY_S)))
