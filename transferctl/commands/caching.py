"""cache list, verify and clear."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from transferctl.commands.options import DebugOption, JsonOption
from transferctl.commands.running import run_verb

if TYPE_CHECKING:
    pass

app = typer.Typer(
    help="What frozen parts computed, kept for later runs: list, verify and clear it.", no_args_is_help=True
)
CacheOption = Annotated[
    Path | None,
    typer.Option("--path", metavar="DIR", help="The cache's folder, where a spec names one.", show_default=False),
]


@app.command("list", epilog="Example: transferctl cache list")
def list_cache(path: CacheOption = None, json: JsonOption = False, debug: DebugOption = False) -> None:
    """What is kept: title, rows, size, when it was used last, key."""
    from transferctl import cachecommands

    run_verb(lambda _, display: cachecommands.show(path, display), lambda: None, json, debug)


@app.command("verify", epilog="Example: transferctl cache verify")
def verify_cache(path: CacheOption = None, json: JsonOption = False, debug: DebugOption = False) -> None:
    """Compare every shard with its checksum; damaged ones are removed. Exits 4 if there were any."""
    from transferctl import cachecommands

    run_verb(lambda _, display: cachecommands.verify(path, display), lambda: None, json, debug)


@app.command("clear", epilog="Example: transferctl cache clear --older-than 30d")
def clear_cache(
    key: Annotated[str, typer.Argument(metavar="[KEY]", help="The first characters of a key; default: all.", show_default=False)] = "",  # noqa: E501
    older_than: Annotated[str | None, typer.Option("--older-than", metavar="AGE", help="What was not used for 30d, 12h.")] = None,  # noqa: E501
    path: CacheOption = None, json: JsonOption = False, debug: DebugOption = False,
) -> None:  # fmt: skip
    """Remove entries, all or some. What a run uses now stays, and is said."""
    from transferctl import cachecommands

    run_verb(lambda _, display: cachecommands.clear(path, key, older_than, display), lambda: None, json, debug)
