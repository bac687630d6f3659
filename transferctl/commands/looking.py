"""runs and compare."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from transferctl.commands.options import RUNS, DebugOption, JsonOption, latest_of_each
from transferctl.commands.running import one_of, run_verb, usage

if TYPE_CHECKING:
    from transferctl.display import Display

app = typer.Typer()
WHERE = "Runs whose numbers satisfy this: 'accuracy>0.8', 'elapsed_s<60'; repeatable."


@app.command(epilog="Example: transferctl runs --verb finetune --where 'accuracy>0.8' --sort accuracy")
def runs(
    folder: Annotated[Path, typer.Argument(metavar="[DIR]", help="The folder of run folders.")] = RUNS,
    state: Annotated[str | None, typer.Option("--state", help="Runs in this state: running, finished, interrupted, failed, unreadable.")] = None,  # noqa: E501
    verb: Annotated[str | None, typer.Option("--verb", help="Runs of this verb: pretrain, extract, finetune, sweep, eval, rank, advise.")] = None,  # noqa: E501
    name: Annotated[str | None, typer.Option("--name", metavar="GLOB", help="Runs of this name, or whose folder is called so: 'ants-*'.")] = None,  # noqa: E501
    where: Annotated[list[str] | None, typer.Option("--where", metavar="CONDITION", help=WHERE)] = None,
    sort: Annotated[str, typer.Option("--sort", help="By age, name, accuracy, state or elapsed.")] = "age",
    limit: Annotated[int | None, typer.Option("--limit", min=0, help="At most so many rows, 0: all. Default: 50, with --json all.", show_default=False)] = None,  # noqa: E501
    json: JsonOption = False, debug: DebugOption = False,
) -> None:  # fmt: skip
    """The runs there are, the latest first: state, accuracy with its interval, change of the source's, age."""

    def load() -> None:
        from transferctl import runrows, runslist

        one_of("--sort", sort, [*runslist.SORTS])
        if state is not None:
            one_of("--state", state, [*runrows.STATES])
        if verb is not None:
            one_of("--verb", verb, [*runslist.VERBS])
        if not str(folder).strip() or "\0" in str(folder):
            raise usage("DIR", "must be a folder")

    def show(_: None, display: Display) -> dict[str, Any]:
        from transferctl import runslist

        wanted = runslist.Wanted(state, verb, name, where or [])
        return runslist.show(folder, wanted, sort, limit, display)

    run_verb(show, load, json, debug)


@app.command(epilog="Example: transferctl compare runs/20261124-015703-extract-ants runs/20261124-020512-finetune-ants")
def compare(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN…", help="Two run folders or more; the first is what the others are compared with.", callback=latest_of_each, show_default=False)],  # noqa: E501
    json: JsonOption = False, debug: DebugOption = False,
) -> None:  # fmt: skip
    """Set runs side by side: what differs between their specs, their scores, and whether that is more than chance."""

    def verb(_: None, display: Display) -> dict[str, Any]:
        from transferctl import compare

        return compare.run(runs, display)

    run_verb(verb, lambda: None, json, debug)
