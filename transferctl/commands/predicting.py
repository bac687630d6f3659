"""predict."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from transferctl.commands.options import (
    CHECKPOINTS,
    HEADS,
    SEVERAL_RUNS,
    DebugOption,
    JsonOption,
    RunArgument,
    SetOption,
    is_run,
)
from transferctl.commands.running import one_of, run_verb, usage

if TYPE_CHECKING:
    from transferctl.display import Display
    from transferctl.yamlfile import SpecFile

app = typer.Typer()
FORMATS = ["csv", "jsonl", "table"]


@app.command(epilog="Example: transferctl predict runs/20261124-015703-extract-ants-bees photos --out photos.csv")
def predict(
    run: RunArgument,
    paths: Annotated[list[str], typer.Argument(metavar="PATH…", help="Images, folders (all images below), patterns in quotes ('photos/**/*.jpg'), or - for a list of paths on stdin, one a line.", show_default=False)],  # noqa: E501
    out: Annotated[str | None, typer.Option("--out", metavar="FILE", help="A .csv or .jsonl file; default: stdout.", show_default=False)] = None,  # noqa: E501
    format_: Annotated[str | None, typer.Option("--format", help="csv, jsonl or table; default: as FILE ends; on stdout a table for a terminal, else csv.", show_default=False, autocompletion=lambda: FORMATS)] = None,  # noqa: E501
    top: Annotated[int, typer.Option("--top", metavar="K", min=1, help="The K likeliest classes of each image.")] = 1,
    probabilities: Annotated[bool, typer.Option("--probabilities", help="The probability of every class too.")] = False,
    checkpoint: Annotated[str, typer.Option("--checkpoint", help="best or last.", autocompletion=lambda: CHECKPOINTS)] = "best",  # noqa: E501
    head: Annotated[str | None, typer.Option("--head", help="target or source; default: target where there is one.", show_default=False, autocompletion=lambda: HEADS)] = None,  # noqa: E501
    null: Annotated[bool, typer.Option("-0", "--null", help="The paths on stdin end with a NUL each (find -print0).")] = False,  # noqa: E501
    skip_bad: Annotated[bool, typer.Option("--skip-bad", help="Exit 0 where files cannot be read; they are named all the same.")] = False,  # noqa: E501
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the FILE that was begun.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Begin FILE anew where it exists.")] = False,
    set_: SetOption = None, json: JsonOption = False, debug: DebugOption = False,
) -> None:  # fmt: skip
    """Predict the classes of images: a row each, in order, with calibrated probabilities."""

    def verb(file: SpecFile, display: Display) -> dict[str, Any]:
        from transferctl import predict
        from transferctl.predictionfiles import PredictionFile
        from transferctl.predictionpaths import Paths

        target = None if out is None else PredictionFile(Path(out), resume=resume, overwrite=overwrite)
        asked = predict.Asked(
            target, _format(out, format_), top=top, probabilities=probabilities, which=checkpoint, head=head,
            skip_bad=skip_bad,
        )  # fmt: skip
        return predict.run(file.spec, run, Paths(paths, null), display, asked)

    def load() -> SpecFile:
        _judge_paths(paths, null)
        one_of("--checkpoint", checkpoint, CHECKPOINTS)
        if head is not None:
            one_of("--head", head, HEADS)
        if out is None and (resume or overwrite):
            raise usage("--resume" if resume else "--overwrite", "is about the FILE of --out, which is missing")
        if resume and overwrite:
            raise usage("--resume", "goes on with FILE, and --overwrite begins it anew: choose one")
        if json and out is None:
            raise usage("--json", "has its object on stdout; name the file for the rows with --out FILE")
        if probabilities and _format(out, format_) == "table":
            raise usage("--probabilities", "is for csv and jsonl; a table has no room")
        from transferctl import evaluate, predict

        return evaluate.load_spec(run, set_ or [], "predict", predict.OVERRIDABLE)

    run_verb(verb, load, json, debug)


def _judge_paths(paths: list[str], null: bool) -> None:
    from transferctl import runs

    for path in paths:
        if is_run(Path(path)) and runs.verb_of(Path(path)) is not None:  # images may lie beside a summary of others
            raise usage(path, f"is a run, not images; {SEVERAL_RUNS}")
    if "" in paths:
        raise usage("PATH", "is empty; perhaps a variable is not set")
    if paths.count("-") > 1:
        raise usage("-", "is stdin, which can be read once")
    if null and "-" not in paths:
        raise usage("--null", "is about the list on stdin; add the PATH -")


def _format(out: str | None, asked: str | None) -> str:
    if asked is not None:
        one_of("--format", asked, FORMATS)
        return asked
    if out is None:
        return "table" if sys.stdout.isatty() else "csv"
    endings = {".csv": "csv", ".jsonl": "jsonl", ".ndjson": "jsonl"}
    ending = Path(out).suffix.lower()
    if ending not in endings:
        raise usage(f"--out {out}", f"its ending is none of {', '.join(endings)}; end it so, or add --format")
    return endings[ending]
