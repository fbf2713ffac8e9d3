"""Arguments that several verbs share."""

from __future__ import annotations

from typing import Annotated

import typer

RecipePath = Annotated[str, typer.Argument(metavar="RECIPE", help="A recipe file, or the name of one that ships.")]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Overrides: dotted.path=YAML value.")
]
AllowCode = Annotated[bool, typer.Option("--allow-code", help="Let the recipe name classes in Python files.")]
