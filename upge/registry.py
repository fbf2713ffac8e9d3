"""Parts by name: they are found by entry points, upge's own like those of all other packages.

An offer is a line `name = module:Class` in the group `upge.<slot>` of some installed distribution. Listing offers
imports nothing; a part's module is imported when `find` first returns it. This module alone uses the package
`entrypoints`, and also handles a malformed entry_points.txt of an unrelated distribution.
"""

from __future__ import annotations

import ast
import functools
import importlib
import importlib.util
import re
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol, TypeVar, get_args, get_origin

import entrypoints

from upge.part_checks import FIELDS, unusable
from upge.suggestions import did_you_mean, nearest

GROUP = "upge."
RECIPES = "upge.recipes"
"""The entry-point group of packages that bring recipes."""


@dataclass(frozen=True)
class Entry:
    """A part that an installed package offers.

    Attributes:
        slot: which slot it fills. name: what recipes call it.
        module, attribute: where the class is.
        package, version: the distribution that offers it.
        fault: what is visibly wrong with the offer without importing it, or None.
    """

    slot: str
    name: str
    module: str
    attribute: str
    package: str
    version: str
    fault: str | None = None


class UnknownPartError(LookupError):
    """No part has this name; `hint` suggests a similar one, if there is one."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


class Slotted(Protocol):
    """A part, as far as it matters here."""

    slot: ClassVar[str]


_registered: dict[tuple[str, str], Any] = {}
PartClass = TypeVar("PartClass", bound=type[Slotted])
Kind = TypeVar("Kind", bound=Slotted)


def register(name: str) -> Callable[[PartClass], PartClass]:
    """A class decorator for notebooks: offers the part under `name` in its slot, in this process only.

    Raises ValueError for a name that an installed package has: it would mean two things.
    """

    def decorate(kind: PartClass) -> PartClass:
        for offer in entries(kind.slot):
            if offer.name == name:
                raise ValueError(
                    f"the package {offer.package} offers a {kind.slot} called '{name}': choose another name"
                )
        _registered[kind.slot, name] = kind
        return kind

    return decorate


def find(base: type[Kind], use: str) -> type[Kind]:
    """The class that `use` (`name` or `package/name`) names in the slot of `base`.

    Raises `UnknownPartError`, with the nearest right name as a hint.
    """
    slot = base.slot
    if (slot, use) in _registered:
        registered: type[Kind] = _registered[slot, use]
        return registered
    package, _, name = use.rpartition("/")
    matches = [o for o in entries(slot) if o.name == name and package in ("", o.package)]
    if not matches:
        raise UnknownPartError(f"no {slot} is called '{use}'", _nearest(slot, use))
    if len(matches) > 1:
        choices = " or ".join(f"'{offer.package}/{name}'" for offer in matches)
        raise UnknownPartError(f"{len(matches)} packages define a {slot} called '{name}'", f"write one of: {choices}")
    return load(matches[0], base)


def load(offer: Entry, base: type[Kind]) -> type[Kind]:
    """The class behind an offer, a subclass of `base`.

    Raises: UnknownPartError: it can't be had; the message names the package.
    """
    where = f"the {offer.slot} '{offer.name}' of the package {offer.package}"
    if offer.fault:
        raise UnknownPartError(f"{where} can't be loaded: {offer.fault}")
    try:
        kind = _imported(offer)
    except (Exception, SystemExit) as error:  # whatever a plugin does, its user needs to know which one did it
        raise UnknownPartError(f"{where} can't be imported: {type(error).__name__}: {error}") from error
    if fault := unusable(kind, base, offer.package):
        raise UnknownPartError(f"{where} {fault[0]}", fault[1])
    loaded: type[Kind] = kind
    return loaded


def _imported(offer: Entry) -> Any:
    return functools.reduce(getattr, offer.attribute.split("."), importlib.import_module(offer.module))


def name_of(kind: type, slot: str) -> str:
    """The name under which recipes can `use` this class; `package/name` where the bare name is ambiguous.

    A class that isn't registered has the name `file.py:Class` of its source.
    """
    for (its_slot, name), registered in _registered.items():
        if its_slot == slot and registered is kind:
            return name
    for offer in entries(slot):
        if names_class(offer, kind):
            alone = sum(other.name == offer.name for other in entries(slot)) == 1
            return offer.name if alone else f"{offer.package}/{offer.name}"
    source = getattr(sys.modules.get(kind.__module__), "__file__", None) or f"{kind.__module__}.py"
    return f"{source}:{kind.__qualname__}"


def names_class(offer: Entry, kind: type) -> bool:
    """Whether an offer is of this class."""
    return (offer.module, offer.attribute) == (kind.__module__, kind.__qualname__)


def entries(slot: str | None = None) -> list[Entry]:
    """All offers, or those for one slot, by name. Imports nothing."""
    path = tuple(sys.path)
    return list(_scan(path) if slot is None else _scan_of(slot, path))


def summary(offer: Entry) -> str:
    """The first line of the part's docstring, read from its source without importing it; "" if there is none."""
    path = _source(offer.module)
    if path is None:
        return ""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ClassDef) and node.name == offer.attribute:
            return (ast.get_docstring(node) or "").partition("\n")[0]
    return ""


