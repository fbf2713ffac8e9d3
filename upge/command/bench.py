"""`upge bench`: measurements that anyone can repeat, as ratios of what was timed in one run."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated

import typer

from upge.command import app

if TYPE_CHECKING:
    from upge.bench.measuring import Table

bench = typer.Typer(no_args_is_help=True, help="Measure: ratios of what was timed in one run, in turns, with spread.")
app.add_typer(bench, name="bench")

Repeats = Annotated[int, typer.Option(min=1, help="Measured rounds; the medians are shown.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the numbers as JSON.")]


def show(table: Table, *, as_json: bool) -> None:
    """Print a table to standard output."""
    if as_json:
        typer.echo(json.dumps(dict(table.facts), indent=2))
        return
    from rich.console import Console
    from rich.table import Table as Drawn

    drawn = Drawn(*table.columns, title=table.title, title_justify="left")
    for row in table.rows:
        drawn.add_row(*row)
    console = Console()
    console.print(drawn)
    for note in table.notes:
        console.print(note, highlight=False, markup=False)
