"""Hypothesis strategies: batches, and parts with any of their valid parameters."""

from __future__ import annotations

import types
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from hypothesis import assume
from hypothesis import strategies as st
from pydantic import ValidationError
from pydantic.fields import FieldInfo

from upge.parts import Part
from upge.settings import Settings
from upge.testing.batches import Case, Prompt

TERMS = ("explore", "imitate")
"""What a text parameter is drawn from: in a switch, texts name terms."""


def prompts() -> st.SearchStrategy[Prompt]:
    """1 to 6 rollouts and 0 to 2 demonstrations, or demonstrations only."""
    rewards = st.sampled_from(("mixed", "right", "wrong", "wild"))
    explored = st.builds(Prompt, st.integers(1, 6), st.integers(0, 2), rewards)
    shown = st.builds(Prompt, st.just(0), st.integers(1, 2))
    return st.one_of(explored, explored, shown)


def cases() -> st.SearchStrategy[Case]:
    """1 to 4 prompts; now and then no demonstrations at all, or no rollouts at all."""
    no_demonstrations = st.builds(lambda p: replace(p, demonstrations=0, rollouts=max(1, p.rollouts)), prompts())
    no_rollouts = st.builds(lambda p: replace(p, rollouts=0, demonstrations=max(1, p.demonstrations)), prompts())
    return st.builds(
        Case,
        prompts=st.one_of(*(_up_to_four(kind) for kind in (prompts(), prompts(), no_demonstrations, no_rollouts))),
        old=st.sampled_from(("near", "far", "none", "equal")),
        longest=st.integers(1, 6),
        interleaved=st.booleans(),
        seed=st.integers(0, 2**16),
    )


def _up_to_four(kind: st.SearchStrategy[Prompt]) -> st.SearchStrategy[tuple[Prompt, ...]]:
    return st.lists(kind, min_size=1, max_size=4).map(tuple)


def parts(kind: type[Part], given: Mapping[str, Any] | None = None) -> st.SearchStrategy[Part]:
    """Parts of this class with any valid parameters, in ranges that keep float64 exact; those in `given` stay.

    Numbers are drawn from what the field's bounds allow, near 0 where they allow everything; a field that gives
    `examples` is drawn from these.
    """
    return _models(kind, dict(given or {})).map(_as_part)


def _as_part(model: Settings) -> Part:
    assert isinstance(model, Part)
    return model


@st.composite
def _models(draw: st.DrawFn, kind: type[Settings], given: dict[str, Any]) -> Settings:
    names = {name: field for name, field in kind.model_fields.items() if not {name, field.alias} & set(given)}
    drawn = {field.alias or name: draw(_of_field(field)) for name, field in names.items()}
    try:
        return kind.model_validate({**drawn, **given})
    except ValidationError:
        assume(False)
        raise


def _of_field(field: FieldInfo) -> st.SearchStrategy[Any]:
    if field.examples:
        return st.sampled_from(field.examples)
    drawn = _of(field.annotation, field.metadata)
    # A default is what most people run: half of all draws.
    return drawn if field.is_required() else st.just(field.get_default(call_default_factory=True)) | drawn


def _of(annotation: Any, metadata: Iterable[Any] = ()) -> st.SearchStrategy[Any]:
    """What a type and its constraints allow."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _of(arguments[0], [*arguments[1:], *metadata])
    if origin is Literal:
        return st.sampled_from(arguments)
    if origin in (Union, types.UnionType):
        return st.one_of(*(_of(choice, metadata) for choice in arguments))
    if origin is tuple and arguments[1:] == (...,):
        return st.lists(_of(arguments[0]), min_size=1, max_size=3, unique=True).map(tuple)
    if origin is dict:
        return st.dictionaries(_of(arguments[0]), _of(arguments[1]), min_size=1, max_size=2)
    if annotation is str:
        return st.sampled_from(TERMS)
    if annotation in (int, float):
        return _numbers(annotation, metadata)
    if isinstance(annotation, type) and issubclass(annotation, Settings):
        return _models(annotation, {})
    return st.from_type(annotation)


def _numbers(kind: type[int] | type[float], metadata: Iterable[Any]) -> st.SearchStrategy[Any]:
    """Within the bounds: fractions of their range, and as often its ends, 0 and 1, where random search seldom looks."""
    lowest, highest, closed_below, closed_above = _bounds(metadata)
    low = lowest if lowest is not None else (highest if highest is not None else 4) - 8
    high = highest if highest is not None else max(low + 8, 4)
    pieces = int(high - low) if kind is int else 32
    fractions = [low + i * (high - low) / max(pieces, 1) for i in range(pieces + 1)]

    def allowed(number: float) -> bool:
        above = low < number or (closed_below and number == low)
        return above and (number < high or (closed_above and number == high))

    anywhere = [kind(number) for number in fractions if allowed(number)]
    pointed = [kind(number) for number in (low, 0, 1, high) if allowed(number)]
    return st.sampled_from(pointed or anywhere) | st.sampled_from(anywhere) if anywhere else st.nothing()


def _bounds(metadata: Iterable[Any]) -> tuple[float | None, float | None, bool, bool]:
    low = high = None
    closed_below = closed_above = True
    for each in metadata:
        for name in ("ge", "gt"):
            if (bound := getattr(each, name, None)) is not None:
                low, closed_below = bound, name == "ge"
        for name in ("le", "lt"):
            if (bound := getattr(each, name, None)) is not None:
                high, closed_above = bound, name == "le"
    return low, high, closed_below, closed_above
