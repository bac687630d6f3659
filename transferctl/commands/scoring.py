"""eval."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from transferctl.commands.options import (
    CHECKPOINTS,
    RUNS,
    SPLITS,
    DebugOption,
    JsonOption,
    RunArgument,
    RunsDirOption,
    SetOption,
    VerifyOption,
    latest,
)
from transferctl.commands.running import one_of, run_verb, verifying

if TYPE_CHECKING:
    from transferctl.display import Display
    from transferctl.yamlfile import SpecFile

app = typer.Typer()


@app.command("eval", epilog="Example: transferctl eval runs/20261124-015703-extract-ants-bees --fail-if 'accuracy<0.9'")
def evaluate(
    run: RunArgument,
    data: Annotated[str | None, typer.Option("--data", metavar="PATH", help="A folder or manifest to score on instead.")] = None,  # noqa: E501
    split: Annotated[str | None, typer.Option("--split", help="train, val (the default) or test of the run's own data; with --data, the rows of this split.", autocompletion=lambda: SPLITS)] = None,  # noqa: E501
    source: Annotated[bool, typer.Option("--source", help="Score the source head instead, before and after fine-tuning: what was forgotten.")] = False,  # noqa: E501
    interpolate: Annotated[str | None, typer.Option("--interpolate", metavar="ALPHAS", help="Score (1 − α)·start + α·best for these α: 0:1:0.1 (start:stop:step), 0.5, or 0,0.3,1. One α alone makes the run folder a model.")] = None,  # noqa: E501
    checkpoint: Annotated[str, typer.Option("--checkpoint", help="best or last.", autocompletion=lambda: CHECKPOINTS)] = "best",  # noqa: E501
    against: Annotated[Path | None, typer.Option("--against", metavar="RUN", help="Score this run's best model on the same samples: the difference with its interval, McNemar's test.", callback=latest, show_default=False)] = None,  # noqa: E501
    top_k: Annotated[list[int] | None, typer.Option("--top-k", metavar="K", min=2, help="Also top-K accuracy (top-5 comes by itself); repeatable.", show_default=False)] = None,  # noqa: E501
    fail_if: Annotated[
        list[str] | None, typer.Option("--fail-if", metavar="CONDITION", help="Exit 8 if it holds: 'accuracy<0.9'; repeatable.")  # noqa: E501
    ] = None,
    set_: SetOption = None, runs_dir: RunsDirOption = RUNS, verify: VerifyOption = False, json: JsonOption = False,
    debug: DebugOption = False,
) -> None:  # fmt: skip
    """Score a run's model: loss, accuracy with its interval, per class, confusion matrix."""

    def verb(file: SpecFile, display: Display) -> dict[str, Any]:
        from transferctl import conditions, evaluate, interpolation

        gates = [conditions.parse(text) for text in fail_if or []]
        if interpolate is not None:
            return interpolation.run(
                file.spec, run, runs_dir, display, points=interpolation.alphas(interpolate), split=split,
                data_path=data, conditions=gates,
            )  # fmt: skip
        other = (against, evaluate.load_spec(against, evaluate.of_any_run(set_ or [])).spec) if against else None
        return evaluate.run(
            file.spec, run, runs_dir, display, which=checkpoint, split=split, data_path=data, source=source,
            conditions=gates, top=top_k or [], against=other,
        )  # fmt: skip

    def load() -> SpecFile:
        if split is not None and data is None:  # a manifest's split column may hold any name
            one_of("--split", split, SPLITS)
        one_of("--checkpoint", checkpoint, CHECKPOINTS)
        from transferctl import conditions, evaluate, interpolation

        gates = [conditions.parse(text) for text in fail_if or []]
        if interpolate is not None:
            points = interpolation.alphas(interpolate)
            beside = {"--source": source, "--against": against, "--top-k": top_k}
            interpolation.refuse_beside(points, gates, [name for name, given in beside.items() if given], checkpoint)
        return evaluate.load_spec(run, verifying(set_, verify))

    run_verb(verb, load, json, debug)
