"""What an editor says of a key or a value: docstrings in Markdown, and what a schema bounds."""

from __future__ import annotations

import json
import re
import textwrap
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

_FORMULA = re.compile(r"(?:^ {4}.*\n?)+", flags=re.MULTILINE)
"""An indented block of a docstring."""

_LAST_LINES = re.compile(r"\n(?=(?:Shapes|Units|Source): )")
"""Before what a part's docstring ends with."""

_BOUNDS = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}


def explained(schema: Mapping[str, Any], *, of: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The schema with its description in Markdown too, and below it default and bounds, those of `of` included."""
    facts = " · ".join(_facts({**(of or {}), **schema}))
    paragraphs = [markdown(schema.get("description", "")), facts and f"*{facts}*"]
    text = "\n\n".join(paragraph for paragraph in paragraphs if paragraph)
    return {**schema, "markdownDescription": text} if text else dict(schema)


def proposals(snippets: Iterable[Mapping[str, str]]) -> list[dict[str, Any]]:
    """Alternatives for an `anyOf` that holds of everything, with what an editor proposes.

    The first one fits anything, the second nothing; the title and the empty `properties` keep the language server from
    taking them for others when it looks which alternatives a value fits.
    """
    return [{"properties": {}}, {"title": "proposals", "not": {}, "defaultSnippets": [*snippets]}]


def markdown(docstring: str) -> str:
    """A docstring as Markdown: its formulas as code, and its last lines a paragraph each."""
    return _LAST_LINES.sub("\n\n", _FORMULA.sub(lambda block: _fenced(block[0]), docstring)).strip()


def _fenced(block: str) -> str:
    return f"\n```text\n{textwrap.dedent(block).strip()}\n```\n"


def _facts(schema: Mapping[str, Any]) -> Iterator[str]:
    if "follows" in schema:
        yield f"follows {schema['follows']} unless given"
    if "default" in schema:
        default = schema["default"]
        yield f"default: {default if isinstance(default, str) else json.dumps(default)}"
    yield from (f"{sign} {schema[key]:g}" for key, sign in _BOUNDS.items() if key in schema)
