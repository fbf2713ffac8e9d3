"""`upge schema`: what editors complete, explain and check recipes by."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from upge.cli.app import app

Output = Annotated[Path | None, typer.Option("--output", "-o", metavar="FILE", help="Write it to this file.")]


@app.command()
def schema(output: Output = None) -> None:
    """Print the JSON Schema of recipes, with every installed part: for completion and checks in editors."""
    from upge.describe.json_schema import recipe_schema
    from upge.errors import InputError

    made, faults = recipe_schema()
    text = json.dumps(made, ensure_ascii=False, indent=1) + "\n"
    try:
        typer.echo(text, nl=False) if output is None else output.write_text(text, encoding="utf-8")
    except OSError as error:
        raise InputError(f"--output: can't write '{output}': {error.strerror}") from error
    for fault in faults:
        typer.echo(f"left out: {fault}", err=True)
    name = "upge.schema.json" if output is None else output
    typer.echo(f"name it in a recipe's first line for editors: # yaml-language-server: $schema={name}", err=True)
