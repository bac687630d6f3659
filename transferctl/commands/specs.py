"""init, schema."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from transferctl.commands.options import DebugOption, JsonOption
from transferctl.commands.running import run_verb, usage

if TYPE_CHECKING:
    from transferctl.display import Display

app = typer.Typer()


@app.command(epilog="Example: transferctl init photos --backbone resnet50")
def init(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="A folder of images: a folder for each class, or such folders in train, val and test; or a manifest.csv.", show_default=False)],  # noqa: E501
    out: Annotated[Path | None, typer.Option("--out", metavar="FILE", help="The spec to write; default: FOLDER's name, in the working folder.", show_default=False)] = None,  # noqa: E501
    backbone: Annotated[str | None, typer.Option("--backbone", metavar="NAME", help="The pretrained network, of torchvision, or timm/NAME; default: resnet18, or what the run of --weights has.", show_default=False)] = None,  # noqa: E501
    weights: Annotated[str, typer.Option("--weights", metavar="FILE", help="Its weights: a file, a run, a published name, or none.")] = "DEFAULT",  # noqa: E501
    force: Annotated[bool, typer.Option("--force", help="Write over a file that is there.")] = False,
    json: JsonOption = False, debug: DebugOption = False,
) -> None:  # fmt: skip
    """Write a spec for a folder of images, each choice with its reason, and say what comes next."""

    def load() -> None:
        for where, path in (("FOLDER", folder), ("--out", out)):
            if path is not None and (not str(path).strip() or "\0" in str(path)):
                raise usage(where, "must be a path")

    def write(_: None, display: Display) -> dict[str, Any]:
        from transferctl import init

        return init.run(folder, out, backbone, weights, force, display)

    run_verb(write, load, json, debug)


@app.command(epilog="Example: transferctl schema > transferctl.schema.json")
def schema() -> None:
    """Print the spec's JSON Schema, for editors."""
    import json

    from transferctl.spec import json_schema

    typer.echo(json.dumps(json_schema(), indent=2, ensure_ascii=False))
