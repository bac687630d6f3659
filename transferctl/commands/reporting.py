"""report."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from transferctl.commands.options import PATTERN, DebugOption, JsonOption, latest_of_each
from transferctl.commands.running import run_verb

if TYPE_CHECKING:
    from transferctl.display import Display
    from transferctl.yamlfile import SpecFile

app = typer.Typer()


@app.command(epilog="Example: transferctl report runs/20261124-015703-extract-ants-bees")
def report(
    runs: Annotated[
        list[Path], typer.Argument(metavar="RUN…", help=f"Run folders; several are shown side by side; {PATTERN}.", callback=latest_of_each, show_default=False)  # noqa: E501
    ],
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FILE", help="Where the page goes; default: RUN/report.html, of several runs report.html.", show_default=False)  # noqa: E501
    ] = None,
    json: JsonOption = False, debug: DebugOption = False,
) -> None:  # fmt: skip
    """Show a run, or several side by side, in one HTML file that needs no network."""

    def verb(_: SpecFile | None, display: Display) -> dict[str, Any]:
        from transferctl import report

        return report.run(runs, out, display)

    run_verb(verb, lambda: None, json, debug)
