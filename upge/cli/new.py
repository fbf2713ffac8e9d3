"""`upge new`: the start of a recipe, or of a package with a part."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from upge.cli.app import app
from upge.cli.arguments import AllowCode

new = typer.Typer(no_args_is_help=True, help="Write the start of a recipe, or of a package with a part.")
app.add_typer(new, name="new")

Folder = Annotated[Path, typer.Option(exists=True, file_okay=False, help="The folder to write it to.")]


@new.command()
def recipe(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The recipe's name; the file is NAME.yaml.")],
    like: Annotated[str, typer.Option(metavar="RECIPE", help="The recipe to copy: a file, or an installed one.")],
    folder: Folder = Path(),
    allow_code: AllowCode = False,
) -> None:
    """Write a copy of a recipe, with its estimator written out, to change and run."""
    from upge.describe.scaffold import new_recipe

    typer.echo(new_recipe(name, like, folder, allow_code=allow_code))


@new.command()
def plugin(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The package's name, for example upge-soft-clip.")],
    slot: Annotated[str, typer.Option(metavar="SLOT", help="mask, denominator, advantage, switch, reduction, …")],
    part: Annotated[str | None, typer.Option(metavar="PART", help="The part's name in recipes: soft_clip.")] = None,
    folder: Folder = Path(),
) -> None:
    """Write a package with a part, a recipe that uses it, and tests that pass: install it, and change it."""
    from upge.describe.scaffold import new_plugin

    for path in new_plugin(name, slot, part, folder):
        typer.echo(path)
    where = folder / name
    typer.echo(f"\nnext: pip install -e '{where}[test]' && pytest {where}", err=True)
