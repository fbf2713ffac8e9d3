"""A new package with a part: the templates of its slot, filled in.

`templates/package` holds what every package has, `templates/<slot>` what differs: the part, its recipe and its proof.
A template lies where the file will lie, with `MODULE` and `PART` in its path, `$name` in its text, and `.txt` after it.
"""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from string import Template

from upge import __version__
from upge.authoring.naming import Names, check_package_name, names_of
from upge.authoring.writing import already, write_new
from upge.errors import InputError
from upge.parts import API
from upge.recipe.finding import shelved

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
