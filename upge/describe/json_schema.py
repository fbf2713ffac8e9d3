"""The JSON Schema of recipes, made of what is installed: editors complete, explain and check by it.

Pydantic writes the schemas of blocks and parts. This module adds the other forms of YAML: a part by its name
or with its parameters, one or several; a null that removes; a file that extends others and so may leave anything out.

It is draft-07, which editors know best, with four keywords of the YAML language server that other validators ignore:
`markdownDescription`, `errorMessage`, `defaultSnippets` and `doNotSuggest`.
"""

from __future__ import annotations

import inspect
import json
import re
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic.json_schema import CoreRef, GenerateJsonSchema, JsonRef, JsonSchemaValue, JsonSchemaWarningKind
from pydantic_core import core_schema as core

from upge import registry
from upge.part import ALSO, SLOTS, Part, StrictModel
from upge.recipe.catalog import shipped_recipes
from upge.recipe.keys import shorthand
from upge.recipe.schema import Recipe

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
    """Alternatives for an `anyOf` that accepts everything: an editor proposes the second one.

    The first fits any value, and the second none. By the title and the empty `properties` the language server
    distinguishes them from other schemas when it selects the alternatives that a value fits.
    """
    return [{"properties": {}}, {"title": "proposals", "not": {}, **proposed}]


def snippet(label: str, text: str, documentation: str = "") -> dict[str, str]:
    """A proposal with `$1`, `$2`, … at the cursor's next positions, and its documentation in Markdown."""
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


Schema = dict[str, Any]

HIDDEN: Schema = {"doNotSuggest": True}
"""A key that is valid, but that an editor doesn't propose."""

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
        """The part's shortest unambiguous name."""
        return self.name if self.alone else self.full

    @property
    def title(self) -> str:
        """The title of the part in an editor."""
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
    for offer in registry.entries():
        alone = sum(other.name == offer.name for other in registry.entries(offer.slot)) == 1
        try:
            kind = registry.load(offer, SLOTS[offer.slot])
        except registry.UnknownPartError as unknown:
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
    # The empty `properties` distinguish it from the schema of one part with the same title: see `offering`.
    proposed = {"title": slot, "properties": {}, "anyOf": offering(allOf=[one])}
    return proposed | {"if": {"type": "array"}, "then": {"items": one}, "else": one}


def _written(part: Choice) -> str:
    """The shortest YAML value of the part."""
    return to_fill(part.needed, use=part.label) if part.needed else part.label


def _name(slot: str, parts: Parts) -> Schema:
    """Names that lead to a part: `name`, `package/name`, or `file.py:Class`."""
    full = "|".join(_escaped(part.full) for part in parts)
    rule: Schema = {
        "if": {"type": "string", "pattern": "[/:]"},
        "then": {"pattern": rf"^(?:{full})$|\.py:", "errorMessage": f"no installed package offers this {slot}"},
        "else": _bare(slot, parts),
    }
    for name in sorted({part.name for part in parts if not part.alone}):
        names = [part.full for part in parts if part.name == name]
        message = f"{len(names)} packages define a {slot} called '{name}'; write one of: {' or '.join(names)}"
        rule = {"if": {"const": name}, "then": {"enum": names, "errorMessage": message}, "else": rule}
    return rule


def _bare(slot: str, parts: Parts) -> Schema:
    """A name without its package."""
    names = sorted(part.name for part in parts if part.alone)
    if not names:  # draft-07 refuses an empty `enum`, and with it the whole schema
        return {"not": {}, "errorMessage": f"no installed {slot} has a name of its own; write file.py:Class"}
    labels = ", ".join(sorted(part.label for part in parts))
    return {"enum": names, "errorMessage": f"no {slot} is called this; there are {labels}"}


def _alone(part: Choice) -> Schema:
    """The schema of a bare name: the part's documentation, or the message that it needs parameters."""
    described: Schema = {"title": part.title, "markdownDescription": part.documentation}
    if part.needed:
        message = f"'{part.label}' needs {' and '.join(part.needed)}: {in_outline(part.needed, use=part.label)}"
        described |= {"type": "object", "errorMessage": message}  # which a name never is
    return {"if": {"pattern": part.pattern}, "then": described}


