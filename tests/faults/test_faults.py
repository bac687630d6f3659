"""Killed, failing, full, read-only, closed: whatever befalls a run, it is carried on as if nothing had been.

A spread of what `table.py` does in full; TRANSFERCTL_FAULTS_SEED chooses another one.
"""

from __future__ import annotations

import errno
import json
import os
import random
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from signal import SIGTERM

import harness
import mounts
import plans
import pytest
from harness import KILL, PROJECT, Fault
from plans import Planned
from subjects import GREEK, Subject, differences, fingerprint, subjects
from trials import Reference, Trials

SEED = int(os.environ.get("TRANSFERCTL_FAULTS_SEED", "0"))

pytestmark = pytest.mark.skipif(bool(harness.unable()), reason=harness.unable())
Survives = Callable[[Iterable[Planned]], None]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Subject]:
    return subjects(tmp_path_factory.mktemp("material"))


@pytest.fixture(scope="module")
def trials(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trials]:
    folder = tmp_path_factory.mktemp("trials")
    with harness.served(folder) as server:
        yield Trials(server, folder)


@pytest.fixture(scope="module")
def reference(made: dict[str, Subject], trials: Trials) -> Callable[[str], Reference]:
    """The uninterrupted run of a subject, run once."""
    known: dict[str, Reference] = {}

    def of(name: str) -> Reference:
        if name not in known:
            known[name] = trials.reference(made[name])
        return known[name]

    return of


@pytest.fixture
def survives(trials: Trials) -> Survives:
    """Do the trials; say of each that was not survived what happened."""

    def check(planned: Iterable[Planned]) -> None:
        outcomes = [trial.do(trials) for trial in planned]
        assert outcomes
        bad = [str(outcome) for outcome in outcomes if not outcome.survived]
        assert not bad, "\n".join([f"TRANSFERCTL_FAULTS_SEED={SEED}", *bad])

    return check


def spread(planned: Iterable[Planned], n: int) -> list[Planned]:
    """One of each n-th part of them, at random: so many over all of the run."""
    every, chance = list(planned), random.Random(SEED)
    return [every[int((part + chance.random()) * len(every) / n)] for part in range(n)]


# -- kill -9 ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "n"), [("finetune", 8), ("extract", 6), ("pretrain", 4)])
def test_a_run_killed_at_any_call_ends_as_one_that_was_not(
    name: str, n: int, reference: Callable[[str], Reference], survives: Survives
) -> None:
    survives(spread(plans.kills(reference(name)), n))


def test_what_is_done_again_for_want_of_a_checkpoint_is_in_the_metrics_once(
    reference: Callable[[str], Reference], survives: Survives
) -> None:
    """Source validation is measured before training, and training is saved first after two steps."""
    finetune = reference("finetune")
    first = next(at for at, call in enumerate(finetune.calls, 1) if "/.step-000002" in call.path)
    survives([Planned(Trials.killed, (finetune, Fault(KILL, first)))])


