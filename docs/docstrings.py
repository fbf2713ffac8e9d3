"""What lets Sphinx's autodoc read our docstrings: Markdown, with the sections of Google's style.

Napoleon reads the sections. This comes before it: formulas become literal blocks, backticks are doubled, and what only
reStructuredText would take for markup is escaped.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator
from typing import Any

from docutils import nodes
from generate.markdown import ARXIV, apart, section
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.pycode import ModuleAnalyzer

import upge
from upge.part import StrictModel

BEFORE_NAPOLEON = 400
PUBLIC = frozenset(each for name in upge.__all__ if isinstance(each := getattr(upge, name), type))
_CODE = re.compile(r"(`[^`]+`)")
_CONSTANT = re.compile(r"^\.\. autodata:: (\S+)$", re.MULTILINE)


def setup(app: Sphinx) -> dict[str, Any]:
    """Registers the hooks."""
    app.connect("source-read", fill_in_constants)
    app.connect("autodoc-process-docstring", read_docstring, priority=BEFORE_NAPOLEON)
    app.connect("autodoc-process-signature", write_signature)
    app.connect("missing-reference", link_to_public_name)
    return {"parallel_read_safe": True}


def fill_in_constants(app: Sphinx, page: str, source: list[str]) -> None:
    """Replaces `autodata`: it looks for the docstring where a name is imported, and shows the validators of a type."""

    def constant(match: re.Match[str]) -> str:
        home, name = upge._HOME_OF, match[1].rpartition(".")[2]
        lines = ModuleAnalyzer.for_module(home[name]).find_attr_docs()["", name]
        return f".. py:data:: {match[1]}\n\n" + textwrap.indent("\n\n".join(restructured("\n".join(lines))), "   ")

    source[0] = _CONSTANT.sub(constant, source[0])


def read_docstring(app: Sphinx, what: str, name: str, value: Any, options: Any, lines: list[str]) -> None:
    """Replaces a docstring's lines by reStructuredText."""
    blocks = list(restructured("\n".join(lines)))
    if what in ("attribute", "property"):
        blocks.insert(0, "..")  # a comment: Napoleon takes what stands before a colon in the first line for a type
    if isinstance(value, type) and (base := next((base for base in value.__mro__[1:] if base in PUBLIC), None)):
        blocks.append(f"It has all that :py:class:`upge.{base.__name__}` has.")
    lines[:] = [line for block in blocks for line in (*block.split("\n"), "")]


def restructured(docstring: str) -> Iterator[str]:
    """The docstring's blocks as reStructuredText."""
    for block in re.split(r"\n\n+", apart(docstring).strip("\n")):
        if found := section(block):
            title, entries = found
            yield "\n".join([f"{title}:", *(f"    {each}" for entry in entries for each in _named(entry))])
        elif block.startswith("    "):
            yield f"::\n\n{block}"
        else:
            yield _escaped(block)


def _named(entry: str) -> Iterator[str]:
    """The entry of a section; one of several names as an entry each."""
    names, colon, text = entry.partition(": ")
    for name in names.split(", ") if colon else ():
        yield f"{name}: {_escaped(text)}"
    if not colon:
        yield _escaped(entry)


def _escaped(text: str) -> str:
    """The text with what isn't meant as markup escaped, and links to the papers that it names."""
    pieces = _CODE.split(text)
    for index, piece in enumerate(pieces):
        if index % 2:
            plural = pieces[index + 1][:1].isalnum()  # `Response`s
            pieces[index] = f"`{piece}`" + "\\ " * plural
        else:
            escaped = re.sub(r"[*|\\]|(?<=\w)_(?!\w)", r"\\\g<0>", piece)
            pieces[index] = ARXIV.sub(r"`arXiv \1 <https://arxiv.org/abs/\1>`__", escaped)
    return "".join(pieces)


def write_signature(
    app: Sphinx, what: str, name: str, value: Any, options: Any, signature: str | None, returned: str | None
) -> tuple[str | None, str | None]:
    """The signature; of settings their fields' names, whose types follow one by one; of a protocol none."""
    if not isinstance(value, type):
        return signature, returned
    if getattr(value, "_is_protocol", False):
        return "", None
    if issubclass(value, StrictModel):
        fields = (f"{key}{'' if field.is_required() else '=…'}" for key, field in value.model_fields.items())
        return f"({', '.join(['*', *fields])})" if value.model_fields else "()", None
    return signature, returned


def link_to_public_name(
    app: Sphinx, env: BuildEnvironment, link: pending_xref, text: nodes.TextElement
) -> nodes.Node | None:
    """The link to a public name, where an annotation names its home; a name of another package stays text."""
    if link.get("refdomain") != "py":
        return None
    name = link["reftarget"].rpartition(".")[2]
    found = env.domains["py"].resolve_xref(env, link["refdoc"], app.builder, "obj", f"upge.{name}", link, text)
    return found or text
