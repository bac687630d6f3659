"""Trackers hear of a run, each in a process of its own, which is all that they can break: what hangs there, prints,
crashes, starts threads or heeds signals does so there. One that fails is said once, and off for the rest of the run.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from transferctl import jsontext, plugins, trackerpipe
from transferctl.display import Display
from transferctl.errors import Problem, SpecError
from transferctl.trackerpipe import TrackerProcess

if TYPE_CHECKING:
    from transferctl.runs import Run
    from transferctl.spec import Spec

TOLD_TEXT = 500  # characters of a text in the summary


@dataclass(frozen=True)
class Tracked:
    """The run as a tracker sees it. folder: RUN/NAME, the tracker's own; parameters: the spec's, by dotted name; id:
    that the tracker gave the run, where an earlier process of the run told it to the same one."""

    path: Path
    folder: Path
    verb: str
    parameters: Mapping[str, Any]
    id: str | None


@dataclass(frozen=True)
class Ending:
    """status: finished, interrupted (also where the process was killed) or failed; summary: numbers and texts by dotted
    name; step: the last one."""

    status: str
    exit_code: int
    summary: Mapping[str, Any]
    step: int


class Tracker(Protocol):
    """What `start(settings, run: Tracked)` of a file in transferctl/trackers gives; LIBRARY there names what it
    imports. It may raise whatever it likes. id: to go on with the same run later; where: for people, how to see it."""

    id: str
    where: str

    def log(self, values: Mapping[str, float], step: int) -> None:
        """values: by split/name, such as val/accuracy."""

    def end(self, ending: Ending) -> None: ...


@dataclass(frozen=True)
class Trackers:
    """Those that hear of a run. settings: of each tracker, by its name; parameters: as trackers get them."""

    settings: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    parameters: Mapping[str, Any] = field(default_factory=dict)


def chosen_by(spec: Spec) -> Trackers:
    values = spec.model_dump(mode="json", by_alias=True, exclude_none=True)
    del values["trackers"]
    return Trackers(
        {name: settings.model_dump(mode="json") for name, settings in spec.trackers.chosen().items()}, flat(values)
    )


def refuse_missing(spec: Spec) -> None:
    """Raises SpecError for trackers whose library is not installed."""
    problems = []
    for name in spec.trackers.chosen():
        library = plugins.load("trackers", name).LIBRARY
        found = find_spec(library)
        if found is None or found.origin is None:  # a folder of that name in the working folder is no library
            message = f"needs the library {library}, which is not installed: pip install 'transferctl[{name}]'"
            problems.append(Problem(f"trackers.{name}", message))
    if problems:
        raise SpecError(problems)


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Scalars by dotted name; lists of scalars as JSON; other lists (a confusion matrix) are left out."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            found |= flat(value, f"{name}.")
        elif isinstance(value, str):
            found[name] = value[:TOLD_TEXT]
        elif isinstance(value, bool | int | float) or value is None:
            found[name] = value
        elif isinstance(value, list | tuple) and not any(isinstance(one, Mapping | list | tuple) for one in value):
            found[name] = jsontext.dumps(value)[:TOLD_TEXT]
    return found


@contextmanager
def telling(asked: Trackers, run: Run, display: Display) -> Iterator[Sequence[TrackerProcess]]:
    """The trackers of a run. For a resumed one they begin with its first metrics: it may yet be refused, and then stays
    as it was."""
    trackers = [
        TrackerProcess(name, settings, asked.parameters, run, display) for name, settings in asked.settings.items()
    ]
    try:
        if not run.is_resumed:
            for tracker in trackers:
                tracker.begin()
        yield trackers
    finally:
        if run.is_settled:
            for tracker in trackers:
                tracker.end(flat(run.summary))
        trackerpipe.close(trackers)
