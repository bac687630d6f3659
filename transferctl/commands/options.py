"""Arguments and options that several commands have."""

from __future__ import annotations

import contextlib
import glob
import os
from pathlib import Path
from typing import Annotated

import typer

from transferctl.display import Display


def _folder(written: str | Path) -> Path:
    """Path("") would be the working folder; it is most often a shell's variable that is not set."""
    if not str(written).strip() or "\0" in str(written):
        raise typer.BadParameter(f"must be a folder, not {str(written)!r}")
    return Path(written)


def latest(run: Path | None) -> Path | None:
    """A pattern ('runs/*-extract-photos') is the latest run folder that matches, by name; what matches nothing stays as
    it is, for the error that names it."""
    if run is None or not set("*?[") & set(str(run)) or os.path.lexists(run):
        return run
    with contextlib.suppress(OSError, ValueError):
        found = [Path(path) for path in glob.glob(str(run.expanduser())) if is_run(Path(path))]  # noqa: PTH207 (absolute ones too)
        if found:
            chosen = max(found, key=lambda path: path.name)
            which = f", the latest of {len(found)} that match" if len(found) > 1 else ""
            Display().note(f"{run}: {chosen}{which}")
            return chosen
    return run


def latest_of_each(runs: list[Path]) -> list[Path]:
    return [latest(run) or run for run in runs]


def is_run(path: Path) -> bool:
    return os.path.lexists(path / "summary.json")  # which never raises, whatever the name


SpecArgument = Annotated[Path, typer.Argument(metavar="SPEC", help="The YAML file.", show_default=False)]
OptionalSpec = Annotated[
    Path | None,
    typer.Argument(metavar="[SPEC]", help="The YAML file; with --resume the run's own.", show_default=False),
]
PATTERN = "a pattern in quotes is the latest that matches"
RunArgument = Annotated[
    Path, typer.Argument(metavar="RUN", help=f"A run folder; {PATTERN}.", callback=latest, show_default=False)
]
FromOption = Annotated[
    Path | None, typer.Option("--from", metavar="RUN", help="Start from this run's best model.", callback=latest)
]
SetOption = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override a setting; repeatable.")
]
RunsDirOption = Annotated[Path, typer.Option("--runs-dir", metavar="DIR", parser=_folder, help="Where run folders go.")]
OutOption = Annotated[
    Path | None,
    typer.Option("--out", metavar="DIR", parser=_folder, help="Where to; default: RUN/export.", show_default=False),
]
ResumeOption = Annotated[
    Path | None,
    typer.Option(
        "--resume", metavar="RUN", help="Go on with a run that was stopped.", callback=latest, show_default=False
    ),
]
AllowOption = Annotated[
    list[str] | None,
    typer.Option("--allow", metavar="KEY", help="With --resume: a setting, data or weights that may differ."),
]
VerifyOption = Annotated[
    bool, typer.Option("--verify", help="Read every file to see whether it changed since it was cached.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="One JSON object on stdout, all else on stderr.")]
DebugOption = Annotated[bool, typer.Option("--debug", help="Show tracebacks.")]
RUNS = Path("runs")
SEVERAL_RUNS = "the pattern matched several runs; put it in quotes for the latest, or name one"
SPLITS = ["train", "val", "test"]
CHECKPOINTS = ["best", "last"]
HEADS = ["target", "source"]