def _map(slot: str, parts: Parts, *, whole: bool) -> Schema:
    names = offering(defaultSnippets=[snippet(part.label, part.label, part.documentation) for part in parts])
    rules = [_where_used(part) | {"then": reference} for part, (reference, _) in parts.items()]
    made: Schema = {"properties": {"use": {"anyOf": names, "allOf": [_name(slot, parts)]}}}
    made |= {"allOf": rules} if rules else {}  # a slot may have no installed part
    if whole:
        return made | {"required": ["use"]}
    changes = {"properties": {"use": HIDDEN, **_any_parameter(slot, parts)}, "additionalProperties": False}
    return made | {"if": {"not": {"required": ["use"]}}, "then": changes}


def _where_used(part: Choice) -> Schema:
    return {"if": {"properties": {"use": {"type": "string", "pattern": part.pattern}}, "required": ["use"]}}


def _any_parameter(slot: str, parts: Parts) -> Schema:
    """The parameters of all parts, for a map without `use`."""
    schemas: dict[str, list[Schema]] = {}
    for _, schema in parts.values():
        for key, value in schema.get("properties", {}).items():
            if key != "use" and (shared := _titled(value, slot)) not in schemas.setdefault(key, []):
                schemas[key].append(shared)
    return {key: HIDDEN | (values[0] if len(values) == 1 else {"anyOf": values}) for key, values in schemas.items()}


def _titled(value: Schema, title: str) -> Schema:
    first, *others = value["anyOf"]
    return value | {"anyOf": [first | {"title": title} if "title" in first else first, *others]}


DRAFT = "http://json-schema.org/draft-07/schema#"

ABSTRACT = {
    "description": "Whether the recipe is incomplete and only for extending: `run` refuses it.",
    "type": "boolean",
}
NOTHING = {"title": "nothing", "not": {}}
REMOVED = {"title": "removed", "not": {"title": "removed", "type": ["array", "boolean", "number", "object", "string"]}}
"""Null, which removes a key, in a form that editors don't propose everywhere."""


def recipe_schema() -> tuple[dict[str, Any], list[str]]:
    """The schema; and of every part that is left out of it, since it can't be had, what is wrong with it."""
    choices, faults = installed()
    definitions: dict[str, Any] = {}
    for name, whole in (("whole", True), ("fragment", False)):
        writer = RecipeSchema(choices, name, whole=whole)
        made = writer.generate(Recipe.__pydantic_core_schema__)
        faults += [fault for fault in writer.faults if fault not in faults]
        definitions |= {f"{name}.{key}": value for key, value in made.pop("$defs").items()} | {name: made}
    says_abstract = {"properties": {"abstract": {"const": True}}, "required": ["abstract"]}
    schema = {
        "$schema": DRAFT,
        "title": "recipe",
        "type": "object",
        # A key that such a file lacks may be in one that it extends, or in one that extends it.
        "if": {"anyOf": [{"required": ["extends"]}, says_abstract]},
        "then": {"$ref": "#/definitions/fragment"},
        "else": {"$ref": "#/definitions/whole"},
        "definitions": definitions,
    }
    return schema, faults


def _extends() -> JsonSchemaValue:
    shipped = shipped_recipes()
    names = [path.relative_to(shipped).as_posix() for path in sorted(shipped.rglob("*.yaml"))]
    return {
        "description": "The recipe or recipes that this one is merged over: files in its folder, or those that ship.",
        "anyOf": offering(defaultSnippets=[snippet(name, name) for name in names]),
        "if": {"type": "array"},
        "then": {"items": {"type": "string"}},
        "else": {"type": "string"},
    }


