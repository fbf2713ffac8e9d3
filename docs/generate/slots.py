"""A page a slot, docs/reference/<slot>.md: the parts that ship, from their docstrings and fields."""

from __future__ import annotations

import inspect
import re
import types
from collections.abc import Iterator
from pathlib import Path
from textwrap import fill
from typing import Any, Literal, Union, get_args, get_origin

from generate.fields import fields_of, fields_table
from generate.markdown import one_line, page, prose
from generate.uses import uses
from upge import registry
from upge.field_names import naming_parameters
from upge.part import SLOTS, Engine, Factor, Mask, Part, Switch

TITLES = {
    "mask": ("Masks", "estimator.terms.<term>.mask"),
    "denominator": ("Denominators", "estimator.terms.<term>.denominator"),
    "advantage": ("Advantages", "estimator.terms.<term>.advantage"),
    "switch": ("Switches", "estimator.switch"),
    "reduction": ("Reductions", "estimator.terms.<term>.reduction"),
    "shaping": ("Shapings", "estimator.shaping"),
    "selection": ("Selections", "estimator.terms.<term>.select"),
    "weight": ("Weights", "estimator.terms.<term>.weight"),
    "field": ("Fields", "fields.<name>"),
    "reward": ("Rewards", "reward"),
    "data": ("Data", "data"),
    "engine": ("Engines", "rollout.engine"),
}
"""Of every slot its page's title, and its place in a recipe."""

INTRODUCTION = """\
In a recipe: `{place}`. `python docs/tables.py` makes this page from the docstrings and fields of the shipped parts.
`upge list {slot}` lists those of other packages too, and `upge show {name}` shows one of them.
"""
WITHOUT = """\
In a recipe: `{place}`. No part ships. `upge new plugin <package> --slot {slot}` writes one, with its proof, and
`upge list {slot}` lists those of other packages.
"""
ONCE = {
    **dict.fromkeys(("advantage", "switch", "shaping", "selection", "weight"), "a rollout batch"),
    "reduction": "an optimizer step",
}
"""How often the factors of a slot are computed, those that don't wait for a forward pass."""


def slot_page(slot: str) -> str:
    """The page of a slot."""
    title, place = TITLES[slot]
    parts = shipped(slot)
    entries = [_entry(name, kind) for name, kind in parts.items()]
    listing = "\n".join(f"- [`{name}`](#{name}): {_first(kind)}" for name, kind in parts.items())
    told = (
        INTRODUCTION.format(place=place, name=next(iter(parts)), slot=slot)
        if parts
        else WITHOUT.format(place=place, slot=slot)
    )
    introduction = fill(told, 120, break_on_hyphens=False)
    about = prose(SLOTS[slot].__doc__).partition("\n\nClass variables:")[0]
    return page(f"# {title}", about, introduction, listing, *entries)


def shipped(slot: str) -> dict[str, type[Part]]:
    """The parts of this package by name; those of other packages that happen to be installed don't count."""
    entries = [offer for offer in registry.entries(slot) if offer.package == "upge"]
    return {offer.name: registry.load(offer, SLOTS[slot]) for offer in entries}


def _first(kind: type[Part]) -> str:
    return inspect.cleandoc(kind.__doc__ or "").partition("\n")[0]


def _entry(name: str, kind: type[Part]) -> str:
    text, labels = _labelled(prose(kind.__doc__))
    fields = fields_of(kind)
    parameters = fields_table(fields) if fields else ""
    facts = [*labels.items(), *_traits(kind), ("Recipes", uses(kind)), ("Code", _code(kind))]
    listing = "\n".join(f"- {label}: {fact}" for label, fact in facts)
    return page(f"## `{name}`", text, parameters, listing)


def _labelled(text: str) -> tuple[str, dict[str, str]]:
    """A docstring without what it says at its end behind `Shapes:`, `Units:` and `Source:`, and that by its label."""
    body, *labelled = re.split(r"\b(Shapes|Units|Source): ", text)
    return body, {label: one_line(fact) for label, fact in zip(labelled[::2], labelled[1::2], strict=True)}


def _traits(kind: type[Part]) -> Iterator[tuple[str, str]]:
    if issubclass(kind, Mask):
        yield "Trust region", "yes, on-policy data is never masked: g(1) = 1" if kind.trust_region else "no, a weight"
    if issubclass(kind, Factor | Switch):
        yield "Reads", "; ".join(_reads(kind))
        yield "Computed", _computed(kind)
    if issubclass(kind, Engine):
        yield "Reports log-probs", "yes, as `rollout_logp`" if kind.reports_logp else "no"


def _computed(kind: type[Part]) -> str:
    """How often, and how much must be seen at once; the latter only where it can matter."""
    live = bool(kind.model_construct().reads() & {"logp", "entropy"})
    once = kind.slot in ONCE and not (kind.slot == "advantage" and live)
    often = f"once {ONCE[kind.slot]}" if once else "every micro-batch"
    return (
        often
        if once and kind.scope == "token"
        else f"{often}; [scope](python.md#what-parts-are-made-of) `{kind.scope}`"
    )


def _reads(kind: type[Part]) -> Iterator[str]:
    """The batch fields that a part reads, and those that the choice of a parameter adds."""
    always = kind.model_construct().reads()
    named = [f"the field that `{name}` names" for name in naming_parameters(kind)]
    yield ", ".join([*_quoted(always), *named]) or "no field of the batch"
    for name, field in kind.model_fields.items():
        for choice in _choices(field.annotation):
            reads = kind.model_construct(None, **{name: choice}).reads()
            if added := reads - always:
                instead = f" instead of {', '.join(_quoted(always - reads))}" if always - reads else ""
                yield f"with `{name}: {choice}` {'' if instead else 'also '}{', '.join(_quoted(added))}{instead}"


def _quoted(names: frozenset[str]) -> list[str]:
    return [f"`{name}`" for name in sorted(names)]


def _choices(annotation: Any) -> tuple[Any, ...]:
    """The choices of a literal, alone or in a union."""
    arguments = get_args(annotation)
    if get_origin(annotation) is Literal:
        return arguments
    unions = get_origin(annotation) in (Union, types.UnionType)
    return tuple(choice for inner in arguments for choice in _choices(inner)) if unions else ()


def _code(kind: type[Part]) -> str:
    path = Path(*kind.__module__.split(".")).with_suffix(".py").as_posix()
    return f"[`{path}`](../../plugins/{path})"
