"""rank."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from transferctl.commands.options import RUNS, DebugOption, JsonOption, RunsDirOption, SetOption, SpecArgument
from transferctl.commands.running import load_spec, run_verb

if TYPE_CHECKING:
    from transferctl.display import Display
    from transferctl.yamlfile import SpecFile

app = typer.Typer()
BACKBONES = (
    "Rank this, and not what the spec names: an architecture, NAME:WEIGHTS (a published name, a file, none), a weights "
    "file, a run folder, or a pattern of files or runs in quotes; repeatable."
)
EXAMPLE = "transferctl rank configs/ants-bees-extract.yaml --backbone resnet18:none --backbone 'runs/*-pretrain-*'"


@app.command(epilog=f"Example: {EXAMPLE}")
def rank(
    spec: SpecArgument,
    backbone: Annotated[list[str] | None, typer.Option("--backbone", metavar="NAME[:WEIGHTS]", help=BACKBONES)] = None,
    set_: SetOption = None, runs_dir: RunsDirOption = RUNS, json: JsonOption = False, debug: DebugOption = False,
) -> None:  # fmt: skip
    """Which backbone: accuracy of a linear probe and k-NN, transferability scores and costs on the training data."""

    def verb(file: SpecFile, display: Display) -> dict[str, Any]:
        from transferctl import rank

        return rank.run(file.spec, backbone or [], runs_dir, display)

    run_verb(verb, lambda: load_spec(spec, set_), json, debug)
