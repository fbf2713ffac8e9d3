"""`upge list`: the installed parts and recipes, read without importing them."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator
from typing import Annotated

import typer

from upge import registry
from upge.cli.app import app
from upge.tables import folding

WIDE = 200
"""Columns where the output goes into a pipe: a line a part."""

Slot = Annotated[str | None, typer.Argument(metavar="[SLOT]", help="mask, advantage, …, or recipes.")]
Check = Annotated[
    bool, typer.Option("--check", help="Import each part, and list those that can't be used; exit 1 if there are any.")
]
Row = tuple[str, str, str, str, bool]
"""What it fills, its name, its package, one line on it, and whether that line is a fault."""


@app.command("list")
def list_parts(slot: Slot = None, check: Check = False) -> None:
    """List the installed parts (or recipes): slot, name, package, and a summary."""
    if slot is not None and slot != "recipes" and slot not in registry.slots():
        there = ", ".join((*sorted(registry.slots()), "recipes"))
        typer.echo(f"there is no slot '{slot}'; there are {there}", err=True)
        raise typer.Exit(2)
    rows = list(_recipes(_checked_recipe if check else None) if slot == "recipes" else _parts(slot, check))
    _print(rows)
    for stray in registry.strays():
        typer.echo(stray, err=True)
    if check and any(faulty for *_, faulty in rows):
        raise typer.Exit(1)


def _parts(slot: str | None, check: bool) -> Iterator[Row]:
    for offer in registry.entries(slot):
        fault = offer.fault or (_imported(offer) if check else None)
        yield offer.slot, offer.name, f"{offer.package} {offer.version}", fault or registry.summary(offer), bool(fault)


def _imported(offer: registry.Entry) -> str | None:
    """The reason why a part can't be imported; None if it can."""
    from upge.part import SLOTS

    try:
        registry.load(offer, SLOTS[offer.slot])
    except registry.UnknownPartError as unknown:
        return str(unknown)
    return None


def _recipes(fault_of: Callable[[str], str | None] | None) -> Iterator[Row]:
    from upge.recipe.catalog import shelved

    for entry in shelved():
        fault = fault_of(str(entry.path)) if fault_of else None
        about = re.search(r"^about:\s*(.+)$", entry.path.read_text(encoding="utf-8", errors="replace"), re.MULTILINE)
        yield "recipe", entry.name, entry.package, fault or (about[1] if about else ""), bool(fault)


def _checked_recipe(path: str) -> str | None:
    from upge.recipe.faults import RecipeError
    from upge.recipe.resolve import check

    try:
        check(path)
    except RecipeError as error:
        return str(error.faults[0]).partition("\n")[0]
    return None


def _print(rows: list[Row]) -> None:
    from rich.console import Console
    from rich.text import Text

    table = folding(box=None, pad_edge=False)
    for column in ("slot", "use", "package", ""):
        table.add_column(column)
    for slot, name, package, line, faulty in rows:
        table.add_row(slot, name, package, Text(line, style="red" if faulty else ""))
    Console(highlight=False, width=None if sys.stdout.isatty() else WIDE).print(table)
