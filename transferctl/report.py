"""One HTML file that shows a run, or several side by side: made at the end of each run, and by hand."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transferctl import runs, signals
from transferctl.errors import CheckpointError, Problem, SpecError, TransferctlError, from_os_error
from transferctl.wording import one_line, printable

if TYPE_CHECKING:
    from transferctl.display import Display
    from transferctl.spec import Spec

FILE = "report.html"
VARIABLE = "TRANSFERCTL_REPORT"  # none: no report at the end of runs, whatever specs say
HEAD_BYTES = 4096  # of a file, within which a report says that it is one


def run(paths: Sequence[Path], out: Path | None, display: Display) -> dict[str, Any]:
    """Of one run into its folder, of several into the working folder, or to `out`.

    Raises CheckpointError for what is no run folder, SpecError where a file stands there that is no report,
    ResourceError where it cannot be written.
    """
    for path in paths:
        _refuse_what_is_no_run(path)
    file = out or (paths[0] / FILE if len(paths) == 1 else Path(FILE))
    _refuse_to_replace(file)
    text, missing = _made(paths)
    for part, reason in missing.items():
        display.note(f"not in the report: {part}: {reason}")
    _write(file, text, "--out")
    display.result(str(file))
    answer: dict[str, Any] = {"report": str(file), "bytes": len(text.encode()), "runs": [str(path) for path in paths]}
    return answer | {"missing": missing}


def at_end(path: Path, spec: Spec, display: Display) -> None:
    """The report of a run that has just ended, unless its spec or the environment has none. A run is finished without
    it: what goes wrong is said, and how to make it later; a signal passes."""
    if not spec.report or os.environ.get(VARIABLE) == "none":
        return
    later = f"make it by `transferctl report {printable(str(path))}`"
    try:
        text, _ = _made([path])
        _refuse_to_replace(path / FILE)
        _write(path / FILE, text)
        display.note(f"report: {path / FILE}")
    except signals.ENDING:
        with contextlib.suppress(TransferctlError):  # stderr may take no more
            display.warn(f"the run is finished, its report is not; {later}")
        raise
    except Exception as error:
        with contextlib.suppress(TransferctlError):
            display.warn(f"the run is finished, but its report could not be made: {one_line(error)}; {later}")


def _made(paths: Sequence[Path]) -> tuple[str, dict[str, str]]:
    """The HTML, and what is not in it, with the reason. What draws is imported late: training does not wait for it."""
    from transferctl.reporting import comparison, page
    from transferctl.reporting.gather import gather

    records = [gather(path) for path in paths]
    found = comparison.of(records) if len(records) > 1 else page.of(records[0])
    return found.html, dict(found.missing)


def _refuse_what_is_no_run(path: Path) -> None:
    try:
        is_run = path.is_dir() and any((path / name).exists() for name in ("summary.json", "spec.yaml"))
    except OSError as error:  # a name that is too long, a folder that may not be entered
        raise CheckpointError(f"{path}: cannot be looked for: {error.strerror}; name a run folder") from None
    if not is_run:
        what = "is no run folder (it has neither summary.json nor spec.yaml)" if path.is_dir() else "no such run folder"
        raise CheckpointError(f"{path}: {what}; `transferctl runs` shows them")
    runs.refuse_without_model(path)


def _refuse_to_replace(file: Path) -> None:
    """A file that is there is replaced if it is a report of ours, and nothing else is: no link, no folder."""
    from transferctl.reporting.html import GENERATOR

    if not os.path.lexists(file):
        return
    is_ours = False
    with contextlib.suppress(OSError):
        if file.is_file() and not file.is_symlink():
            with file.open("rb") as opened:
                is_ours = f'name="generator" content="{GENERATOR}'.encode() in opened.read(HEAD_BYTES)
    if not is_ours:
        message = "is there already and is no report of transferctl, so it is not replaced; move it, or name another"
        raise SpecError([Problem("", f"{message} file with --out", printable(str(file)))])


def _write(file: Path, text: str, flag: str = "--runs-dir") -> None:
    """flag: what names another place."""
    try:
        runs.write_atomically(file, text)
    except OSError as error:
        raise from_os_error(error, file, flag) from None
