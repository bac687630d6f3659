"""advise."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from transferctl.commands.options import RUNS, DebugOption, JsonOption, RunsDirOption, SetOption, SpecArgument
from transferctl.commands.running import load_spec, run_verb, usage

if TYPE_CHECKING:
    from transferctl.display import Display
    from transferctl.yamlfile import SpecFile

app = typer.Typer()


@app.command(epilog="Example: transferctl advise configs/ants-bees-finetune.yaml --budget 4m --out advised.yaml")
def advise(
    spec: SpecArgument,
    budget: Annotated[str, typer.Option("--budget", metavar="TIME", help="How long all of it may take: 90s, 10m, 2h.")] = "10m",  # noqa: E501
    out: Annotated[Path | None, typer.Option("--out", metavar="FILE", help="Also write the spec that is proposed here.", show_default=False)] = None,  # noqa: E501
    force: Annotated[bool, typer.Option("--force", help="Write over a file that is there.")] = False,
    set_: SetOption = None, runs_dir: RunsDirOption = RUNS, json: JsonOption = False, debug: DebugOption = False,
) -> None:  # fmt: skip
    """How to fine-tune: data, linear probe, learning curve and a few trials; then a spec with the evidence for it."""

    def load() -> SpecFile:
        from transferctl import budget as budgets

        budgets.parse(budget)
        if out is not None and "\0" in str(out):
            raise usage("--out", "must be a path")
        if force and out is None:
            raise usage("--force", "is about the FILE of --out, which is missing")
        return load_spec(spec, set_)

    def verb(file: SpecFile, display: Display) -> dict[str, Any]:
        from transferctl import advise
        from transferctl import budget as budgets
        from transferctl.speccomments import quoted

        words = ["--budget", budget.strip(), *(word for text in set_ or () for word in ("--set", text))]
        asked_by = f"transferctl advise {quoted(file.path)} {shlex.join(words)}"
        return advise.run(file.spec, budgets.parse(budget), out, force, runs_dir, display, asked_by=asked_by)

    run_verb(verb, load, json, debug)
