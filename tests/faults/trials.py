"""One trial: a command that a fault stops, what it left behind, and whether it ends as if nothing had been."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from signal import Signals
from typing import Any

from harness import (
    CLOCK_BACK,
    COUNT,
    FAIL_ON,
    FAIL_ONCE,
    KILL,
    KILL_HALFWAY,
    NO_FAULT,
    SIGNAL,
    Call,
    Ending,
    Fault,
    Server,
)
from subjects import LINKS, Subject, broken_checkpoints, differences, fingerprint

from transferctl.errors import ExitCode

WITHIN_S = 5.0  # of a signal, on a machine that is busy with other trials


@dataclass(frozen=True)
class Reference:
    """The uninterrupted run of a subject: what it did and left. bytes: of all files in the end."""

    subject: Subject
    calls: list[Call]
    seconds: float
    fingerprint: dict[str, str]
    bytes: int


@dataclass
class Outcome:
    """what: the fault in words. ends: how each command ended. losses: a run that could not be carried on, a checkpoint
    that is gone, an ending that no user should see. differences: what is not as in the uninterrupted run. calls: how many
    each command made."""

    what: str
    ends: list[str] = field(default_factory=list)
    calls: list[int] = field(default_factory=list)
    kills: int = 0
    resumed: int = 0
    losses: list[str] = field(default_factory=list)
    differences: list[str] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def survived(self) -> bool:
        return not self.losses and not self.differences

    def __str__(self) -> str:
        return "; ".join([self.what, *self.ends, *self.losses, *(f"{name} differs" for name in self.differences)])


class Trials:
    """Trials of one server, each in a folder of its own. keep: leave the folder of one that was not survived."""

    def __init__(self, server: Server, folder: Path, keep: bool = False):
        self._server, self._folder, self._keep = server, folder, keep
        self._number = 0

    def reference(self, subject: Subject) -> Reference:
        """Has the server import what the run imported, so that later commands start with it."""
        for _ in range(2):
            folder = self._new_folder()
            modules = folder / "modules.json"
            ending = self._server.run(subject.arguments(folder / "root"), folder, modules=modules)
            assert ending.exit_code == 0, ending.stderr
            self._server.bury(ending)
            self._server.imports(modules)
            size = sum(path.stat().st_size for path in (folder / "root").rglob("*") if path.is_file())
            found = fingerprint(Path(ending.json["run"]))
            shutil.rmtree(folder)
        return Reference(subject, ending.calls, ending.seconds, found, size)

    def killed(self, reference: Reference, *faults: Fault) -> Outcome:
        """SIGKILL at a call; the second fault and those after it: at calls of the commands that carry the run on."""
        what = " then ".join([in_words(faults[0], reference.calls), *(in_words(fault) for fault in faults[1:])])
        return self._trial(reference, what, [{"fault": fault} for fault in faults])

    def killed_after(self, reference: Reference, *delays_s: float) -> Outcome:
        """SIGKILL so many seconds after the start, and after the start of the commands that carry the run on."""
        what = f"killed after {' then '.join(f'{delay_s:.3f} s' for delay_s in delays_s)}"
        return self._trial(reference, what, [{"kill_after_s": delay_s} for delay_s in delays_s])

    def signalled(self, reference: Reference, fault: Fault) -> Outcome:
        """SIGTERM or SIGINT at a call: what is done is saved, the exit code says so, within seconds."""
        judge = partial(disorderly, fault.value, reference.seconds)
        return self._trial(reference, in_words(fault, reference.calls), [{"fault": fault}], judge=judge)

    def signalled_after(self, reference: Reference, number: int, delay_s: float) -> Outcome:
        what = f"{Signals(number).name} after {delay_s:.3f} s"
        how = {"kill_after_s": delay_s, "kill_signal": number}
        judge = partial(disorderly, number, delay_s)
        return self._trial(reference, what, [how], judge=judge)

    def failing(self, reference: Reference, fault: Fault, below: str = "root") -> Outcome:
        """Calls that fail: the command ends well, or says what the matter is; then it is carried on without faults."""
        return self._trial(reference, in_words(fault, reference.calls), [{"fault": fault, "below": below}], judge=unfit)

    def worker_killed(self, reference: Reference, after_s: float) -> Outcome:
        """SIGKILL for a process that decodes images: a failure like others."""
        what = f"a worker killed after {after_s:.3f} s"
        return self._trial(reference, what, [{"kill_worker_after_s": after_s}], judge=unfit)

    def on(self, reference: Reference, what: str, folder: Path, mend: Callable[[], None]) -> Outcome:
        """In `folder`, whose root is what the trial is about, until `mend` has made it one like others."""
        return self._trial(reference, what, [{}], judge=unfit, folder=folder, mend=mend)

    def _trial(
        self,
        reference: Reference,
        what: str,
        hows: Sequence[dict[str, Any]],
        judge: Callable[[Ending], list[str]] | None = None,
        folder: Path | None = None,
        mend: Callable[[], None] | None = None,
    ) -> Outcome:
        """A command for each of `hows`, as long as they are stopped; then one without faults; then the comparison."""
        outcome, subject = Outcome(what), reference.subject
        with self._folder_of(outcome, folder) as (place, endings):
            for how in hows:
                if endings and endings[-1].exit_code == ExitCode.OK:
                    break
                arguments = self._continuing(subject, place, outcome) if endings else subject.arguments(place / "root")
                ending = self._server.run(arguments, place, **how)
                _note(ending, place, outcome, how.get("fault", NO_FAULT))
                outcome.losses += judge(ending) if judge else []
                endings.append(ending)
            if mend:
                mend()
            if ending.exit_code != ExitCode.OK:
                ending = self._server.run(self._continuing(subject, place, outcome), place)
                _note(ending, place, outcome, NO_FAULT)
                endings.append(ending)
            if ending.exit_code == ExitCode.OK:
                outcome.differences = differences(fingerprint(Path(ending.json["run"])), reference.fingerprint)
            else:
                outcome.losses.append(f"not carried on: {_told(ending)}")
        return outcome

    def _continuing(self, subject: Subject, folder: Path, outcome: Outcome) -> list[object]:
        """The command that carries on what a fault stopped; anew, where the run came to no spec."""
        root = folder / "root"
        run = max(root.glob("runs/*/spec.yaml"), key=lambda spec: spec.stat().st_mtime_ns, default=None)
        if run is None:
            return subject.arguments(root)
        outcome.resumed += 1
        return [subject.verb, "--resume", run.parent, "--json"]

    @contextmanager
    def _folder_of(self, outcome: Outcome, given: Path | None) -> Iterator[tuple[Path, list[Ending]]]:
        """A folder for a trial, and the list of endings, whose left-over processes are ended after it: workers whose
        main process was killed live on while the run is carried on."""
        folder, endings = given or self._new_folder(), list[Ending]()
        try:
            yield folder, endings
        finally:
            for ending in endings:
                self._server.bury(ending)
        if self._keep and not outcome.survived:
            outcome.ends.append(f"kept: {folder}")
        elif not given:
            shutil.rmtree(folder)

    def _new_folder(self) -> Path:
        self._number += 1
        folder = self._folder / f"{self._number:05d}"
        (folder / "root").mkdir(parents=True)
        return folder


def in_words(fault: Fault, calls: Sequence[Call] = ()) -> str:
    """calls: of the reference, which say what call it is."""
    call = f" ({' '.join(calls[fault.at - 1])})" if 0 < fault.at <= len(calls) else ""
    name = errno.errorcode.get(fault.value, str(fault.value))
    text = {
        COUNT: "carried on",
        KILL: f"killed before call {fault.at}",
        KILL_HALFWAY: f"killed halfway in call {fault.at}",
        FAIL_ONCE: f"{name} in call {fault.at}",
        FAIL_ON: f"{name} from call {fault.at} on",
        CLOCK_BACK: f"the clock {fault.value} s back from call {fault.at} on",
    }
    text |= {SIGNAL: f"{Signals(fault.value).name} at call {fault.at}"} if fault.mode == SIGNAL else {}
    return text[fault.mode] + call


def disorderly(number: int, until_s: float, ending: Ending) -> list[str]:
    """What a user must not see after a signal that came until_s: anything but an end in order, within seconds; a run
    that was about to end may end well."""
    if ending.exit_code == ExitCode.OK:
        return []
    if ending.exit_code != 128 + number:
        return [f"not in order: {_told(ending)}"]
    faults = ["a traceback"] if "Traceback" in ending.stderr else []
    faults += ["no message"] if Signals(number).name not in ending.json.get("error", "") else []
    return faults + ([f"only after {ending.seconds:.1f} s"] if ending.seconds > until_s + WITHIN_S else [])


def unfit(ending: Ending) -> list[str]:
    """What a user must not see of a failure: anything but success, or exit 5 with one message that says why."""
    if ending.exit_code not in (ExitCode.OK, ExitCode.RESOURCES):
        return [f"not survived: {_told(ending)}"]
    faults = ["a traceback"] if "Traceback" in ending.stderr else []
    if ending.exit_code == ExitCode.RESOURCES:
        messages = sum(" error: " in line for line in ending.stderr.splitlines())
        faults += [f"{messages} messages"] if messages != 1 else []
        faults += ["no message in JSON"] if not ending.json.get("error") else []
        faults += ["another exit code in JSON"] if ending.json.get("exit_code") != ending.exit_code else []
    return faults


def _note(ending: Ending, folder: Path, outcome: Outcome, fault: Fault) -> None:
    outcome.ends.append(str(ending))
    outcome.calls.append(len(ending.calls))
    outcome.seconds += ending.seconds
    outcome.kills += ending.killed + ending.workers_killed
    outcome.losses += _lost(ending, folder, fault)


def _lost(ending: Ending, folder: Path, fault: Fault) -> list[str]:
    """Checkpoints that were there before the fault and are not whole any more."""
    before = ending.calls[: fault.at - 1 if fault.at else -1]
    made = {folder / call.path for call in before if call.kind in ("rename", "link") and call.path.endswith(LINKS)}
    gone = [f"{link.parent.parent.name}: no `{link.name}` any more" for link in sorted(made) if not link.is_symlink()]
    return gone + [broken for run in (folder / "root").glob("runs/*") for broken in broken_checkpoints(run)]


def _told(ending: Ending) -> str:
    lines = ending.stderr.strip().splitlines()
    return f"{ending}: {ending.json.get('error') or (lines[-1] if lines else 'nothing said')}"
