"""A new package with a part: the templates of its slot, filled in.

`templates/package` holds what every package has, `templates/<slot>` what differs: the part, its recipe and its proof.
A template lies where the file will lie, with `MODULE` and `PART` in its path, `$name` in its text, and `.txt` after it.
"""

from __future__ import annotations

import ast
import importlib.util
import keyword
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from string import Template

from upge import __version__, registry
from upge.describe.scaffold_recipe import already, write_new
from upge.errors import InputError
from upge.part import API
from upge.recipe.catalog import shelved
from upge.suggestions import did_you_mean

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
    if slot not in registry.slots():
        raise InputError(f"there is no slot '{slot}'; {did_you_mean(slot, registry.slots())}")
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
    for offer in registry.entries(slot):
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


TEMPLATES = Path(__file__).parent / "templates"


def new_plugin(package: str, slot: str, part: str | None = None, folder: Path = Path()) -> list[Path]:
    """Write a package with a part for `slot` into `folder`, and return its files.

    Raises InputError for a folder that is there already or can't be written, and for names that can't be had.
    """
    check_package_name(package)
    target = folder / package
    if target.exists():
        raise InputError(already(target))
    names = names_of(package, slot, part)
    files = _rendered(names)
    _check_recipe_names(files)
    _check_class(files, names)
    return [write_new(target / path, text) for path, text in files.items()]


def _rendered(names: Names) -> dict[Path, str]:
    """The files of the package by their paths in it."""
    values = {
        "package": names.package,
        "module": names.module,
        "slot": names.slot,
        "part": names.part,
        "Class": names.kind,
        "minor": ".".join(__version__.split(".")[:2]),
        "api": str(API),
    }
    return {
        _path(template.relative_to(tree), names): Template(template.read_text(encoding="utf-8")).substitute(values)
        for tree in (TEMPLATES / "package", TEMPLATES / names.slot)
        for template in sorted(tree.rglob("*.txt"))
    }


def _path(template: Path, names: Names) -> Path:
    text = template.with_suffix("").as_posix()
    return Path(text.replace("MODULE", names.module).replace("PART", names.part))


def _check_recipe_names(files: Mapping[Path, str]) -> None:
    """The recipes must be found by their names."""
    taken = {each.name: each.package for each in shelved()}
    for path in files:
        if path.suffix == ".yaml" and path.stem in taken:
            hint = "choose another name: --part NAME"
            raise InputError(f"the package {taken[path.stem]} brings a recipe called '{path.stem}' already: {hint}")


def _check_class(files: Mapping[Path, str], names: Names) -> None:
    """The part's class must not hide a name that its module, or its test, needs itself: a mask called `mask`, say."""
    for path, text in files.items():
        if path.suffix == ".py" and Counter(_bound(ast.parse(text)))[names.kind] > 1:
            hint = f"choose another name: --part my_{names.part}"
            raise InputError(f"a class '{names.kind}' would hide another one of that name: {hint}")


def _bound(tree: ast.Module) -> Iterator[str]:
    """The names that a module imports or gives to classes."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            yield from (alias.name for alias in node.names)
        if isinstance(node, ast.ClassDef):
            yield node.name
