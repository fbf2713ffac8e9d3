"""`upge check`: a part, a package's parts, or a recipe against the laws, with the smallest example of what fails."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Annotated, Any

import typer

from upge import registry
from upge.cli.app import app
from upge.cli.arguments import AllowCode
from upge.errors import InputError

if TYPE_CHECKING:
    from upge.part import Part
    from upge.testing.conformance import Finding

What = Annotated[
    str, typer.Argument(metavar="PART|PACKAGE|RECIPE", help="A part, a package, a recipe, or file.py:Class.")
]
Given = Annotated[
    list[str] | None,
    typer.Argument(metavar="[KEY=VALUE]...", help="Parameters that are not drawn; a recipe's overrides."),
]
Draws = Annotated[int, typer.Option(min=1, help="Drawn examples for each law.")]


@app.command()
def check(what: What, settings: Given = None, examples: Draws = 100, allow_code: AllowCode = False) -> None:
    """Check a part, a package's parts, or a recipe against the laws: detachment, shapes, splitting, declared needs, …

    Exits with 1 if a law is broken, and prints its smallest counterexample.
    """
    if _is_recipe(what):
        broken = _report(f"recipe {what}", _of_recipe(what, settings or [], examples, allow_code))
    else:
        parameters = dict(map(_parameter, settings or ()))
        broken = sum(_of_part(name, kind, parameters, examples) for name, kind in _parts_of(what, allow_code))
    if broken:
        typer.echo("1 law is broken" if broken == 1 else f"{broken} laws are broken", err=True)
        raise typer.Exit(1)


def _is_recipe(what: str) -> bool:
    """Whether a recipe is meant: no part and no package is called so, and a recipe is, or it looks like a file."""
    from upge.recipe.catalog import shelved

    if what.endswith((".yaml", ".yml")):
        return True
    entries, bare = registry.entries(), what.rpartition("/")[2]
    called = any(what in (entry.name, entry.package, f"{entry.package}/{entry.name}") for entry in entries)
    return not called and any(entry.name == bare for entry in shelved())


def _of_recipe(what: str, overrides: list[str], examples: int, allow_code: bool) -> Iterator[Finding]:
    from upge.recipe.resolve import load

    recipe = load(what, overrides, allow_code=allow_code)
    findings: Iterator[Finding] = _testing().examined_estimator(recipe.estimator, examples=examples)
    return findings


def _parts_of(what: str, allow_code: bool) -> list[tuple[str, type[Part] | str]]:
    """(slot and name, class, or what is wrong with it): the parts of the package called so, else those called so."""
    from upge.cli.arguments import named
    from upge.part import SLOTS

    offered = [offer for offer in registry.entries() if offer.package == what.lower().replace("_", "-")]
    if not offered or "/" in what:
        return [(f"{slot} {what}", kind) for slot, kind in named(what, allow_code=allow_code)]
    kinds: list[tuple[str, type[Part] | str]] = []
    for offer in offered:
        try:
            kinds.append((f"{offer.slot} {offer.name}", registry.load(offer, SLOTS[offer.slot])))
        except registry.UnknownPartError as unknown:  # no reason not to look at the others
            kinds.append((f"{offer.slot} {offer.name}", str(unknown)))
    return kinds


def _parameter(text: str) -> tuple[str, Any]:
    from upge.recipe.compose import parse_override
    from upge.recipe.yaml import plain

    override = parse_override(text, 1)
    return ".".join(override.path), plain(override.value)


def _of_part(name: str, kind: type[Part] | str, parameters: dict[str, Any], examples: int) -> int:
    """Print the result of each law for a part; return the number of broken laws."""
    testing = _testing()
    if isinstance(kind, str):
        return _report(name, [testing.Finding("it can be imported", kind)])
    unknown = set(parameters) - set(kind.fields())
    if unknown:
        raise InputError(f"{name} has no parameter '{min(unknown)}'; it has {', '.join(kind.fields()) or 'none'}")
    _refuse_wrong(name, kind, parameters)
    return _report(name, testing.examined(kind, parameters, examples=examples))


def _refuse_wrong(name: str, kind: type[Part], parameters: dict[str, Any]) -> None:
    """Raise InputError for a given value that its parameter can't have, whatever the others are."""
    from pydantic import ValidationError

    try:
        kind.model_validate(parameters)
    except ValidationError as error:
        for detail in error.errors():
            if detail["loc"] and detail["loc"][0] in parameters:
                wrong = detail["loc"][0]
                raise InputError(f"{name}: {wrong} = {parameters[str(wrong)]!r}: {detail['msg']}") from error


def _testing() -> Any:
    try:
        import upge.testing.conformance as testing
    except ModuleNotFoundError as missing:
        raise InputError("checking needs Hypothesis: pip install 'upge[test]'") from missing
    return testing


def _report(name: str, findings: Iterable[Finding]) -> int:
    """Print the findings, law by law, each message once; return the number of broken laws."""
    broken: dict[str, str] = {}
    for finding in findings:
        typer.echo(f"{name}  {'BROKEN  ' if finding.failure else 'ok  '}{finding.law}")
        if finding.failure is None:
            continue
        cause = finding.failure.rpartition(" raised ")[2]  # one error, whichever call of the part meets it
        before = next((law for law, earlier in broken.items() if earlier == cause), None)
        lines = [finding.failure, *([f"on {finding.example}"] if finding.example else [])]
        typer.echo("    " + (f"as above ({before})" if before else "\n        ".join("\n".join(lines).splitlines())))
        broken[finding.law] = cause
    return len(broken)
