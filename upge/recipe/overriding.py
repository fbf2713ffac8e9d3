"""Overrides from the command line: `estimator.terms.rl.mask.high=0.28`."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace

from upge.recipe.building import MAX_DEPTH
from upge.recipe.faults import Fault, Place, RecipeError, quoted
from upge.recipe.layers import Shorthand, expand, merge
from upge.recipe.nodes import Node, describe
from upge.recipe.reading import parse_value
from upge.recipe.sources import COMMAND_LINE, Source

_INDEX = re.compile("0|[1-9][0-9]{0,8}")


@dataclass(frozen=True)
class Step:
    """One name of a dotted path, and where it stands in the override."""

    name: str
    place: Place


@dataclass(frozen=True)
class Override:
    """`a.b=value`, read: the steps to where it belongs, and the value's tree (null to remove what is there)."""

    steps: tuple[Step, ...]
    value: Node

    @property
    def path(self) -> tuple[str, ...]:
        """The steps' names."""
        return tuple(step.name for step in self.steps)


def parse_override(text: str, index: int) -> Override:
    """The override `text`, the `index`-th (from 1) on the command line.

    Raises:
        RecipeError: no "=", an empty name in the path or an empty value, a path to `extends`, a value that is no YAML.
    """
    dotted, equals, value = text.partition("=")
    whole = Source(COMMAND_LINE, text, override=index)
    if not equals:
        raise _error("an override needs a '='", whole.place(0, len(text)), f"write {dotted.strip() or 'a.b'}=value")
    steps = tuple(_steps(dotted, whole))
    _check(steps, whole.place(0, len(dotted)))
    node = parse_value(Source(COMMAND_LINE, value, override=index, before=dotted + equals))
    if node is None:
        hint = "null removes the key; '' is the empty text"
        raise _error("an override needs a value after the '='", whole.place(len(dotted)), hint)
    return Override(steps, replace(node, key=steps[-1].place))


def apply(root: Node, override: Override, shorthand: Shorthand) -> Node:
    """The tree with the override's value merged in at its path; maps that are missing on the way are made.

    Raises:
        RecipeError: the path leads into a scalar, or into a list by anything but the index of one of its items.
    """
    return _put(root, override.steps, expand(override.value, override.path, shorthand), ())


def _steps(dotted: str, whole: Source) -> Iterator[Step]:
    start = 0
    for part in dotted.split("."):
        name = part.strip()
        first = start + len(part) - len(part.lstrip())
        yield Step(name, whole.place(first, first + max(1, len(name))))
        start += len(part) + 1


def _check(steps: tuple[Step, ...], place: Place) -> None:
    for step in steps:
        if not step.name:
            raise _error("a name is missing in this path", step.place, "write names with one '.' between them")
    if steps[0].name == "extends":
        raise _error(
            "an override cannot change what a recipe extends", steps[0].place, "write a recipe that extends it"
        )
    if len(steps) > MAX_DEPTH:
        raise _error(f"a path of more than {MAX_DEPTH} names", place)


def _put(node: Node, steps: tuple[Step, ...], value: Node, done: tuple[str, ...]) -> Node:
    """`node`, at the path `done`, with `value` merged in where `steps` lead."""
    if not steps:
        return merge(node, value)
    step, rest = steps[0], steps[1:]
    if isinstance(node.value, tuple):
        index = _index(node.value, step, done)
        if not rest and value.value is None:
            raise _error(
                "an item of a list cannot be removed", step.place, f"write the whole list: {'.'.join(done)}=[...]"
            )
        item = _put(node.value[index], rest, value, (*done, step.name))
        return replace(node, value=(*node.value[:index], item, *node.value[index + 1 :]))
    if node.value is None:
        # Removed by an earlier layer, or left empty: the override starts it anew.
        node = Node({}, step.place, node.key)
    if not isinstance(node.value, dict):
        message = f"{'.'.join(done)} is {describe(node)}, which has nothing named {quoted(step.name)}"
        raise _error(message, step.place)
    inner = node.value.get(step.name, Node(None, step.place, step.place))
    return replace(node, value={**node.value, step.name: _put(inner, rest, value, (*done, step.name))})


def _index(items: tuple[Node, ...], step: Step, done: tuple[str, ...]) -> int:
    path = ".".join(done)
    if not _INDEX.fullmatch(step.name):
        hint = f"write {path}.0 for its first item" if items else f"write {path}=[...]"
        raise _error(f"{path} is a list, which {quoted(step.name)} cannot index", step.place, hint)
    if int(step.name) >= len(items):
        hint = f"its items are 0 to {len(items) - 1}" if items else f"write {path}=[...]"
        raise _error(f"{path} has no item {step.name}, being a list of {len(items)}", step.place, hint)
    return int(step.name)


def _error(message: str, place: Place, hint: str | None = None) -> RecipeError:
    return RecipeError([Fault(message, place, hint)])
