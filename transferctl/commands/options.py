"""Arguments and options that several commands have."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def _folder(written: str | Path) -> Path:
    """Path("") would be the working folder; it is most often a shell's variable that is not set."""
    if not str(written).strip() or "\0" in str(written):
        raise typer.BadParameter(f"must be a folder, not {str(written)!r}")
    return Path(written)


SpecArgument = Annotated[Path, typer.Argument(metavar="SPEC", help="The YAML file.", show_default=False)]
OptionalSpec = Annotated[
    Path | None,
    typer.Argument(metavar="[SPEC]", help="The YAML file; with --resume the run's own.", show_default=False),
]
RunArgument = Annotated[Path, typer.Argument(metavar="RUN", help="A run folder.", show_default=False)]
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
    typer.Option("--resume", metavar="RUN", help="Go on with a run that was stopped.", show_default=False),
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
SPLITS = ["train", "val", "test"]
CHECKPOINTS = ["best", "last"]
HEADS = ["target", "source"]
