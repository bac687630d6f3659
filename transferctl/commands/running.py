"""How a command runs its verb: what it is given, and how every ending becomes one message and its exit code."""

from __future__ import annotations

import contextlib
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from transferctl import signals
from transferctl.commands.options import SEVERAL_RUNS, is_run
from transferctl.errors import ExitCode, Problem, SpecError, Terminated, TransferctlError, ending

if TYPE_CHECKING:
    from transferctl.display import Display
    from transferctl.resuming import Resumed
    from transferctl.yamlfile import SpecFile

TrainingVerb = Callable[["SpecFile", Path, "Display", "Resumed | None"], dict[str, Any]]


def train(
    name: str, verb: TrainingVerb, spec: Path | None, overrides: list[str], runs_dir: Path, resume: Path | None,
    allowed: list[str] | None, json: bool, debug: bool,
) -> None:  # fmt: skip
    """A verb that trains: from its spec, or going on with a run, in whose folder's folder other runs are looked for."""
    resumed: Resumed | None = None

    def load() -> SpecFile:
        nonlocal resumed
        if resume is None and spec is None:
            raise usage("", f"name the SPEC, or a run to go on with by --resume RUN; see transferctl {name} --help")
        if resume is None and allowed:
            raise usage("--allow", "is for --resume RUN, and names what may differ from that run")
        if resume is not None and spec is not None and is_run(spec):
            raise usage(str(spec), f"is a run, not a spec; {SEVERAL_RUNS}")
        if resume is None:
            assert spec is not None
            return load_spec(spec, overrides)
        from transferctl import resuming

        file, resumed = resuming.load(resume, name, spec, overrides, allowed or [])
        return file

    def go_on(file: SpecFile, display: Display) -> dict[str, Any]:
        from transferctl import tracking

        tracking.refuse_missing(file.spec)
        if resumed is None:
            return verb(file, runs_dir, display, None)
        if resumed.finished is not None:
            display.note(f"{resumed.run} is finished; there is nothing to go on with")
            display.result(str(resumed.run))
            return dict(resumed.finished)
        return verb(file, resumed.run.parent, display, resumed)

    run_verb(go_on, load, json, debug)


def usage(where: str, message: str) -> SpecError:
    return SpecError([Problem("", message, where)])


def load_spec(spec: Path, overrides: list[str] | None) -> SpecFile:
    from transferctl import yamlfile

    return yamlfile.load(spec, overrides or [])


def verifying(overrides: list[str] | None, asked: bool) -> list[str]:
    return [*(overrides or []), *(["cache.verify=true"] if asked else [])]


def one_of(flag: str, value: str, choices: list[str]) -> None:
    if value not in choices:
        raise usage(f"{flag} {value}", f"must be one of {', '.join(choices)}")


def run_verb(
    verb: Callable[[Any, Display], dict[str, Any]], load: Callable[[], SpecFile | None], as_json: bool, debug: bool
) -> None:
    """Run a verb on what was loaded; turn every ending into one message and its exit code."""
    from transferctl.display import Display

    display = Display(as_json)
    with signals.handled():
        _handled(verb, load, display, debug)


def _handled(
    verb: Callable[[Any, Display], dict[str, Any]], load: Callable[[], SpecFile | None], display: Display, debug: bool
) -> None:
    if hasattr(signal, "SIGPIPE"):
        signal.signal(signal.SIGPIPE, signal.SIG_IGN)  # a verb hears of a closed pipe, saves and says so
    file: SpecFile | None = None
    numbers: dict[str, Any] = {}
    try:
        file = load()
        display.json({"status": "finished", "exit_code": int(ExitCode.OK)} | verb(file, display))
        return
    except (Exception, KeyboardInterrupt, Terminated) as error:
        if isinstance(error, SpecError) and file:
            error = file.locate(error)
        code, message = ending(error)
        numbers = getattr(error, "summary", {})
        if debug:
            traceback.print_exc()
    fail(display, code, message, numbers)


def fail(display: Display, code: ExitCode, message: str, numbers: dict[str, Any] | None = None) -> NoReturn:
    message = message.encode("utf-8", "backslashreplace").decode()  # names on disk may be no text
    with contextlib.suppress(TransferctlError):  # stderr takes no more
        display.error(message)
    with contextlib.suppress(TransferctlError):  # stdout takes no more; told above
        status = "interrupted" if code in (ExitCode.INTERRUPTED, ExitCode.TERMINATED) else "failed"
        display.json({"status": status} | (numbers or {}) | {"exit_code": int(code), "error": message})
    sys.exit(int(code))