class RecipeSchema(GenerateJsonSchema):
    """Writes the schema of `Recipe`.

    Args:
        choices: the installed parts of each slot.
        prefix: what the definitions' names will begin with.
        whole: whether required keys are required.

    Attributes:
        faults: of every part that no schema could be written for, what went wrong.
    """

    def __init__(self, choices: Mapping[str, Sequence[Choice]], prefix: str, *, whole: bool) -> None:
        super().__init__(ref_template=f"#/definitions/{prefix}.{{model}}")
        self.choices, self.whole = choices, whole
        self.faults: list[str] = []
        self._slots: dict[str, str] = {}
        self._open: set[CoreRef] = set()
        self._in_part = False

    # Models.

    def model_schema(self, schema: core.ModelSchema) -> JsonSchemaValue:
        """The schema of a block, of a slot's base (the choice among its parts), or of a part with its `use`."""
        kind = schema["cls"]
        if kind in SLOTS.values():
            return self._slot(kind, CoreRef(schema["ref"]))
        made = super().model_schema(schema)
        made["title"] = self._title(kind)
        properties = {
            key: self._key(value, made["title"], or_else=NOTHING if key in made.get("required", ()) else REMOVED)
            for key, value in made.get("properties", {}).items()
        }
        if issubclass(kind, Part):
            properties = {"use": {"markdownDescription": markdown(made.get("description", ""))}} | properties
        if kind is Recipe:
            properties = self._of_recipe(properties)
        of_type = {"type": made.pop("type", "object"), "errorMessage": "should be a map"}
        return explained(made | {"properties": properties, "allOf": [of_type]})

    def generate_inner(self, schema: Any) -> JsonSchemaValue:
        """As Pydantic does; for a part that holds parts of its own slot, a reference."""
        if schema.get("ref") in self._open:
            return self.get_cache_defs_ref_schema(schema["ref"])[1]
        return super().generate_inner(schema)

    def _slot(self, base: type[Part], reference: CoreRef) -> JsonSchemaValue:
        self._slots[self.get_cache_defs_ref_schema(reference)[1]["$ref"]] = base.slot
        self._open.add(reference)
        slots = (base, *ALSO.get(base, ()))
        made = ((offered, self._part(offered)) for slot in slots for offered in self.choices[slot.slot])
        parts = {offered: (schema, self.resolve_ref_schema(schema)) for offered, schema in made if schema is not None}
        self._open.remove(reference)
        return choice(base.slot, parts, whole=self.whole)

    def _part(self, part: Choice) -> JsonSchemaValue | None:
        outside, self._in_part = self._in_part, True
        try:
            part.kind.model_rebuild()
            return self.generate_inner(part.kind.__pydantic_core_schema__)
        except Exception as error:  # one part's error doesn't affect the schemas of others
            where = f"the {part.slot} '{part.name}' of the package {part.package}"
            self.faults.append(f"{where} has no JSON Schema: {type(error).__name__}: {error}")
            return None
        finally:
            self._in_part = outside

    def _title(self, kind: type) -> str:
        if not issubclass(kind, Part):
            return kind.__name__.lower()
        return next((choice.title for choice in self.choices[kind.slot] if choice.kind is kind), kind.slot)

    def _of_recipe(self, properties: dict[str, JsonSchemaValue]) -> dict[str, JsonSchemaValue]:
        """The schema of `extends`, `abstract`, and blocks that a bare path abbreviates."""
        for key, value in properties.items():
            if shorthand((key,)) == "path":
                value["anyOf"][0] = {"title": "recipe", "if": {"type": "string"}, "else": value["anyOf"][0]}
        return (
            {"extends": self._key(_extends(), "recipe")}
            | properties
            | {"abstract": self._key(dict(ABSTRACT), "recipe")}
        )

    def _key(self, value: JsonSchemaValue, block: str, or_else: JsonSchemaValue = REMOVED) -> JsonSchemaValue:
        """The schema of a key: its value, or null where allowed, with its documentation."""
        about: JsonSchemaValue = {key: value.pop(key) for key in ("description", "default") if key in value}
        if about.get("default") in ("", None) or isinstance(about["default"], list | dict):
            about.pop("default", None)  # what the description puts into words, if it is anything
        value = _without_null(value)
        if "$ref" in value:
            about = {"description": self._description(value["$ref"])} | about
        else:
            value = {"title": block, **value}
        return explained(about, of=value) | {"anyOf": [value, or_else]}

    def _description(self, reference: str) -> str:
        try:
            return str((self.get_schema_from_definitions(JsonRef(reference)) or {}).get("description", ""))
        except LookupError:  # a block within itself
            return ""

    def field_is_required(self, field: Any, total: bool) -> bool:
        """In a fragment nothing is; what follows another value is nowhere."""
        follows = follows_another(field.get("metadata", {}).get("pydantic_js_extra"))
        return self.whole and not follows and super().field_is_required(field, total)

    def field_title_should_be_set(self, schema: Any) -> bool:
        """Never: it would only repeat the key."""
        del schema
        return False

    # Types.

    def str_schema(self, schema: core.StringSchema) -> JsonSchemaValue:
        """Without patterns: Pydantic's regular expressions are not those of editors."""
        made = super().str_schema(schema)
        made.pop("pattern", None)
        return made

    def tuple_schema(self, schema: core.TupleSchema) -> JsonSchemaValue:
        """A tuple in draft-07; for several parts, one alone is accepted too."""
        made = super().tuple_schema(schema)
        items = made.get("items")
        if isinstance(items, dict) and self._is_slot(items):
            return one_or_several(self._slots[items["$ref"]], items)
        if "prefixItems" in made:
            made["additionalItems"] = made.pop("items", True)  # maxItems is the largest number
            made["items"] = made.pop("prefixItems")
        return made

    def tagged_union_schema(self, schema: core.TaggedUnionSchema) -> JsonSchemaValue:
        """A number or a map, chosen by type, so that an error in a map (a schedule) is reported for the map."""
        made = super().tagged_union_schema(schema)
        maps = [option for option in made["oneOf"] if "$ref" in option]
        others = [option for option in made["oneOf"] if "type" in option]
        return _by_type(maps[0], self.resolve_ref_schema(maps[0]), others[0]) if len(maps) == len(others) == 1 else made

    def dict_schema(self, schema: core.DictSchema) -> JsonSchemaValue:
        """A value, like that of any key, may be null."""
        made = super().dict_schema(schema)
        if isinstance(made.get("additionalProperties"), dict):
            made["additionalProperties"] = self._key(made["additionalProperties"], "")  # the title is the map's
        return made

    def get_union_of_schemas(self, schemas: list[JsonSchemaValue]) -> JsonSchemaValue:
        """`oneOf` where the types exclude each other: of an `anyOf` editors repeat the title for each of them."""
        made = super().get_union_of_schemas(schemas)
        types = [option.get("type") for option in made.get("anyOf", [])]
        exclusive = None not in types and len(set(types)) == len(types) and not {"integer", "number"} <= {*types}
        return {"oneOf": made["anyOf"]} if "anyOf" in made and exclusive else made

    # A validator in Python: the schema has only the input type that it declares.

    def function_before_schema(self, schema: core.BeforeValidatorFunctionSchema) -> JsonSchemaValue:
        """Any value, with the inner schema as a proposal, unless the function declares its input type."""
        return self._lenient(schema, super().function_before_schema(schema))

    def function_wrap_schema(self, schema: core.WrapValidatorFunctionSchema) -> JsonSchemaValue:
        """As `function_before_schema`."""
        return self._lenient(schema, super().function_wrap_schema(schema))

    def _lenient(self, schema: Any, made: JsonSchemaValue) -> JsonSchemaValue:
        if not self._in_part or "json_schema_input_schema" in schema or self._is_slot(made) or _is_strictness(schema):
            return made
        if "properties" in made:
            properties = {key: _proposed(value) for key, value in made["properties"].items()}
            return {"type": "object", "properties": properties, "additionalProperties": True}
        return _proposed(made)

    def handle_invalid_for_json_schema(self, schema: Any, error_info: str) -> JsonSchemaValue:
        """Anything, for a type that JSON Schema can't describe."""
        del schema, error_info
        return {}

    def emit_warning(self, kind: JsonSchemaWarningKind, detail: str) -> None:
        """None: what is left out only makes the schema more lenient."""
        del kind, detail

    def sort(self, value: JsonSchemaValue, parent_key: str | None = None) -> JsonSchemaValue:
        """Not at all: keys stay in the order that their authors gave them."""
        del parent_key
        return value

    def _is_slot(self, schema: JsonSchemaValue) -> bool:
        return "$ref" in schema and schema["$ref"] in self._slots


