"""`upge check`: a part, or every part of a package, against the laws; what fails is shown with its smallest example."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from upge import discovery
from upge.command import app
from upge.command.arguments import AllowCode

if TYPE_CHECKING:
    from upge.parts import Part

What = Annotated[str, typer.Argument(metavar="PART|PACKAGE", help="A part, a package, or file.py:Class.")]
Given = Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Parameters that are not drawn.")]
Draws = Annotated[int, typer.Option(min=1, help="How many drawn examples each law gets.")]


@app.command()
def check(what: What, given: Given = None, examples: Draws = 100, allow_code: AllowCode = False) -> None:
    """Check a part, or a package's parts, against the laws: detachment, shapes, splitting, declared needs, …

    Exit code 1 where a law is broken, with the smallest example on which it is.
    """
    parts = _parts_of(what, allow_code)
    parameters = dict(map(_parameter, given or ()))
    broken = sum(_report(name, kind, parameters, examples) for name, kind in parts)
    if broken:
        typer.echo(f"{broken} laws are broken", err=True)
        raise typer.Exit(1)


def _parts_of(what: str, allow_code: bool) -> list[tuple[str, type[Part]]]:
    """(slot and name, class): the parts of the package called so, else the parts called so."""
    from upge.command.naming import named

    offered = [offer for offer in discovery.offers() if offer.package == what.lower().replace("_", "-")]
    if offered and "/" not in what:
        pairs = [(offer.slot, kind) for offer in offered for _, kind in named(f"{what}/{offer.name}", slot=offer.slot)]
        return [(f"{slot} {offer.name}", kind) for offer, (slot, kind) in zip(offered, pairs, strict=True)]
    return [(f"{slot} {what}", kind) for slot, kind in named(what, allow_code=allow_code)]


def _parameter(text: str) -> tuple[str, Any]:
    from upge.recipe.nodes import plain
    from upge.recipe.overriding import parse_override

    override = parse_override(text, 1)
    return ".".join(override.path), plain(override.value)


def _report(name: str, kind: type[Part], parameters: dict[str, Any], examples: int) -> int:
    """Print how a part stands to each law; how many it breaks."""
    from upge.errors import InputError

    try:
        from upge.testing import examined
    except ModuleNotFoundError as missing:
        raise InputError("checking needs Hypothesis: pip install 'upge[test]'") from missing
    unknown = set(parameters) - set(kind.fields())
    if unknown:
        raise InputError(f"{name} has no parameter '{min(unknown)}'; it has {', '.join(kind.fields()) or 'none'}")
    broken = 0
    for finding in examined(kind, parameters, examples=examples):
        broken += finding.failure is not None
        typer.echo(f"{name}  {'BROKEN  ' if finding.failure else 'ok  '}{finding.law}")
        if finding.failure is not None:
            said = (finding.failure, *([f"on {finding.example}"] if finding.example else []))
            typer.echo("    " + "\n        ".join("\n".join(said).splitlines()))
    return broken
