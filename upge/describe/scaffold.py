"""The files of `upge new`: a recipe that starts as another one, or a package with a part.

`templates/package` holds what every package has, `templates/<slot>` what differs: the part, its recipe and its proof.
A template lies where the file will lie, with `MODULE` and `PART` in its path, `$name` in its text, and `.txt` after it.
"""

from __future__ import annotations

import ast
import importlib.util
import io
import keyword
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from string import Template
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq

from upge import __version__, registry
from upge.errors import InputError
from upge.part import API
from upge.recipe.catalog import find_recipe, shelved, shipped_recipes
from upge.recipe.keys import shorthand
from upge.recipe.qualified_names import names_file, with_whole_paths
from upge.recipe.resolve import check
from upge.recipe.yaml import Node, read
from upge.suggestions import did_you_mean

_LONGEST = 110
"""Characters of a map that is written on one line."""


def write_new(path: Path, text: str) -> Path:
    """Write a file and the folders that it lies in; an existing one is never written over.

    Raises InputError where that can't be done.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        raise InputError(already(path) if path.exists() else f"{path}: can't be written: {error.strerror}") from None
    return path


def already(path: Path) -> str:
    """The error message for an existing file or folder."""
    return f"there is a '{path}' already; it is not overwritten"


def as_yaml(members: Mapping[str, Node | str]) -> str:
    """A recipe's keys and values as YAML, with shorthands for parts, short maps on one line, and original numbers."""
    return _dumped(CommentedMap({key: _styled(value, (key,)) for key, value in members.items()}))


def _styled(node: Node | str, path: tuple[str, ...]) -> Any:
    """The value at a path as ruamel writes it in this style."""
    if isinstance(node, str):
        return node
    if isinstance(node.value, dict):
        members = CommentedMap({key: _styled(inner, (*path, key)) for key, inner in node.value.items()})
        if list(members) == [shorthand(path)]:
            return next(iter(members.values()))
        if not any(isinstance(value, dict) for value in members.values()):
            _on_one_line(members)
        return members
    if isinstance(node.value, tuple):
        items = CommentedSeq([_styled(item, (*path, str(index))) for index, item in enumerate(node.value)])
        if not any(isinstance(item, dict) for item in items):
            items.fa.set_flow_style()
        return items
    return _as_written(node) if isinstance(node.value, float) else node.value


def _on_one_line(members: CommentedMap) -> None:
    """Write the map between braces, unless that is too long to read."""
    members.fa.set_flow_style()
    if len(_dumped(members)) > _LONGEST:
        members.fa.set_block_style()


def _as_written(number: Node) -> Any:
    """A number in the form that its author gave it: `3e-4` and not 0.0003."""
    place = number.place
    written = YAML().load(place.text[place.column - 1 : place.column - 1 + place.width])
    return written if written == number.value else number.value


def _dumped(value: CommentedMap) -> str:
    yaml = YAML()
    yaml.width = 1 << 16  # no folding
    yaml.indent(mapping=2, sequence=4, offset=2)
    text = io.StringIO()
    yaml.dump(value, text)
    return text.getvalue()


_NAME = re.compile(r"\w[\w.+-]*")
"""What a recipe's `name` may be."""


def new_recipe(name: str, like: str, folder: Path = Path(), *, allow_code: bool = False) -> Path:
    """Write `name`.yaml into `folder`: the recipe `like`, extended, with its estimator written out; return the file.

    A recipe that can't be extended from there, a package's say, is copied whole, over all that it extends.
    Raises InputError for a file that is there already, for a name that can't be had and for a fragment; RecipeError
    where there is no recipe `like`, or it is not valid.
    """
    target = folder / f"{name}.yaml"
    _check_name(name)
    if target.exists():
        raise InputError(already(target))
    parent = find_recipe(like)
    checked = check(parent, allow_code=allow_code)
    if checked.recipe is None:
        raise InputError(f"'{like}' is abstract: it has no estimator to start from")
    extended = _extendable(parent, folder, pointed_at=parent == Path(like))
    header = _header(name, like, checked.recipe.name, extended)
    root = checked.composed.root
    if parent.resolve().parent != folder.resolve():
        root = with_whole_paths(root, parent.resolve().parent)
    return write_new(target, header + _text(name, checked.recipe.name, root, extended))


def _text(name: str, parent: str, root: Node, extended: str | None) -> str:
    """The text of the recipe: `extends`, or else all keys of its parent, and the parent's estimator."""
    assert isinstance(root.value, dict)
    keys: dict[str, Node | str] = {"extends": extended} if extended else {}
    keys |= {"name": name, "about": f"{parent}, until you change it"}
    if not extended:
        keys |= {key: node for key, node in root.value.items() if key not in (*keys, "abstract", "estimator")}
    return as_yaml(keys) + _block("estimator", root.value["estimator"])