def _is_strictness(schema: Any) -> bool:
    """Whether the function is the common strictness validator, which accepts no more than the schema."""
    return getattr(schema["function"]["function"], "__name__", "") == StrictModel.of_its_literals_types.__name__


def _by_type(reference: JsonSchemaValue, block: JsonSchemaValue, other: JsonSchemaValue) -> JsonSchemaValue:
    needed = [key for key, value in block.get("properties", {}).items() if "default" not in value]
    title, documentation = block.get("title", "map"), block.get("markdownDescription", "")
    message = f"should be {with_article(other['type'])}, or {with_article(title)}: {in_outline(needed)}"
    return {
        "anyOf": offering(defaultSnippets=[snippet(title, to_fill(needed), documentation)]),
        "if": {"type": "object"},
        "then": reference,
        "else": other | {"errorMessage": message},
    }


def _proposed(schema: JsonSchemaValue) -> JsonSchemaValue:
    """The schema as a proposal: an editor suggests it, and accepts anything."""
    about = {key: schema[key] for key in ("description", "default") if key in schema}
    return about | {"anyOf": offering(allOf=[schema])}


def _without_null(schema: JsonSchemaValue) -> JsonSchemaValue:
    """The schema of what a key holds if it isn't null."""
    for union in {"anyOf", "oneOf"} & schema.keys():
        kept: list[JsonSchemaValue] = [option for option in schema[union] if option != {"type": "null"}]
        rest = {key: value for key, value in schema.items() if key != union}
        return rest | (kept[0] if len(kept) == 1 else {union: kept})
    return schema
