"""docs/reference/python.md: the names that Python users import, from their docstrings.

Not Sphinx's autodoc, though Sphinx builds the site: our docstrings are Markdown and it reads reStructuredText, in which
a formula is a quotation, `(N,) bool:` a type and `|` an error; and its page would be on the site only.
"""

from __future__ import annotations

import inspect
import textwrap
import types
from collections.abc import Iterator, Sequence
from typing import Any

import upge
import upge.testing
from generate.fields import fields_of, fields_table
from generate.markdown import page, prose
from generate.signatures import call, constant_docstring, is_member, signature
from upge.part import Part, StrictModel

GROUPS = {
    "Recipes": ("load", "Recipe", "RecipeError"),
    "The gradient": ("Batch", "Estimator", "Term", "Credit"),
    "What parts are made of": (
        *("Part", "Mask", "Denominator", "Advantage", "Switch", "Reduction", "Shaping", "View", "register"),
        *(
            "DefaultFrom",
            "AReward",
            "SomeData",
            "Number",
            "Schedule",
            "Within",
            "at",
            "Code",
            "function_of",
            "PartError",
        ),
        *("error_text", "as_score", "as_list", "opened", "Terminated", "did_you_mean"),
    ),
    "Where problems, scores and responses come from": (
        *("Data", "Reward", "Engine", "Context", "DataSession", "RewardSession", "EngineSession"),
        *("Problem", "Message", "Request", "Response", "Sampling", "Completion", "Trajectory"),
    ),
    "Models": ("load_policy", "Policy", "ModelError", "InputError"),
    "Files that anybody may have written": ("parse_json", "read_text", "regular_file"),
}
INTRODUCTION = """\
# Python

What `import upge` gives; a name is imported when it is first used. Shapes: T tokens of N trajectories of G prompts.
`python docs/tables.py` makes this page from the docstrings.
"""
TESTING = """\
## upge.testing

The laws, for any part and any estimator. Drawing examples needs Hypothesis, which `pip install 'upge[test]'` brings.
"""
BLOCKS = {
    upge.Recipe: "the-top-level",
    upge.Estimator: "estimator",
    upge.Term: "estimatortermsname",
    upge.Schedule: "schedule",
}
"""The settings whose fields are on the page of a recipe's blocks, and where."""
ALIASES = frozenset({"Follows"})
"""Older names of what stands under its new one."""
PUBLIC = frozenset(each for name in upge.__all__ if isinstance(each := getattr(upge, name), type))


def python_page() -> str:
    """The page. Raises ValueError where a public name is in no group."""
    grouped = [name for names in GROUPS.values() for name in names]
    public = [name for name in upge.__all__ if name not in ALIASES]
    if sorted(grouped) != sorted(public):
        raise ValueError(f"generate/python.py: in no group, or unknown: {sorted(set(grouped) ^ set(public))}")
    groups = (block for title, names in GROUPS.items() for block in _group(f"## {title}", upge, names))
    return page(INTRODUCTION, *groups, *_group(TESTING, upge.testing, upge.testing.__all__))


def _group(title: str, module: types.ModuleType, names: Sequence[str]) -> Iterator[str]:
    yield title
    for name in names:
        yield from _entry(f"{module.__name__}.{name}", getattr(module, name))


def _entry(name: str, value: Any) -> Iterator[str]:
    yield f"### `{name}`"
    if isinstance(value, type):
        yield from _class(name, value)
    elif inspect.isfunction(value):
        yield from (_call(name, value), prose(value.__doc__))
    else:
        yield prose(constant_docstring(name))


def _class(name: str, kind: type) -> Iterator[str]:
    settings = issubclass(kind, StrictModel)
    # Settings are called with their fields, which follow; protocols and plain exceptions by nobody who reads this.
    if inspect.isfunction(vars(kind).get("__init__")) and not settings and not getattr(kind, "_is_protocol", False):
        yield _call(name, kind)
    yield prose(vars(kind).get("__doc__"))
    if (base := _public_base(kind)) is not None:
        yield f"It has all that [`upge.{base.__name__}`](#upge{base.__name__.lower()}) has."
    if settings:
        yield _fields(kind)
    if members := "\n".join(_member(each, member) for each, member in _members(kind)):
        yield from ("Methods and properties:", members)


def _fields(kind: type[StrictModel]) -> str:
    if kind in BLOCKS:
        return f"Its fields are [the keys of the YAML block](recipe.md#{BLOCKS[kind]})."
    own = _own_fields(kind)
    return fields_table(own) if own else ""


def _call(name: str, value: Any) -> str:
    return f"```py\n{call(name, signature(value))}\n```"


def _member(name: str, member: Any) -> str:
    """An item of a list: the call, or the property's name, and the docstring."""
    shown = f"{name}{signature(member)}" if inspect.isfunction(member) else name
    text = prose(member.__doc__)
    return f"- `{shown}`" + (f": {textwrap.indent(text, '  ').lstrip()}" if text else "")


def _members(kind: type) -> Iterator[tuple[str, Any]]:
    """The public methods and properties of a class, and of its bases that have no entry of their own."""
    for base in _own_bases(kind):
        for name, member in vars(base).items():
            if is_member(name, member):
                yield name, getattr(member, "__func__", member)


def _own_bases(kind: type) -> Iterator[type]:
    public = _public_base(kind)
    for base in kind.__mro__:
        inherited = public is not None and issubclass(public, base)
        # What all settings have is of use to those who write parts; elsewhere it would only be in the way.
        if base.__module__.startswith("upge") and not inherited and (base is not StrictModel or kind is Part):
            yield base


def _own_fields(kind: type[StrictModel]) -> dict[str, Any]:
    public = _public_base(kind)
    inherited = public.model_fields if public is not None and issubclass(public, StrictModel) else {}
    return {key: field for key, field in fields_of(kind).items() if key not in inherited}


def _public_base(kind: type) -> type | None:
    return next((base for base in kind.__mro__[1:] if base in PUBLIC), None)
