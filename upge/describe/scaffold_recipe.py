"""A new recipe that starts as another one."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq

from upge.errors import InputError
from upge.recipe.catalog import find_recipe, shelved, shipped_recipes
from upge.recipe.keys import shorthand
from upge.recipe.resolve import check
from upge.recipe.yaml import Node, read

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
    """What is said of a file or folder that is there."""
    return f"there is a '{path}' already; nothing is written over"


def as_yaml(members: Mapping[str, Node | str]) -> str:
    """A recipe's keys and values as YAML: the shorthands for parts, short maps on one line, numbers as they stood."""
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


def new_recipe(name: str, like: str, folder: Path = Path()) -> Path:
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
    checked = check(parent)
    if checked.recipe is None:
        raise InputError(f"'{like}' is a fragment to extend: it has no estimator to start from")
    extended = _extendable(parent, folder, pointed_at=parent == Path(like))
    header = _header(name, like, checked.recipe.name, extended)
    return write_new(target, header + _text(name, checked.recipe.name, checked.composed.root, extended))


def _text(name: str, parent: str, root: Node, extended: str | None) -> str:
    """The recipe: what it extends, or else all that its parent says, and in either case the parent's estimator."""
    assert isinstance(root.value, dict)
    own: dict[str, Node | str] = {"extends": extended} if extended else {}
    own |= {"name": name, "about": f"{parent}, until you change it"}
    if not extended:
        own |= {key: node for key, node in root.value.items() if key not in (*own, "abstract", "estimator")}
    return as_yaml(own) + _block("estimator", root.value["estimator"])


def _check_name(name: str) -> None:
    stem = re.sub(r"\.ya?ml$", "", name)
    if _NAME.fullmatch(stem) is None:
        like = re.sub(r"[^\w.+-]+", "_", Path(stem).name).lstrip(".+-") or "mine"
        wanted = f"letters, digits, and '.', '+', '-', '_' after the first; '{like}' would do"
        raise InputError(f"'{name}' can't be the name of a recipe: {wanted} (set the folder with --folder)")
    if stem != name:
        raise InputError(f"'{name}' is a file; name the recipe alone: '{stem}'")
    for each in shelved():
        if each.name == name:
            raise InputError(f"the package {each.package} brings a recipe called '{name}' already: choose another name")


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
    """What to do with the recipe, as comments."""
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
    """A block as its author wrote it, comments and all, where one file says all of it; else written anew."""
    files = set(_files(node))
    text = _said(Path(files.pop()), key) if len(files) == 1 else None
    return text or as_yaml({key: node})


def _files(node: Node) -> Iterator[str]:
    """The files that say a node and what is below it."""
    yield node.place.file
    inner = tuple(node.value.values()) if isinstance(node.value, dict) else node.value
    if isinstance(inner, tuple):
        for each in inner:
            yield from _files(each)


def _said(file: Path, key: str) -> str | None:
    """The lines of a file that hold a block; None where it doesn't stand on lines of its own."""
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
