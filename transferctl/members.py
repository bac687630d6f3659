"""One run among several of a larger undertaking: started or gone on with, quietly, in a folder of members.

It is an ordinary run, which `report`, `compare` and `eval` read; what it would say goes into its log alone.
"""

from __future__ import annotations

import re
import shutil
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from transferctl import checkpoint, extract, finetune, jsontext, lock, pretrain, resuming, runrows
from transferctl.device import release_memory
from transferctl.display import Display, Progress
from transferctl.errors import ExitCode, Problem, SpecError, ending
from transferctl.loaders import BrokenSamples
from transferctl.signals import ENDING
from transferctl.spec import Spec
from transferctl.training import GoesOn, to_the_end

VERBS = {"finetune": finetune.run, "extract": extract.run}
MADE_BEFORE_BEGINNING = {"summary.json", "metrics.jsonl", "lock", "log.txt"}

Say = Callable[[str], None]


@dataclass(frozen=True)
class Task:
    """A member to run. spec: its name is no other member's; folder: where members are; stage0: where runs of stage 0
    are looked for and made."""

    spec: Spec
    verb: str
    folder: Path
    stage0: Path


@dataclass(frozen=True)
class Outcome:
    """How a member's process ended. problems: of a spec, with their keys; trace: of a bug; is_of_images: samples cannot
    be read, whatever else the spec says."""

    code: ExitCode = ExitCode.OK
    message: str = ""
    problems: Sequence[Problem] = ()
    trace: str = ""
    is_of_images: bool = False


def run(task: Task, warn: Say, goes_on: GoesOn = to_the_end, bars: Display | None = None) -> dict[str, Any]:
    """Its summary: of a run that is made now, of one that was stopped and is gone on with, or of a finished one. Notes
    and tables go into its log; warn: told its warnings too; bars: where its progress is drawn, if on a terminal.

    Raises what the verb raises.
    """
    display = Quiet(warn, bars)
    if (begun := _begun(task)) is not None:
        file, resumed = resuming.load(begun, task.verb, None, [], [])
        if resumed.finished is not None:
            return dict(resumed.finished)
        return VERBS[task.verb](file.spec, task.folder, display, resumed, goes_on)
    return VERBS[task.verb](_with_stage_0(task, display), task.folder, display, None, goes_on)


def attempt(task: Task, warn: Say, goes_on: GoesOn = to_the_end, bars: Display | None = None) -> Outcome:
    """`run`, whose failure is an outcome. A signal passes."""
    try:
        run(task, warn, goes_on, bars)
        outcome = Outcome()
    except ENDING:
        raise
    except Exception as error:
        code, message = ending(error)
        trace = traceback.format_exc() if code == ExitCode.BUG else ""
        problems = error.problems if isinstance(error, SpecError) else ()
        outcome = Outcome(code, message, problems, trace, isinstance(error, BrokenSamples))
    for device in ("cpu", *(["cuda"] if torch.cuda.is_available() else [])):
        release_memory(torch.device(device))  # the next member's spec may be another network's
    return outcome


def folder_of(members: Path, verb: str, name: str) -> Path | None:
    """Of a member that has begun, the latest. What was killed before it had settings is removed: nothing is in it."""
    pattern = re.compile(rf"\d{{8}}-\d{{6}}-{verb}-{re.escape(name)}(-\d+)?")
    found = sorted(path for path in members.glob(f"*-{verb}-{name}*") if pattern.fullmatch(path.name))
    begun = []
    for path in found:
        if (path / "spec.yaml").is_file():
            begun.append(path)
        elif not lock.is_held(path) and {entry.name for entry in path.iterdir()} <= MADE_BEFORE_BEGINNING:
            shutil.rmtree(path, ignore_errors=True)
    return begun[-1] if begun else None


def _begun(task: Task) -> Path | None:
    """Its folder, if there is something in it to go on with. What its data stopped before it trained begins anew, as
    that data may have been mended since."""
    begun = folder_of(task.folder, task.verb, task.spec.name)
    if begun is None or summary_of(begun).get("exit_code") != ExitCode.DATA or checkpoint.any_of(begun):
        return begun
    shutil.rmtree(begun, ignore_errors=True)
    return None


def summary_of(path: Path) -> dict[str, Any]:
    """Of a member's folder, its status as it is: of one that was killed, interrupted."""
    try:
        summary = dict(jsontext.read(path / "summary.json"))
    except (OSError, ValueError, TypeError):
        return {"status": "interrupted"}  # killed while it began
    return summary | {"status": runrows.state_of(path, summary)}


def _with_stage_0(task: Task, display: Display) -> Spec:
    """Stage 0 is no member: made, or found, among the runs that the members' folder belongs to."""
    spec = task.spec
    if spec.backbone.weights != "source":
        return spec
    base = re.sub(r"-\d+$", "", spec.name)  # another member may have the same one
    with_weights = pretrain.ensure_source(spec.model_copy(update={"name": base}), task.stage0, display)
    return spec.model_copy(update={"backbone": with_weights.backbone})


class Quiet(Display):
    """Says nothing on the terminal. warn: told warnings; bars: shows progress, if it is on a terminal."""

    def __init__(self, warn: Say, bars: Display | None = None):
        super().__init__()
        self.terminal, self._quiet = False, True
        self._tell, self._bars = warn, bars

    def line(self, text: str, style: str = "", shown: bool = True) -> None:
        super().line(text, style, shown=False)

    def warn(self, text: str) -> None:
        super().warn(text)
        self._tell(text)

    @contextmanager
    def progress(self, what: str, total: int | None = None) -> Iterator[Progress]:
        if self._bars is None or not self._bars.terminal:
            yield Progress()
            return
        with self._bars.progress(what, total) as bar:
            yield bar
