"""`upge list`: the installed parts, read without importing them."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from upge import discovery
from upge.command import app

WIDE = 200
"""Columns where the output goes into a pipe: a line a part."""

Slot = Annotated[str | None, typer.Argument(metavar="[SLOT]", help="mask, denominator, advantage, switch, …")]


@app.command("list")
def list_parts(slot: Slot = None) -> None:
    """List the installed parts: slot, name, package, and one line on each."""
    from rich.console import Console
    from rich.table import Table

    if slot is not None and slot not in discovery.slots():
        typer.echo(f"there is no slot '{slot}'; there are {', '.join(sorted(discovery.slots()))}", err=True)
        raise typer.Exit(2)
    table = Table(box=None, pad_edge=False)
    for column in ("slot", "use", "package", ""):
        table.add_column(column, no_wrap=column != "")
    for offer in discovery.offers(slot):
        line = f"[red]{offer.fault}[/]" if offer.fault else discovery.summary(offer)
        table.add_row(offer.slot, offer.name, f"{offer.package} {offer.version}", line)
    Console(highlight=False, width=None if sys.stdout.isatty() else WIDE).print(table)
