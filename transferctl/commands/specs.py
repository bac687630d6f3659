"""schema."""

from __future__ import annotations

import typer

app = typer.Typer()


@app.command(epilog="Example: transferctl schema > transferctl.schema.json")
def schema() -> None:
    """Print the spec's JSON Schema, for editors."""
    import json

    from transferctl.spec import json_schema

    typer.echo(json.dumps(json_schema(), indent=2, ensure_ascii=False))
