"""Which λ, freeze depth, learning rate: the same training with other settings, each an ordinary run; what was best on
validation data, how sure that is, and what the one that is picked scores on test data, which is read once."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from transferctl import (
    errors,
    evaluate,
    jsontext,
    lock,
    members,
    results,
    runs,
    tracking,
    yamlfile,
)
from transferctl.display import Display
from transferctl.resuming import Resumed
from transferctl.runs import Run
from transferctl.spec import Spec
from transferctl.sweeps import beforehand, methods, networks, rows, show, work
from transferctl.sweeps import book as books
from transferctl.sweeps import study as studies
from transferctl.sweeps.book import Asked, Book
from transferctl.sweeps.rows import Row, Setting
from transferctl.sweeps.space import SEED, Member
from transferctl.sweeps.specs import Specs, corners, faults
from transferctl.sweeps.study import Study
from transferctl.yamlfile import SpecFile

TEST = "test"  # in the sweep's folder: where the picked member's test run is
PLOT = "sweep.svg"
PATIENCE_S = 60.0
OF_A_RUN = ("schema_version", "verb", "name", "run", "status", "exit_code", "elapsed_s", "evaluated", "data")


def run(
    file: SpecFile, asked: Asked | None, runs_dir: Path, display: Display, *, jobs: int, resumed: Resumed | None = None
) -> dict[str, Any]:
    """Run the members of a sweep, or those that an earlier process has not finished (asked: None), pick the best by
    target validation data and score it on test data.

    Raises what a member raised where all failed, or where their common data is at fault.
    """
    book = books.read(resumed.run) if resumed else None
    asked = book.asked if book else asked
    assert asked is not None
    folders = book.folders if book else yamlfile.folders_of(file.path)
    specs = Specs(file, folders)
    asked = replace(asked, axes=specs.with_whole_ranges(asked.axes))
    planned = book.members if book else _planned(asked)
    if problems := faults(file.path, file.overrides, [] if asked.method == "grid" else planned, folders):
        raise errors.SpecError(problems)  # those of a grid are known to be whole
    looked_at = planned or corners(asked.axes)
    wholes = [specs.whole(member) for member in looked_at]
    beforehand.refuse_unused(asked, wholes)
    studies.refuse_missing(asked.method, prune=asked.prune)
    tracking.refuse_missing(file.spec)
    if book is None and (problems := networks.faults(asked, looked_at, wholes)):
        raise errors.SpecError(problems)
    total = asked.trials * len(methods.split(asked.axes)[1]) if asked.method == "optuna" else len(planned)
    _say(file.spec, asked, total, display)
    beforehand.look_at_data(wholes, display)
    with runs.start(runs_dir, "sweep", file.spec.name, yamlfile.dump_written(file.spec), display, resumed) as folder:
        folder.settle()
        told = f"it is a sweep; name one of its members, in {folder.path / books.MEMBERS}"
        folder.summary["without_model"] = told
        book = replace(book, asked=asked) if book else Book(folder.path, asked, file.spec.name, folders, planned)
        (folder.path / books.MEMBERS).mkdir(exist_ok=True)
        book.save()
        study = Study(folder.path, asked.seed) if asked.method == "optuna" or asked.prune else None
        try:
            left = _left(book, display)
            work.Work(book, specs, study, folder.path.parent, display).do(left, min(jobs, max(total, 1)))
        finally:
            book.refresh()
            book.save()
            folder.summary |= _progress(book)
        _conclude(book, specs, folder, display)
    display.result(str(folder.path))
    return folder.summary


def _planned(asked: Asked) -> list[Member]:
    """All members of a grid, or of what is drawn at random; those that Optuna proposes come one by one."""
    axes, seeds = methods.split(asked.axes)
    if asked.method == "optuna":
        return []
    settings = methods.grid(axes) if asked.method == "grid" else methods.random(axes, asked.trials, asked.seed)
    found: list[Member] = []
    for setting in settings:
        found += methods.repeated(setting, seeds, asked.axes, len(found) + 1)
    return found


def _say(spec: Spec, asked: Asked, total: int, display: Display) -> None:
    keys = {axis.key for axis in asked.axes}
    display.note(show.plan(asked, total))
    if asked.method == "random" and total < asked.trials:
        display.note(f"only {total} of the {asked.trials} settings asked for are different ones")
    test = "target.test is taken out of the members' specs; the one that is picked is scored on it, once, at the end"
    display.note(test if spec.target.test else "there is no target.test, so the one that is picked is not tested")
    left_out = ["report", *(["baseline"] if spec.baseline else [])]
    display.note(f"members run without {' and '.join(left_out)}; `transferctl report` makes a page of any of them")
    if any(key.startswith("target.val") for key in keys):
        display.warn("target.val is swept: scores on different validation data do not compare")
    if SEED in keys and isinstance(spec.target.val, float):
        display.note(
            "seeds are repeats; as target.val is a fraction, each holds out other images: scores differ by that too"
        )
    if asked.prune:
        display.note(
            "--prune stops a member that is not in the best third after 1, 3, 9 … epochs, before its learning rate has "
            "come down as the schedule has it; its score is what it had by then, and it is not picked"
        )
    if asked.prune and any(key == "epochs" or key.startswith("schedule") for key in keys):
        display.warn(
            "--prune compares members after equally many epochs, when those with other epochs or schedule have another "
            "learning rate: it favours those whose rate falls early"
        )


def _left(book: Book, display: Display) -> list[Member]:
    """Members to run. Those of an earlier process that was killed may still be saving themselves."""
    left = book.unfinished()
    for member in left:
        if (path := book.run_of(member)) is not None:
            _wait_until_free(path, display)
    if len(left) < len(book.members):
        display.note(f"{len(book.members) - len(left)} of {len(book.members)} members have ended before")
    return left


def _wait_until_free(run: Path, display: Display) -> None:
    """Raises LockedError for a member that another process still writes after a while."""
    if lock.is_held(run):
        display.note(f"{run.name} is still being saved by the process that was stopped; waiting for it")
    give_up = time.monotonic() + PATIENCE_S
    while lock.is_held(run):
        if time.monotonic() > give_up:
            raise lock.held_by(run)
        time.sleep(0.1)


def _progress(book: Book) -> dict[str, Any]:
    """How many members are in which state."""
    states = [row.state for row in book.rows()]
    return {"members": {state: states.count(state) for state in rows.STATES if state in states}}


def _conclude(book: Book, specs: Specs, folder: Run, display: Display) -> None:
    """The table, the plot, the pick, and its test. Raises what the members raised, where none has a score."""
    found = book.rows()
    settings = rows.ranked(found)
    asked, fronts, best = book.asked, rows.fronts(settings), rows.picked(settings)
    if best is None:
        first = next(iter(sorted(book.failures)), 0)
        raise work.all_failed(found, book.failures[first].problems if first else ())
    show.table(asked, settings, fronts, display)
    show.explain_fronts(fronts, display)
    folder.summary |= {
        "sweep": {
            "verb": asked.verb, "method": asked.method, "over": [axis.written for axis in asked.axes],
            "trials": asked.trials or None, "prune": asked.prune, "seed": asked.seed,
        },
        "settings": [_told(place, setting, specs, fronts) for place, setting in enumerate(settings)],
    }  # fmt: skip
    if fronts:
        folder.write_text(PLOT, show.drawn(asked, settings, fronts, best))
    row = best.median
    uncertain = show.pick(best, settings, display)
    folder.summary["picked"] = {
        "member": row.member.number, "run": row.run, "settings": specs.values(row.member), **uncertain
    }  # fmt: skip
    folder.summary["best"] = {"val": _val(row)}
    folder.summary["without_model"] += f"; the one that it picked: {row.run}"
    folder.write_json("summary.json", folder.summary | {"status": "running"})  # before test data is read
    if (test := _test(row, specs, folder, display)) is not None:
        folder.summary["test"] = test


def _test(row: Row, specs: Specs, folder: Run, display: Display) -> dict[str, Any] | None:
    """The scores of the picked member's best checkpoint on test data, by an ordinary `eval` run; of an earlier process,
    where it came so far. None without such data."""
    spec = specs.of(row.member)
    test = specs.whole(row.member).target.test
    if test is None:
        return None
    tested = _tested_before(folder.path / TEST, row)
    if tested is None:
        spec = spec.model_copy(update={"target": spec.target.model_copy(update={"test": test})})
        tested = evaluate.run(
            spec, Path(row.run), folder.path / TEST, members.Quiet(display.warn, display), which="best", split="test",
            data_path=None, conditions=(),
        )  # fmt: skip
    results.show_metrics(display, f"Test, scored once, member {row.member.number}", tested)
    metrics = {key: value for key, value in tested.items() if key not in OF_A_RUN}
    return metrics | {"run": tested["run"]}


def _tested_before(folder: Path, row: Row) -> Mapping[str, Any] | None:
    for path in sorted(folder.glob("*-eval-*/summary.json")):
        try:
            summary = dict(jsontext.read(path))
        except (OSError, ValueError, TypeError):
            continue
        evaluated = Path(str(summary.get("evaluated"))).name
        if summary.get("status") == "finished" and evaluated == Path(row.run).name:
            return summary
    return None


def _told(place: int, setting: Setting, specs: Specs, fronts: Mapping[str, Sequence[int]]) -> dict[str, Any]:
    """A setting in the summary: values as the spec has them."""
    interval = setting.interval or (None, None)
    values = specs.values(setting.rows[0].member)
    of: dict[str, Callable[[Setting], float | None]] = {
        "loss": lambda one: one.loss,
        "source_accuracy": lambda one: one.source,
        "source_change": lambda one: one.change,
        "seconds": lambda one: one.seconds,
    }
    return {
        "settings": {key: value for key, value in values.items() if key != SEED},
        "state": setting.state, "accuracy": setting.accuracy, "accuracy_sd": setting.sd,
        "accuracy_low": interval[0], "accuracy_high": interval[1],
        **{key: value(setting) for key, value in of.items()},
        "fronts": [name for name, on in fronts.items() if place in on],
        "members": [_member(row, specs) for row in setting.rows],
    }  # fmt: skip


def _member(row: Row, specs: Specs) -> dict[str, Any]:
    told: dict[str, Any] = {"member": row.member.number, "run": row.run or None, "state": row.state}
    told |= {"seed": specs.values(row.member)[SEED]} if SEED in row.member.settings else {}
    told |= {"accuracy": row.accuracy, "loss": row.loss, "seconds": row.seconds, "leads": row.leads}
    told |= {"pruned": {"epoch": row.pruned[0], "of": row.pruned[1]}} if row.pruned else {}
    return told | ({"exit_code": row.exit_code, "error": row.reason} if row.state == "failed" else {})


def _val(row: Row) -> dict[str, Any]:
    """As other runs have their best epoch's scalars."""
    found = {"n": row.n, "accuracy": row.accuracy, "accuracy_low": row.low, "accuracy_high": row.high, "loss": row.loss}
    return {key: value for key, value in found.items() if value is not None}
