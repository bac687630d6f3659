"""export."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from transferctl import plugins
from transferctl.commands.options import CHECKPOINTS, HEADS, DebugOption, JsonOption, OutOption, RunArgument
from transferctl.commands.running import one_of, run_verb

if TYPE_CHECKING:
    from transferctl.display import Display
    from transferctl.yamlfile import SpecFile

app = typer.Typer()
FORMATS = plugins.names("exporters")


@app.command(epilog="Example: transferctl export runs/20261124-015703-finetune-ants-bees --format onnx")
def export(
    run: RunArgument,
    format_: Annotated[list[str] | None, typer.Option("--format", metavar="FORMAT", help=f"{', '.join(FORMATS)}; repeatable; default: all that can be made here.", autocompletion=lambda: FORMATS)] = None,  # noqa: E501
    out: OutOption = None,
    checkpoint: Annotated[str, typer.Option("--checkpoint", help="best or last.", autocompletion=lambda: CHECKPOINTS)] = "best",  # noqa: E501
    head: Annotated[str | None, typer.Option("--head", help="target or source; default: target, where there is one.", autocompletion=lambda: HEADS)] = None,  # noqa: E501
    images: Annotated[Path | None, typer.Option("--images", metavar="PATH", help="A folder of images to check parity on; default: the run's validation images.", show_default=False)] = None,  # noqa: E501
    json: JsonOption = False, debug: DebugOption = False,
) -> None:  # fmt: skip
    """Write a run's model as files that need no transferctl, checked against it, each with a script that uses it."""

    def verb(file: SpecFile, display: Display) -> dict[str, Any]:
        from transferctl import export

        return export.run(
            file.spec, run, display, formats=format_ or [], out=out, which=checkpoint, head=head, images=images
        )

    def load() -> SpecFile:
        one_of("--checkpoint", checkpoint, CHECKPOINTS)
        for name in format_ or []:
            one_of("--format", name, FORMATS)
        if head is not None:
            one_of("--head", head, HEADS)
        from transferctl import evaluate

        return evaluate.load_spec(run, [])

    run_verb(verb, load, json, debug)