def recipe_folders() -> list[tuple[str, Path]]:
    """(package, folder) of the recipes that installed packages bring: entry points `any = package.folder` in the group
    `upge.recipes`. Imports nothing."""
    named_folders = []
    for parser, distribution in _distributions(tuple(sys.path)):
        for section in parser.sections():
            if section.strip() == RECIPES:
                targets = (target for _, target in parser.items(section, raw=True))
                folders = (_folder((target or "").strip()) for target in targets)
                named_folders += [(distribution.name, folder) for folder in folders if folder is not None]
    return sorted(named_folders)


def strays() -> list[str]:
    """A sentence for each entry-point group of an installed package that is upge's by its name, and of no use."""
    groups = [RECIPES, *(f"{GROUP}{slot}" for slot in sorted(slots()))]
    files = []
    for parser, distribution in _distributions(tuple(sys.path)):
        for section in map(str.strip, parser.sections()):
            if section.startswith(GROUP) and section not in groups:
                hint = did_you_mean(section, groups)
                files.append(f"{distribution.name}: there is no entry-point group '{section}'; {hint}")
    return sorted(files)


def refresh() -> None:
    """Forget what was found, for a package installed by this very process."""
    importlib.invalidate_caches()  # Python remembers what folders held
    _scan.cache_clear()
    _scan_of.cache_clear()


def _nearest(slot: str, use: str) -> str:
    """The suggestion: a part of another slot, one with a similar name, or one that reads the field of this name."""
    bare = use.rpartition("/")[2]
    named = _names()
    if others := [other for other in named if other != slot and bare in named[other]]:
        return (
            f"'{bare}' is {' and '.join(map(_with_article, others))}: it belongs in {' or '.join(map(_home, others))}"
        )
    there = sorted(name for fits in (slot, *_ALSO.get(slot, ())) for name in named.get(fits, ()))
    if close := nearest(bare, there):
        return f"did you mean '{close}'?"
    everywhere = {name: other for other in named for name in sorted(named[other])}
    if (close := nearest(bare, everywhere)) and not _is_field(bare):
        other = everywhere[close]
        return f"did you mean '{close}'? it is {_with_article(other)} and belongs in {_home(other)}"
    listed = f"there are: {', '.join(there)}" if there else f"no installed package offers any {slot}"
    return f"{listed}{_readers(bare)}"


def _names() -> dict[str, set[str]]:
    """The names of all parts, by slot."""
    names: dict[str, set[str]] = {}
    for slot, name in (*((offer.slot, offer.name) for offer in entries()), *_registered):
        names.setdefault(slot, set()).add(name)
    return names


def _is_field(word: str) -> bool:
    return word in FIELDS or f"{word}_logp" in FIELDS


def _readers(word: str) -> str:
    """The parts that read the batch field which a word names: what `reference` may have been meant to be."""
    field = word if word in FIELDS else f"{word}_logp"
    if field not in FIELDS:
        return ""
    readers = []
    for offer in entries():
        try:
            kind = _imported(offer)
            if field in getattr(kind, "needs", ()) or any(word in _choices(each) for each in kind.fields().values()):
                readers.append(f"the {offer.slot} {offer.name}")
        except (Exception, SystemExit):  # of a part that isn't used
            continue
    return f"; {field} is a batch field, which {' and '.join(readers)} read" if readers else ""


def _choices(parameter: Any) -> tuple[object, ...]:
    """The words that a parameter may be."""
    types = (parameter.annotation, *get_args(parameter.annotation))
    return tuple(word for each in types if get_origin(each) is Literal for word in get_args(each))


_ALSO = {"mask": ("selection",)}
"""The slots whose parts may stand where a part of another slot is expected."""

_WITHIN_TERMS = ("mask", "denominator", "advantage", "reduction", "weight")


