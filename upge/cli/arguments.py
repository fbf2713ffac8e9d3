"""Arguments that several verbs share: parts by name, and places in recipes."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from upge import registry
from upge.errors import InputError

if TYPE_CHECKING:
    from upge.part import Part
    from upge.recipe.compose import Composed

RecipePath = Annotated[str, typer.Argument(metavar="RECIPE", help="A recipe file, or the name of a shipped one.")]
Processes = Annotated[
    int | None,
    typer.Option(
        min=1, help="The number of processes on this machine; with --dry-run: the number of ranks to plan for."
    ),
]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Overrides: dotted.path=YAML value.")
]
AllowCode = Annotated[bool, typer.Option("--allow-code", help="Allow the recipe to name classes in Python files.")]


def named(name: str, *, slot: str | None = None, allow_code: bool = False) -> list[tuple[str, type[Part]]]:
    """(slot, class) of every part called so: a name, `package/name`, or `file.py:Class`.

    Raises InputError if there is none, or it can't be loaded; the message has a suggestion.
    """
    from upge.part import SLOTS
    from upge.recipe.qualified_names import names_file

    if slot is not None and slot not in SLOTS:
        raise InputError(f"there is no slot '{slot}'; there are {', '.join(SLOTS)}")
    slots = [slot] if slot is not None else list(SLOTS)
    if names_file(name):
        return [_in_file(name, slots, allow_code=allow_code)]
    package, _, bare = name.rpartition("/")
    held = [s for s in slots if any(o.name == bare and package in ("", o.package) for o in registry.entries(s))]
    if not held:
        raise InputError(f"no part is called '{name}'" + _hint(bare, slots))
    try:
        return [(its_slot, registry.find(SLOTS[its_slot], name)) for its_slot in held]
    except registry.UnknownPartError as unknown:
        raise InputError(f"{unknown}\n   {unknown.hint}".rstrip()) from unknown


def _in_file(name: str, slots: list[str], *, allow_code: bool) -> tuple[str, type[Part]]:
    from upge.part import Part
    from upge.recipe.schema import class_in_file

    try:
        kind = class_in_file(Part, name, Path.cwd(), allowed=allow_code)
    except registry.UnknownPartError as unknown:
        raise InputError(f"{unknown}\n   {unknown.hint}".rstrip()) from unknown
    its_slot = getattr(kind, "slot", None)
    if its_slot not in slots:
        raise InputError(f"{name} is a {its_slot or 'part of no slot'}, and none of {', '.join(slots)}")
    return its_slot, kind


def _hint(name: str, slots: list[str]) -> str:
    from upge.suggestions import did_you_mean

    names = {offer.name for slot in slots for offer in registry.entries(slot)}
    return f"\n   {did_you_mean(name, names, '`upge list` shows those that there are')}"


@contextmanager
def located(composed: Composed) -> Iterator[None]:
    """A part's error gets the place at which the recipe names the part."""
    from upge.estimator.part_errors import PartError
    from upge.recipe.compose import place_of
    from upge.recipe.faults import Fault

    try:
        yield
    except PartError as error:
        raise PartError(str(Fault(str(error), place_of(composed.root, error.place))), error.place) from error


@contextmanager
def uncollected() -> Iterator[None]:
    """Exclude the modules that are imported here from garbage collection, for the rest of the process.

    torch and the parts make a million objects that all stay; searching them, again and again while they are made and
    once more at the end of the process, takes longer than to check a recipe.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if enabled:
            gc.enable()
