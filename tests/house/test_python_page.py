"""The page of Python names: it has each of them once, and Sphinx's autodoc can read their docstrings."""

from __future__ import annotations

import importlib
import inspect
import re
from pathlib import Path

import pytest

import upge
import upge.testing

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "python.md"
DIRECTIVE = re.compile(r"^\.\. auto(class|exception|function|data):: (\S+)$", re.MULTILINE)
ALIASES = {"upge.Follows"}
"""Older names of what the page has under its new one."""
PUBLIC = {
    f"{module.__name__}.{name}": getattr(module, name) for module in (upge, upge.testing) for name in module.__all__
}
PUBLIC["upge.train.run.train"] = importlib.import_module("upge.train.run").train
del PUBLIC["upge.train"]  # the package of that name, which can be called
sphinx = pytest.mark.needs("sphinx")


def directive_of(value: object) -> str:
    if isinstance(value, type):
        return "exception" if issubclass(value, BaseException) else "class"
    return "function" if inspect.isfunction(value) else "data"


def test_the_page_has_every_public_name_once_under_its_kind() -> None:
    listed = sorted((name, kind) for kind, name in DIRECTIVE.findall(PAGE.read_text()))
    assert listed == sorted((name, directive_of(value)) for name, value in PUBLIC.items() if name not in ALIASES)


@pytest.mark.parametrize("name", sorted(PUBLIC))
def test_the_methods_of_every_public_class_have_docstrings(name: str) -> None:
    kind = PUBLIC[name]
    members = vars(kind).items() if isinstance(kind, type) else ()
    methods = {key: getattr(each, "__func__", each) for key, each in members if not key.startswith("_")}
    kinds = (property, type(directive_of))
    assert [key for key, each in methods.items() if isinstance(each, kinds) and not each.__doc__] == []


@sphinx
@pytest.mark.parametrize(
    ("docstring", "blocks"),
    [
        ("A number of `x`s, a_i* and |t|.", ["A number of ``x``\\ s, a_i\\* and \\|t\\|."]),
        ("Reads `\\ud800`, or \\d, of open_.", ["Reads ``\\ud800``, or \\\\d, of open\\_."]),
        ("It moves.\n\n    f = x*y\n\nThen it stays.", ["It moves.", "::\n\n    f = x*y", "Then it stays."]),
        ("It moves:\n    f = x*y", ["It moves:", "::\n\n    f = x*y"]),
        ("Args: a: one. b, c: `two`.", ["Args:\n    a: one.\n    b: ``two``.\n    c: ``two``."]),
        ("Args:\n    a: one\n        line. b: (N,) bool: two.", ["Args:\n    a: one line.\n    b: (N,) bool: two."]),
        ("Of arXiv 2402.03300.", ["Of `arXiv 2402.03300 <https://arxiv.org/abs/2402.03300>`__."]),
    ],
)
def test_a_docstring_becomes_what_sphinx_reads(docstring: str, blocks: list[str]) -> None:
    from docstrings import restructured

    assert list(restructured(docstring)) == blocks


@sphinx
def test_constants_have_the_docstrings_of_where_they_are_assigned() -> None:
    from docstrings import fill_in_constants

    source = ["before\n.. autodata:: upge.Number\n.. autoclass:: upge.Batch\n"]
    fill_in_constants(None, "reference/python", source)
    text = "A float or a ``Schedule``; the field type for whatever may move with the step."
    assert source == [f"before\n.. py:data:: upge.Number\n\n   {text}\n.. autoclass:: upge.Batch\n"]
