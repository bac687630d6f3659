"""Every kill and every failing call, once each, and a table of what came of them.

    python tests/faults/table.py [--kills 300] [--seed 0] [--jobs 1] [--every 1] [--subjects NAME …] [--only TEXT …] [--folder DIR] [--keep]

Prints what was not survived as it comes; exits 1 if anything was not, or if there were fewer kills.
"""

from __future__ import annotations

import argparse
import errno
import random
import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from queue import SimpleQueue
from signal import SIGTERM

import plans
from harness import KILL, Fault, served, unable
from mounts import can_mount
from subjects import Subject, subjects
from trials import Outcome, Reference, Trials

SHORT = ("finetune", "extract", "pretrain")
COLUMNS = ("subject, fault", "over", "trials", "kills", "resumed", "losses", "differences", "seconds")


@dataclass(frozen=True)
class Row:
    """All trials of one kind. over: what they go through, in words; seconds: of the clock on the wall."""

    title: str
    over: str
    outcomes: list[Outcome]
    seconds: float

    @property
    def bad(self) -> int:
        return sum(not outcome.survived for outcome in self.outcomes)

    @property
    def kills(self) -> int:
        return sum(outcome.kills for outcome in self.outcomes)

    def __str__(self) -> str:
        losses, differences = (sum(map(bool, (getattr(o, name) for o in self.outcomes))) for name in COLUMNS[5:7])
        resumed = sum(outcome.resumed for outcome in self.outcomes)
        cells = self.title, self.over, len(self.outcomes), self.kills, resumed, losses, differences, round(self.seconds)
        return f"| {' | '.join(map(str, cells))} |"


def main() -> None:
    options = _options()
    if reason := unable():
        raise SystemExit(reason)
    folder = Path(tempfile.mkdtemp(prefix="faults-", dir=options.folder)).resolve()
    rows: list[Row] = []
    with ExitStack() as stack:
        made = subjects(folder / "material")
        crew = [_trials(stack, folder / f"job{number}", options.keep) for number in range(options.jobs)]
        references = {name: _reference(crew, made[name]) for name in options.subjects}
        for title, over, planned in _kinds(references, crew[0], folder, options):
            if any(part in title for part in options.only):
                rows.append(_done(title, over, planned, crew))
                print(rows[-1], flush=True)
    print("\n" + _table(rows))
    kills = sum(row.kills for row in rows)
    print(f"\n{kills} kills, {sum(row.bad for row in rows)} of {sum(len(row.outcomes) for row in rows)} not survived")
    if not options.keep:
        shutil.rmtree(folder)
    raise SystemExit(int(kills < options.kills or any(row.bad for row in rows)))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=300, help="exit 1 if there were fewer")
    parser.add_argument("--seed", type=int, default=0, help="of random instants")
    parser.add_argument("--jobs", type=int, default=1, help="trials at the same time")
    parser.add_argument("--every", type=int, default=1, help="one in so many of the trials, for a quick look")
    parser.add_argument(
        "--subjects", nargs="+", choices=[*SHORT, "long"], default=[*SHORT, "long"], help="default: all"
    )
    parser.add_argument("--only", nargs="+", default=[""], help="rows whose title holds one of these; default: all")
    parser.add_argument("--folder", help="where to work; default: where temporary files go")
    parser.add_argument("--keep", action="store_true", help="keep the folders of what was not survived")
    return parser.parse_args()


def _trials(stack: ExitStack, folder: Path, keep: bool) -> Trials:
    folder.mkdir()
    return Trials(stack.enter_context(served(folder)), folder, keep)


def _reference(crew: Sequence[Trials], subject: Subject) -> Reference:
    """Every server runs it, as each has to import what it takes; the runs are alike."""
    first, *others = [trials.reference(subject) for trials in crew]
    assert all(other.fingerprint == first.fingerprint for other in others), f"{subject.name} is not reproducible"
    return first


def _kinds(
    references: dict[str, Reference], trials: Trials, folder: Path, options: argparse.Namespace
) -> Iterator[tuple[str, str, Iterable[plans.Planned]]]:
    """Title, what the trials go through, the trials."""
    random.seed(options.seed)
    mountable = folder if can_mount(folder) else None
    for name in options.subjects:
        if name == "long":
            yield from _of_long(references["long"], options)
            continue
        reference = references[name]
        n = len(reference.calls)
        calls = f"{n} calls"
        stopped = Fault(KILL, n * 2 // 3)
        yield f"{name}, SIGKILL at each call", calls, _few(options, plans.kills(reference))
        again = plans.kills_of_the_next(reference, stopped, trials)
        yield f"{name}, SIGKILL at call {stopped.at}, then at each call of what carries on", calls, _few(options, again)
        yield f"{name}, SIGTERM at each call", calls, _few(options, plans.signals_at_calls(reference, SIGTERM))
        yield f"{name}, ENOSPC at each call", calls, _few(options, plans.failures(reference, errno.ENOSPC))
        yield f"{name}, EIO at each call", calls, _few(options, plans.failures(reference, errno.EIO))
        yield f"{name}, a full disk from each call on", calls, _few(options, plans.full_disks(reference))
        yield f"{name}, a clock that goes back a day", calls, _few(options, plans.clocks_back(reference), 5)
        yield f"{name}, read-only folders", "all, cache" + (", tmpfs" if mountable else ""), plans.read_only(reference, mountable)  # fmt: skip
        if mountable:
            size = f"to {reference.bytes * 3 // 2 >> 10:,} KiB"
            yield f"{name}, a full tmpfs", size, _few(options, plans.small_disks(reference, mountable, 20))
        else:
            print("a full tmpfs: left out, as mounting is not allowed here")


def _of_long(long: Reference, options: argparse.Namespace) -> Iterator[tuple[str, str, Iterable[plans.Planned]]]:
    """At random instants."""
    yield "long, SIGKILL at random instants", f"{long.seconds:.1f} s", _few(options, plans.kills_at_random(long, 100))
    yield (
        "long, SIGTERM or SIGINT at random instants",
        f"{long.seconds:.1f} s",
        _few(options, plans.signals_at_random(long, 40)),
    )
    yield (
        "long, a worker killed at random instants",
        f"{long.seconds:.1f} s",
        _few(options, plans.workers_killed(long, 10)),
    )


def _few(options: argparse.Namespace, planned: Iterable[plans.Planned], every: int = 1) -> Iterable[plans.Planned]:
    return islice(planned, 0, None, every * options.every)


def _done(title: str, over: str, planned: Iterable[plans.Planned], crew: Sequence[Trials]) -> Row:
    """Says what was not survived as soon as that is known."""
    free: SimpleQueue[Trials] = SimpleQueue()
    for trials in crew:
        free.put(trials)

    def do(trial: plans.Planned) -> Outcome:
        trials = free.get()
        try:
            outcome = trial.do(trials)
        finally:
            free.put(trials)
        if not outcome.survived:
            print(f"NOT SURVIVED: {title}: {outcome}", flush=True)
        return outcome

    started = time.monotonic()
    todo = list(planned)
    with ThreadPoolExecutor(len(crew)) as threads:
        outcomes = list(threads.map(do, todo))
    return Row(title, over, outcomes, time.monotonic() - started)


def _table(rows: Sequence[Row]) -> str:
    return "\n".join([f"| {' | '.join(COLUMNS)} |", f"|{'---|' * len(COLUMNS)}", *map(str, rows)])


if __name__ == "__main__":
    main()
