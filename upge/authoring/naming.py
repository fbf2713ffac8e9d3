"""Names for a new package: what follows from one, and what is said of one that can't be had."""

from __future__ import annotations

import importlib.util
import keyword
import re
from dataclasses import dataclass

from upge import discovery
from upge.errors import InputError
from upge.recipe.faults import nearest

_PACKAGE = re.compile(r"[a-z0-9]|[a-z0-9][a-z0-9._-]*[a-z0-9]", flags=re.IGNORECASE)
"""PEP 508's names of distributions."""
_PART = re.compile(r"[a-z][a-z0-9]*(_[a-z0-9]+)*")
_OURS = "upge_"
"""What most packages' modules start with, and their parts' names leave out."""


@dataclass(frozen=True)
class Names:
    """What a package with one part needs to be called.

    Attributes:
        package: the distribution, as `pip install` takes it: `upge-soft-clip`.
        module: what Python imports: `upge_soft_clip`.
        slot, part: what a recipe calls the part, and where: a `mask` called `soft_clip`.
        kind: the part's class: `SoftClip`.
    """

    package: str
    module: str
    slot: str
    part: str
    kind: str


def check_package_name(package: str) -> None:
    """Raise InputError for what no package can be called."""
    if _PACKAGE.fullmatch(package) is None:
        wanted = f"letters, digits, and '-', '_' or '.' between them; '{_package_like(package)}' would do"
        raise InputError(f"'{package}' can't be the name of a package: {wanted}")


def names_of(package: str, slot: str, part: str | None) -> Names:
    """What follows from a package's name; without `part` the part is called as the module, without its `upge_`.

    Raises InputError for a name that can't be one or is taken, saying what would be right.
    """
    if slot not in discovery.slots():
        there = sorted(discovery.slots())
        close = nearest(slot, there)
        hint = f"did you mean '{close}'?" if close else f"there are {', '.join(there)}"
        raise InputError(f"there is no slot '{slot}'; {hint}")
    module = _module_of(package)
    part = part or module.removeprefix(_OURS)
    kind = _class_of(part)
    _check_part(part, kind, slot)
    return Names(package, module, slot, part, kind)


def _module_of(package: str) -> str:
    """The module of a package: its name in small letters, words joined by `_`."""
    module = re.sub(r"[-_.]+", "_", package).lower()
    if not module.isidentifier() or keyword.iskeyword(module):
        wanted = f"Python can't import a module called '{module}'; '{_package_like(f'upge-{package}')}' would do"
        raise InputError(f"'{package}' can't be the name of a package with a part: {wanted}")
    if importlib.util.find_spec(module) is not None:
        hint = "" if module.startswith(_OURS) else f", for example '{_package_like(f'upge-{package}')}'"
        raise InputError(f"there is a module '{module}' already: choose another name{hint}")
    return module


def _check_part(part: str, kind: str, slot: str) -> None:
    if not _is_part(part, kind):
        wanted = "small letters, digits and '_', a letter first, and neither 'recipes' nor a word of Python's own"
        raise InputError(f"'{part}' can't be the name of a part: {wanted}; --part {_part_like(part)} would do")
    for offer in discovery.offers(slot):
        if offer.name == part:
            hint = "choose another name: --part NAME"
            raise InputError(f"the package {offer.package} offers a {slot} called '{part}' already: {hint}")


def _is_part(part: str, kind: str) -> bool:
    """Whether a part can be called so: its module lies beside `recipes`, and Python must take both words for names."""
    taken = part == "recipes" or keyword.iskeyword(part) or keyword.iskeyword(kind)
    return _PART.fullmatch(part) is not None and not taken


def _class_of(part: str) -> str:
    return "".join(word.capitalize() for word in part.split("_"))


def _package_like(text: str) -> str:
    """The name of a package that comes near."""
    words = "-".join(re.findall("[a-z0-9]+", text.lower()))
    return words if words[:1].isalpha() else f"upge-{words or 'my-part'}"


def _part_like(text: str) -> str:
    """The name of a part that comes near: softClip → soft_clip."""
    apart = re.sub("(?<=[a-z0-9])(?=[A-Z])", "_", text)
    words = "_".join(re.findall("[a-z0-9]+", apart.lower()))
    return words if _is_part(words, _class_of(words)) else f"my_{words or 'part'}"
