"""The JSON Schema of a slot: the choice among the installed parts.

An editor's messages are only as good as the schema is pointed: where one of many alternatives must fit, it names the
wrong one. So nothing here is an alternative that can fail. Each rule asks first whether it applies (`if`), by what kind
of value there is and by what `use` names, and its `then` has the one thing that is wrong to say.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from upge import discovery
from upge.editor.hints import in_outline, markdown, offering, snippet, to_fill, with_article
from upge.parts import SLOTS, Part

Schema = dict[str, Any]

HIDDEN: Schema = {"doNotSuggest": True}
"""A key that may stand there, and that an editor doesn't propose."""

_SYNTAX = re.compile(r"[\\^$.*+?()\[\]{}|]")
"""What means something in ECMAScript's regular expressions as in Python's."""


@dataclass(frozen=True)
class Choice:
    """An installed part that a recipe may choose for a slot; `alone` if no other package offers its name there."""

    slot: str
    name: str
    package: str
    kind: type[Part]
    alone: bool

    @property
    def full(self) -> str:
        """Its name with its package's, which always names it."""
        return f"{self.package}/{self.name}"

    @property
    def label(self) -> str:
        """Its name, as short as it can be said."""
        return self.name if self.alone else self.full

    @property
    def title(self) -> str:
        """What an editor heads its explanations with."""
        return f"{self.slot} {self.label}"

    @property
    def documentation(self) -> str:
        """Its docstring, in Markdown."""
        return markdown(inspect.cleandoc(self.kind.__doc__ or ""))

    @property
    def pattern(self) -> str:
        """A regular expression of the names it has."""
        package, name = _escaped(f"{self.package}/"), _escaped(self.name)
        return f"^(?:{package})?{name}$" if self.alone else f"^{package}{name}$"

    @property
    def needed(self) -> tuple[str, ...]:
        """The parameters that a recipe must give: those without a default that follow no other value."""
        fields = self.kind.fields().items()
        return tuple(
            name for name, field in fields if field.is_required() and not follows_another(field.json_schema_extra)
        )


Parts = Mapping[Choice, tuple[Schema, Schema]]
"""For each part the reference to its schema, and this schema."""


def _escaped(name: str) -> str:
    return _SYNTAX.sub(r"\\\g<0>", name)


def follows_another(extra: object) -> bool:
    """Whether a parameter takes its value, unless given, from elsewhere in the recipe, by its `json_schema_extra`."""
    return isinstance(extra, dict) and "follows" in extra


def installed() -> tuple[dict[str, list[Choice]], list[str]]:
    """The parts that there are for each slot, imported; and what is wrong with those that can't be."""
    choices: dict[str, list[Choice]] = {slot: [] for slot in SLOTS}
    faults = []
    for offer in discovery.offers():
        alone = sum(other.name == offer.name for other in discovery.offers(offer.slot)) == 1
        try:
            kind = discovery.load(offer, SLOTS[offer.slot])
        except discovery.Unknown as unknown:
            faults.append(str(unknown))
        else:
            choices[offer.slot].append(Choice(offer.slot, offer.name, offer.package, kind, alone))
    return choices, faults


def choice(slot: str, parts: Parts, *, whole: bool) -> Schema:
    """The schema of one part: its name alone, or a map of `use` and its parameters.

    Args:
        slot: what the part is for.
        parts: for each part the reference to its schema, and this schema.
        whole: whether `use` must be there; else a map without it changes parameters of an extended recipe's part.
    """
    names = {"allOf": [_name(slot, parts), *map(_alone, parts)]}
    snippets = [snippet(part.label, _written(part), part.documentation) for part in parts]
    message = f"should be {with_article(slot)}: its name, or a map of 'use' and parameters"
    return {
        "title": slot,
        "anyOf": offering(defaultSnippets=snippets),
        "allOf": [
            {"if": {"type": ["string", "object"]}, "else": {"type": "object", "errorMessage": message}},
            {"if": {"type": "string"}, "then": names},
            {"if": {"type": "object"}, "then": _map(slot, parts, whole=whole)},
        ],
    }


def one_or_several(slot: str, one: Schema) -> Schema:
    """The schema of one part or a list of them, of the reference to that of one."""
    # The empty `properties` tell it from that of one part, which has the same title: see `offering`.
    proposed = {"title": slot, "properties": {}, "anyOf": offering(allOf=[one])}
    return proposed | {"if": {"type": "array"}, "then": {"items": one}, "else": one}


def _written(part: Choice) -> str:
    """The part as short as a recipe can say it."""
    return to_fill(part.needed, use=part.label) if part.needed else part.label


def _name(slot: str, parts: Parts) -> Schema:
    """Names that lead to a part: `name`, `package/name`, or `file.py:Class`."""
    full = "|".join(_escaped(part.full) for part in parts)
    rule: Schema = {
        "if": {"type": "string", "pattern": "[/:]"},
        "then": {"pattern": rf"^(?:{full})$|\.py:", "errorMessage": f"no installed package offers this {slot}"},
        "else": {
            "enum": sorted(part.name for part in parts if part.alone),
            "errorMessage": f"no {slot} is called this; there are {', '.join(sorted(part.label for part in parts))}",
        },
    }
    for name in sorted({part.name for part in parts if not part.alone}):
        names = [part.full for part in parts if part.name == name]
        message = f"{len(names)} packages offer a {slot} called '{name}'; say which: {' or '.join(names)}"
        rule = {"if": {"const": name}, "then": {"enum": names, "errorMessage": message}, "else": rule}
    return rule


def _alone(part: Choice) -> Schema:
    """What there is to say of a name alone: what the part is, or that it needs parameters."""
    told: Schema = {"title": part.title, "markdownDescription": part.documentation}
    if part.needed:
        message = f"'{part.label}' needs {' and '.join(part.needed)}: {in_outline(part.needed, use=part.label)}"
        told |= {"type": "object", "errorMessage": message}  # which a name never is
    return {"if": {"pattern": part.pattern}, "then": told}


def _map(slot: str, parts: Parts, *, whole: bool) -> Schema:
    names = offering(defaultSnippets=[snippet(part.label, part.label, part.documentation) for part in parts])
    rules = [_where_used(part) | {"then": reference} for part, (reference, _) in parts.items()]
    made: Schema = {"properties": {"use": {"anyOf": names, "allOf": [_name(slot, parts)]}}, "allOf": rules}
    if whole:
        return made | {"required": ["use"]}
    changes = {"properties": {"use": HIDDEN, **_any_parameter(slot, parts)}, "additionalProperties": False}
    return made | {"if": {"not": {"required": ["use"]}}, "then": changes}


def _where_used(part: Choice) -> Schema:
    return {"if": {"properties": {"use": {"type": "string", "pattern": part.pattern}}, "required": ["use"]}}


def _any_parameter(slot: str, parts: Parts) -> Schema:
    """The parameters of all parts, for a map that doesn't say which part's it changes."""
    found: dict[str, list[Schema]] = {}
    for _, schema in parts.values():
        for key, value in schema.get("properties", {}).items():
            if key != "use" and (shared := _titled(value, slot)) not in found.setdefault(key, []):
                found[key].append(shared)
    return {key: HIDDEN | (values[0] if len(values) == 1 else {"anyOf": values}) for key, values in found.items()}


def _titled(value: Schema, title: str) -> Schema:
    first, *others = value["anyOf"]
    return value | {"anyOf": [first | {"title": title} if "title" in first else first, *others]}
