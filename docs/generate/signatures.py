"""What Python says of a name: its signature as it is written, and docstrings that are not kept at run time."""

from __future__ import annotations

import ast
import functools
import importlib
import inspect
import itertools
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

WIDE = 100
"""How wide a signature gets before it is broken."""


class _Written(str):
    """A text that a signature shows as it is, and not in quotes."""

    __slots__ = ()
    __repr__ = str.__str__


def signature(value: Callable[..., Any]) -> inspect.Signature:
    """The signature with its annotations as they are written, without `self`; a class is said to return nothing."""
    said = inspect.signature(value)
    parameters = [
        each.replace(annotation=_written(each.annotation), default=_default(each.default))
        for name, each in said.parameters.items()
        if name not in ("self", "cls")
    ]
    returned = inspect.Signature.empty if isinstance(value, type) else _written(said.return_annotation)
    return said.replace(parameters=parameters, return_annotation=returned)


def call(name: str, said: inspect.Signature) -> str:
    """The call as it is written: in one line, or where that is too wide a parameter a line."""
    if len(f"{name}{said}") <= WIDE:
        return f"{name}{said}"
    parameters = "".join(f"    {each},\n" for each in _parameters(said))
    return f"{name}(\n{parameters}){str(said.replace(parameters=[])).removeprefix('()')}"


def _parameters(said: inspect.Signature) -> Iterator[str]:
    """Each parameter, and the star before those that are given by name only."""
    kinds = [each.kind for each in said.parameters.values()]
    for index, each in enumerate(said.parameters.values()):
        if each.kind is each.KEYWORD_ONLY and not {each.KEYWORD_ONLY, each.VAR_POSITIONAL} & set(kinds[:index]):
            yield "*"
        yield str(each)


def _written(annotation: Any) -> Any:
    return _Written(annotation) if isinstance(annotation, str) else annotation


def _default(value: Any) -> Any:
    return _Written(value.__name__) if inspect.isfunction(value) else value


def is_member(name: str, member: Any) -> bool:
    """Whether it is a public method or property."""
    if name.startswith("_") and name != "__call__":
        return False
    kinds = (property, functools.cached_property, classmethod, staticmethod, types.FunctionType)
    return isinstance(member, kinds)


def constant_docstring(name: str) -> str:
    """The text below the assignment of a public constant, in whichever of the package's files it is at home.

    Raises LookupError where there is none.
    """
    package, _, bare = name.rpartition(".")
    for file in sorted(Path(importlib.import_module(package).__file__ or "").parent.glob("*.py")):
        for assigned, text in itertools.pairwise(ast.parse(file.read_text(encoding="utf-8")).body):
            names = [ast.unparse(target) for target in assigned.targets] if isinstance(assigned, ast.Assign) else []
            if names == [bare] and isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant):
                return str(text.value.value)
    raise LookupError(f"{name} has no docstring")