def test_what_carries_on_a_run_may_be_killed_as_well(
    reference: Callable[[str], Reference], trials: Trials, survives: Survives
) -> None:
    finetune = reference("finetune")
    stopped = Fault(KILL, len(finetune.calls) * 2 // 3)
    survives(spread(plans.kills_of_the_next(finetune, stopped, trials), 4))


def test_a_run_with_workers_killed_at_random_instants_ends_as_one_that_was_not(
    reference: Callable[[str], Reference], survives: Survives
) -> None:
    random.seed(SEED)
    survives(plans.kills_at_random(reference("long"), 1))


@pytest.mark.parametrize(("name", "n"), [("finetune", 6), ("extract", 4), ("pretrain", 2)])
def test_a_signal_at_any_call_ends_the_run_in_order_and_it_is_carried_on(
    name: str, n: int, reference: Callable[[str], Reference], survives: Survives
) -> None:
    survives(spread(plans.signals_at_calls(reference(name), SIGTERM), n))


def test_a_signal_at_any_instant_ends_a_run_with_workers_in_order(
    reference: Callable[[str], Reference], survives: Survives
) -> None:
    random.seed(SEED)
    survives(plans.signals_at_random(reference("long"), 2))


def test_a_killed_worker_is_a_failure_that_can_be_carried_on(
    reference: Callable[[str], Reference], trials: Trials
) -> None:
    outcome = trials.worker_killed(reference("long"), 0.5 * reference("long").seconds)
    assert outcome.survived and outcome.kills == 1 and outcome.ends[0] == "exit 5", str(outcome)


# -- disks --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "n"), [("finetune", 3), ("extract", 3), ("pretrain", 2)])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO], ids=errno.errorcode.get)
def test_one_call_that_fails_is_harmless_or_said_in_one_message(
    name: str, n: int, code: int, reference: Callable[[str], Reference], survives: Survives
) -> None:
    survives(spread(plans.failures(reference(name), code), n))


@pytest.mark.parametrize(("name", "n"), [("finetune", 3), ("extract", 3), ("pretrain", 2)])
def test_a_disk_that_gets_full_is_said_in_one_message(
    name: str, n: int, reference: Callable[[str], Reference], survives: Survives
) -> None:
    """Seen from the process: it may create and write nothing from a call on; all else works."""
    survives(spread(plans.full_disks(reference(name)), n))


def test_a_small_tmpfs_gets_full_and_then_larger(
    reference: Callable[[str], Reference], survives: Survives, tmp_path: Path
) -> None:
    if not mounts.can_mount(tmp_path):
        pytest.skip("mounting is not allowed here; full disks are those of the test before")
    survives(plans.small_disks(reference("finetune"), tmp_path, 3))


def test_read_only_folders_are_said_and_a_read_only_cache_is_done_without(
    reference: Callable[[str], Reference], survives: Survives, tmp_path: Path
) -> None:
    survives(plans.read_only(reference("extract"), tmp_path if mounts.can_mount(tmp_path) else None))


# -- the clock, streams, the locale -------------------------------------------------------------------


def test_a_clock_that_goes_back_a_day_changes_nothing(
    reference: Callable[[str], Reference], survives: Survives
) -> None:
    survives(spread(plans.clocks_back(reference("finetune")), 3))


def command(
    arguments: Iterable[object], folder: Path, shell: str = 'exec "$@"', stdout: int = subprocess.PIPE,
    **environment: str,
) -> subprocess.CompletedProcess[bytes]:  # fmt: skip
    """A process of its own, started by a line of shell."""
    words = ["sh", "-c", shell, "sh", sys.executable, "-m", "transferctl", *map(str, arguments)]
    own = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(PROJECT)}
    return subprocess.run(
        words, stdout=stdout, stderr=subprocess.PIPE, check=False, cwd=folder, env=os.environ | own | environment
    )


def test_a_stdout_that_is_closed_from_the_start_is_done_without(
    made: dict[str, Subject], reference: Callable[[str], Reference], tmp_path: Path
) -> None:
    done = command(made["finetune"].arguments(tmp_path), tmp_path, 'exec "$@" >&-')
    assert done.returncode == 0, done.stderr
    assert not differences(fingerprint(next(tmp_path.glob("runs/*"))), reference("finetune").fingerprint)


def test_a_stdout_that_nobody_reads_is_said_in_one_message_and_the_run_carried_on(
    made: dict[str, Subject], reference: Callable[[str], Reference], tmp_path: Path
) -> None:
    *arguments, as_json = made["finetune"].arguments(tmp_path)
    reading, writing = os.pipe()
    os.close(reading)
    done = command(arguments, tmp_path, stdout=writing)
    os.close(writing)
    assert done.returncode == 5 and done.stderr.count(b" error: ") == 1, done.stderr
    done = command(["finetune", "--resume", next(tmp_path.glob("runs/*")), as_json], tmp_path)
    assert done.returncode == 0, done.stderr
    assert not differences(fingerprint(Path(json.loads(done.stdout)["run"])), reference("finetune").fingerprint)


def test_class_names_survive_a_locale_that_cannot_write_them(
    made: dict[str, Subject], reference: Callable[[str], Reference], tmp_path: Path
) -> None:
    done = command(made["greek"].arguments(tmp_path), tmp_path, LC_ALL="C")
    assert done.returncode == 0, done.stderr
    run = next(tmp_path.glob("runs/*"))
    assert json.loads((run / "classes.json").read_text("utf-8"))["target"] == sorted(GREEK)
    assert not differences(fingerprint(run), reference("greek").fingerprint)


def test_python_told_not_to_use_utf8_is_said_to_be_the_cause(made: dict[str, Subject], tmp_path: Path) -> None:
    done = command(made["greek"].arguments(tmp_path), tmp_path, LC_ALL="C", PYTHONUTF8="0")
    assert done.returncode == 3 and b"Traceback" not in done.stderr, done.stderr
    assert b"names are read as ascii here; set PYTHONUTF8=1" in done.stderr
