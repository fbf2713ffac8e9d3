"""Parts as a command line names them: in whichever slot they are."""

from __future__ import annotations

from pathlib import Path

from upge import discovery
from upge.errors import InputError
from upge.parts import SLOTS, Part
from upge.recipe.code import class_in_file, names_file


def named(name: str, *, slot: str | None = None, allow_code: bool = False) -> list[tuple[str, type[Part]]]:
    """(slot, class) of every part called so: a name, `package/name`, or `file.py:Class`.

    Raises InputError where there is none, or it can't be had; the message says what may have been meant.
    """
    if slot is not None and slot not in SLOTS:
        raise InputError(f"there is no slot '{slot}'; there are {', '.join(SLOTS)}")
    wanted = [slot] if slot is not None else list(SLOTS)
    if names_file(name):
        return [_in_file(name, wanted, allow_code=allow_code)]
    package, _, bare = name.rpartition("/")
    held = [s for s in wanted if any(o.name == bare and package in ("", o.package) for o in discovery.offers(s))]
    if not held:
        raise InputError(f"no part is called '{name}'" + _hint(bare, wanted))
    try:
        return [(its_slot, discovery.find(SLOTS[its_slot], name)) for its_slot in held]
    except discovery.Unknown as unknown:
        raise InputError(f"{unknown}\n   {unknown.hint}".rstrip()) from unknown


def _in_file(name: str, wanted: list[str], *, allow_code: bool) -> tuple[str, type[Part]]:
    try:
        kind = class_in_file(Part, name, Path.cwd(), allowed=allow_code)
    except discovery.Unknown as unknown:
        raise InputError(f"{unknown}\n   {unknown.hint}".rstrip()) from unknown
    its_slot = getattr(kind, "slot", None)
    if its_slot not in wanted:
        raise InputError(f"{name} is a {its_slot or 'part of no slot'}, and none of {', '.join(wanted)}")
    return its_slot, kind


def _hint(name: str, slots: list[str]) -> str:
    from upge.recipe.faults import nearest

    close = nearest(name, {offer.name for slot in slots for offer in discovery.offers(slot)})
    return f"\n   did you mean '{close}'?" if close else "\n   `upge list` shows those that there are"
