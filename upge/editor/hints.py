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


def offering(**proposed: Any) -> list[dict[str, Any]]:
    """Alternatives for an `anyOf` that holds of everything: an editor proposes what the second of them says.

    The first fits any value, and the second none; by the title and the empty `properties` the language server tells
    them from other schemas when it looks which alternatives a value fits.
    """
    return [{"properties": {}}, {"title": "proposals", "not": {}, **proposed}]


def snippet(label: str, text: str, documentation: str = "") -> dict[str, str]:
    """A proposal, with `$1`, `$2`, … where the cursor goes next, and what there is to say of it in Markdown."""
    return {"label": label, "bodyText": text, "markdownDescription": documentation}


def to_fill(needed: Iterable[str], **known: str) -> str:
    """`{use: clip, low: $1, high: $2}`: a map in YAML with places for what it needs."""
    return _flow(known | {key: f"${index}" for index, key in enumerate(needed, start=1)})


def in_outline(needed: Iterable[str], **known: str) -> str:
    """`{use: clip, low: …, high: …}`: the same for people."""
    return _flow(known | dict.fromkeys(needed, "…"))


def _flow(values: Mapping[str, str]) -> str:
    return f"{{{', '.join(f'{key}: {value}' for key, value in values.items())}}}"


def with_article(noun: str) -> str:
    """The noun with its article."""
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def markdown(docstring: str) -> str:
    """A docstring as Markdown: its formulas as code, and its last lines a paragraph each."""
    text = _LAST_LINES.sub("\n\n", _FORMULA.sub(lambda block: _fenced(block[0]), docstring))
    return re.sub(r"\n{3,}", "\n\n", text).strip()


def _fenced(block: str) -> str:
    return f"\n```text\n{textwrap.dedent(block).strip()}\n```\n"


def _facts(schema: Mapping[str, Any]) -> Iterator[str]:
    if "follows" in schema:
        yield f"follows {schema['follows']} unless given"
    if "default" in schema:
        default = schema["default"]
        shown = f"{default:g}" if isinstance(default, float) else json.dumps(default, ensure_ascii=False)
        yield f"default: {default if isinstance(default, str) else shown}"
    yield from (f"{sign} {schema[key]:g}" for key, sign in _BOUNDS.items() if key in schema)