def _home(slot: str) -> str:
    """Where a recipe names a part of this slot."""
    if slot in _WITHIN_TERMS:
        return f"estimator.terms.<term>.{slot}"
    homes = {"switch": "estimator.switch", "shaping": "estimator.shaping", "engine": "rollout.engine"}
    return (homes | {"selection": "estimator.terms.<term>.select", "field": "fields.<name>"}).get(slot, slot)


def _with_article(slot: str) -> str:
    return {"data": "a data source"}.get(slot, f"{'an' if slot[0] in 'aeiou' else 'a'} {slot}")


@functools.lru_cache(maxsize=4)
def _scan(path: tuple[str, ...]) -> tuple[Entry, ...]:
    offers = (offer for parser, distribution in _distributions(path) for offer in _offers_of(parser, distribution))
    return tuple(sorted(set(offers), key=lambda offer: (offer.slot, offer.name, offer.package)))


@functools.lru_cache(maxsize=128)
def _scan_of(slot: str, path: tuple[str, ...]) -> tuple[Entry, ...]:
    return tuple(offer for offer in _scan(path) if offer.slot == slot)


def _distributions(path: Iterable[str]) -> Iterator[tuple[Any, Any]]:
    """(parsed entry points, distribution) of every readable distribution; the first of a name on the path counts."""
    seen: set[str] = set()
    for folder in path:
        for metadata in _metadata_folders(folder):
            name = _name_and_version(metadata)[0]
            if name in seen:
                continue
            seen.add(name)
            yield from _read(metadata)


def _metadata_folders(folder: str) -> list[Path]:
    root = Path(folder or ".")
    if not root.is_dir():
        return []
    return sorted(p for p in root.iterdir() if p.suffix in (".dist-info", ".egg-info") and p.is_dir())


def _name_and_version(metadata: Path) -> tuple[str, str]:
    """The distribution's name, normalised, and version, from its metadata folder's name."""
    name, _, version = metadata.stem.rpartition("-")
    return re.sub(r"[-_.]+", "-", name or version).lower(), version if name else "?"


def _read(metadata: Path) -> Iterator[tuple[Any, Any]]:
    parser = entrypoints.CaseSensitiveConfigParser(delimiters=("=",), strict=False)
    try:
        parser.read([metadata / "entry_points.txt"], encoding="utf-8")
    except Exception:  # someone else's broken package is no reason to stop
        return
    yield parser, entrypoints.Distribution(*_name_and_version(metadata))


def _offers_of(parser: Any, distribution: Any) -> Iterator[Entry]:
    package = distribution.name
    for section in parser.sections():
        group = section.strip()
        if not group.startswith(GROUP) or group.removeprefix(GROUP) not in slots():
            continue
        for name, target in parser.items(section, raw=True):
            module, attribute, fault = _parse(name.strip(), (target or "").strip(), distribution)
            slot = group.removeprefix(GROUP)
            yield Entry(slot, name.strip(), module, attribute, package, distribution.version, fault)


def _parse(name: str, target: str, distribution: Any) -> tuple[str, str, str | None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            entry = entrypoints.EntryPoint.from_string(re.sub(r"\s*:\s*", ":", target), name, distribution)
        except entrypoints.BadEntryPoint:
            return "", "", f"'{target}' is not module:Class"
    if not entry.object_name:
        return entry.module_name, "", f"'{target}' names no class"
    if _source(entry.module_name) is None:
        return entry.module_name, entry.object_name, f"there is no module {entry.module_name}"
    return entry.module_name, entry.object_name, None


def slots() -> frozenset[str]:
    """The slots that packages can offer parts for."""
    estimator = ("mask", "denominator", "advantage", "switch", "reduction", "shaping", "selection", "weight")
    return frozenset((*estimator, "field", "reward", "data", "engine"))


def _source(module: str) -> Path | None:
    """The source file of a module, found without importing the packages that it is in."""
    for base in _places(module):
        for candidate in (base.with_suffix(".py"), base / "__init__.py"):
            if candidate.is_file():
                return candidate
    return None


def _folder(package: str) -> Path | None:
    """The folder of a package, or of one within it, found without importing either."""
    return next((place for place in _places(package) if place.is_dir()), None)


def _places(module: str) -> Iterator[Path]:
    """Where a module can be, without the ending of a file."""
    package, *rest = module.split(".")
    try:
        spec = importlib.util.find_spec(package)
    except (ImportError, ValueError):
        return
    if spec is None:
        return
    locations = spec.submodule_search_locations
    if locations is None and not rest and spec.origin:
        yield Path(spec.origin).with_suffix("")
    for location in locations or ():
        yield Path(location, *rest)
