"""`upge show`: everything about a part."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import typer

from upge import registry
from upge.cli.app import app
from upge.cli.arguments import AllowCode

if TYPE_CHECKING:
    from upge.part import Part

Name = Annotated[str, typer.Argument(metavar="PART", help="A part's name, package/name, or file.py:Class.")]
OfSlot = Annotated[str | None, typer.Option("--slot", help="Only the part of this slot.")]


@app.command()
def show(part: Name, slot: OfSlot = None, allow_code: AllowCode = False) -> None:
    """Show a part: formula, parameters with bounds and defaults, fields read, source, recipes that use it, file."""
    from upge.cli.arguments import named

    kinds = named(part, slot=slot, allow_code=allow_code)
    typer.echo("\n\n".join("\n".join(_sheet(part, its_slot, kind)) for its_slot, kind in kinds))


def _sheet(name: str, slot: str, kind: type[Part]) -> Iterator[str]:
    from upge.describe.part import described, used_by

    sheet = described(kind)
    yield f"{slot} {name}   {_package(slot, name)}".rstrip()
    yield from (sheet.line, "", *(f"    {line}" for line in sheet.formula))
    if sheet.text:
        yield from ("", sheet.text)
    if sheet.parameters:
        yield from ("", "parameters")
    for parameter in sheet.parameters:
        kind_and_bounds = f"{parameter.kind} {parameter.bounds}".strip()
        yield f"    {parameter.name}: {kind_and_bounds}; {parameter.default}"
        yield from (f"        {line}" for line in parameter.about.splitlines())
    yield from ("", *sheet.traits)
    users = used_by(kind)
    yield f"used by {', '.join(users)}" if users else "no installed recipe uses it"
    yield f"file {sheet.file}"


def _package(slot: str, name: str) -> str:
    package, _, bare = name.rpartition("/")
    entries = [o for o in registry.entries(slot) if o.name == bare and package in ("", o.package)]
    return f"{entries[0].package} {entries[0].version}" if entries else ""