def _check_name(name: str) -> None:
    stem = re.sub(r"\.ya?ml$", "", name)
    if _NAME.fullmatch(stem) is None:
        like = re.sub(r"[^\w.+-]+", "_", Path(stem).name).lstrip(".+-") or "mine"
        hint = f"letters, digits, and '.', '+', '-', '_' after the first; '{like}' would do"
        raise InputError(f"'{name}' can't be the name of a recipe: {hint} (set the folder with --folder)")
    if stem != name:
        raise InputError(f"'{name}' is a file; name the recipe alone: '{stem}'")
    for entry in shelved():
        if entry.name == name:
            raise InputError(
                f"the package {entry.package} brings a recipe called '{name}' already: choose another name"
            )


def _extendable(parent: Path, folder: Path, *, pointed_at: bool) -> str | None:
    """What `extends` may call the parent in a file in `folder`: one that ships, or, if its path was given, one that
    lies in or below the folder; else None. A package that was found by name may be gone one day.
    """
    real = parent.resolve()
    for root in (folder.resolve(), shipped_recipes().resolve())[not pointed_at :]:
        if real.is_relative_to(root):
            name = real.relative_to(root)
            beside = folder.resolve() / name  # a file there comes first
            return name.as_posix() if beside == real or not beside.exists() else None
    return None


def _header(name: str, like: str, parent: str, extended: str | None) -> str:
    """Comments with the next steps."""
    lines = [
        f"check it:    upge validate {name}.yaml",
        f"compare it:  upge diff {like} {name}.yaml",
        f"run it:      upge run {name}.yaml train.steps=4",
        f"after both:  upge compare runs/{parent} runs/{name}",
    ]
    if extended:
        lines.append(f"A key that you delete here is {extended}'s again; null removes it.")
    return "".join(f"# {line}\n" for line in lines)


def _block(key: str, node: Node) -> str:
    """A block's original text with its comments, if it is in one file; else its values as YAML."""
    files = set(_files(node))
    text = _lines_of_block(Path(files.pop()), key) if len(files) == 1 and not _names_whole_path(node) else None
    return text or as_yaml({key: node})


def _names_whole_path(node: Node) -> bool:
    """Whether a class of a file elsewhere is named, whose path the original text doesn't have."""
    inner = tuple(node.value.values()) if isinstance(node.value, dict) else node.value
    if isinstance(inner, tuple):
        return any(map(_names_whole_path, inner))
    return isinstance(inner, str) and names_file(inner) and Path(inner).is_absolute()


def _files(node: Node) -> Iterator[str]:
    """The files that contain a node and the nodes below it."""
    yield node.place.file
    inner = tuple(node.value.values()) if isinstance(node.value, dict) else node.value
    if isinstance(inner, tuple):
        for inner_node in inner:
            yield from _files(inner_node)


def _lines_of_block(file: Path, key: str) -> str | None:
    """The lines of a file that contain a block; None if it shares a line with another."""
    root = read(file).value
    assert isinstance(root, dict)
    places = {name: node.key for name, node in root.items() if node.key is not None}
    if key not in places or any(place.column != 1 for place in places.values()):
        return None
    first = places[key].line
    after = [place.line for place in places.values() if place.line > first]
    lines = file.read_text(encoding="utf-8-sig").split("\n")[first - 1 : min(after) - 1 if after else None]
    while lines and (not lines[-1].strip() or lines[-1].startswith("#")):  # what comes before the next block
        lines.pop()
    return "".join(f"{line}\n" for line in lines)


_PACKAGE = re.compile(r"[a-z0-9]|[a-z0-9][a-z0-9._-]*[a-z0-9]", flags=re.IGNORECASE)
"""PEP 508's names of distributions."""
_PART = re.compile(r"[a-z][a-z0-9]*(_[a-z0-9]+)*")
_OURS = "upge_"
"""What most packages' modules start with, and their parts' names leave out."""


@dataclass(frozen=True)
class Names:
    """The names in a package with one part.

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
        hint = f"letters, digits, and '-', '_' or '.' between them; '{_package_like(package)}' would do"
        raise InputError(f"'{package}' can't be the name of a package: {hint}")


def names_of(package: str, slot: str, part: str | None) -> Names:
    """The names derived from a package's name; by default the part's name is the module's without `upge_`.

    Raises InputError for a name that is invalid or taken, with a valid one.
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
        advice = f"Python can't import a module called '{module}'; '{_package_like(f'upge-{package}')}' would do"
        raise InputError(f"'{package}' can't be the name of a package with a part: {advice}")
    if importlib.util.find_spec(module) is not None:
        hint = "" if module.startswith(_OURS) else f", for example '{_package_like(f'upge-{package}')}'"
        raise InputError(f"there is a module '{module}' already: choose another name{hint}")
    return module


def _check_part(part: str, kind: str, slot: str) -> None:
    if not _is_part(part, kind):
        advice = "small letters, digits and '_', a letter first, and neither 'recipes' nor a word of Python's own"
        raise InputError(f"'{part}' can't be the name of a part: {advice}; --part {_part_like(part)} would do")
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
    taken = {entry.name: entry.package for entry in shelved()}
    for path in files:
        if path.suffix == ".yaml" and path.stem in taken:
            hint = "choose another name: --part NAME"
            raise InputError(f"the package {taken[path.stem]} brings a recipe called '{path.stem}' already: {hint}")


def _check_class(files: Mapping[Path, str], names: Names) -> None:
    """Raise InputError if the class would shadow a name that its module or test needs, such as `mask`."""
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
