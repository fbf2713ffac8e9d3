"""Hypothesis strategies: batches, and parts with any of their valid parameters."""

from __future__ import annotations

import itertools
import random
import types
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from hypothesis import assume
from hypothesis import strategies as st
from pydantic import ValidationError
from pydantic.fields import FieldInfo

from upge.field_names import NamesField
from upge.part import Part, StrictModel
from upge.schedule import Schedule, Within
from upge.testing.batches import SYNTHETIC, Case, Prompt

TERMS = ("explore", "imitate")
"""What a text parameter is drawn from: in a switch, texts name terms."""


def prompts() -> st.SearchStrategy[Prompt]:
    """1 to 6 rollouts and 0 to 2 demonstrations, or demonstrations only."""
    rewards = st.sampled_from(("mixed", "right", "wrong", "wild"))
    explored = st.builds(Prompt, st.integers(1, 6), st.integers(0, 2), rewards)
    shown = st.builds(Prompt, st.just(0), st.integers(1, 2))
    return st.one_of(explored, explored, shown)


def cases() -> st.SearchStrategy[Case]:
    """1 to 4 prompts; now and then no demonstrations at all, or no rollouts at all.

    Every batch has a published loss: no ratio is beyond the clamp, no trajectory is empty. Those are among `CORNERS`.
    """
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


def _as_part(model: StrictModel) -> Part:
    assert isinstance(model, Part)
    return model


@st.composite
def _models(draw: st.DrawFn, kind: type[StrictModel], given: dict[str, Any]) -> StrictModel:
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
        return st.sampled_from(_names(metadata) or TERMS)
    if annotation in (int, float):
        return _numbers(annotation, metadata)
    if isinstance(annotation, type) and issubclass(annotation, StrictModel):
        return _models(annotation, {})
    return st.from_type(annotation)


def _names(metadata: Iterable[Any]) -> tuple[str, ...]:
    """The fields that a parameter may name, where it names one."""
    mark = next((each for each in metadata if isinstance(each, NamesField)), None)
    if mark is None:
        return ()
    return tuple(name for per, names in SYNTHETIC.items() if mark.per in (None, per) for name in names)


def _numbers(kind: type[int] | type[float], metadata: Iterable[Any]) -> st.SearchStrategy[Any]:
    """Within the bounds: fractions of their range and, as often each, small ones evenly over their logarithms, and the
    corners, where random search seldom looks."""
    corners, anywhere, small = _choices(kind, metadata)
    found = [st.sampled_from(some) for some in (corners or anywhere, anywhere, small) if some]
    return st.one_of(found) if found else st.nothing()


TINY = 2e-4
"""Of 1: as small as shares of tokens are published."""


def _choices(kind: type[int] | type[float], metadata: Iterable[Any]) -> tuple[list[Any], list[Any], list[Any]]:
    """(corners, evenly over the range, evenly over the logarithm of the distance from its lower end)."""
    lowest, highest, closed_below, closed_above = bounds_of(metadata)
    low = lowest if lowest is not None else (highest if highest is not None else 4) - 8
    high = highest if highest is not None else max(low + 8, 4)

    def allowed(number: float) -> bool:
        above = low < number or (closed_below and number == low)
        return above and (number < high or (closed_above and number == high))

    def taken(numbers: Iterable[float]) -> list[Any]:
        return [kind(number) for number in dict.fromkeys(numbers) if allowed(number)]

    pieces = min(int(high - low), 400) if kind is int else 32
    span = high - low
    steps = [low + i * span / max(pieces, 1) for i in range(pieces + 1)]
    small = [] if lowest is None else [low + span * 10 ** (-k / 4) for k in range(1, 17)]
    if kind is int:
        steps, small = [round(x) for x in steps], [round(x) for x in small]
    elif lowest is not None:
        small.append(low + span * TINY)
    ends = [low, 0, 1, high] if kind is int or lowest is None else [low, low + span * TINY, 0, 1, high]
    return taken(ends), taken(steps), taken(small)


def bounds_of(metadata: Iterable[Any]) -> tuple[float | None, float | None, bool, bool]:
    """(lower, upper, whether the lower is within, whether the upper is): what constraints say; None: no bound."""
    low = high = None
    closed_below = closed_above = True
    for each in metadata:
        if isinstance(each, Within):
            low, closed_below = each.low, not each.open_below
            high = None if each.high == float("inf") else each.high
        for name in ("ge", "gt"):
            if (bound := getattr(each, name, None)) is not None:
                low, closed_below = bound, name == "ge"
        for name in ("le", "lt"):
            if (bound := getattr(each, name, None)) is not None:
                high, closed_above = bound, name == "le"
    return low, high, closed_below, closed_above


# Corners, one after the other: what random draws meet too seldom.


def corner_parts(kind: type[Part], given: Mapping[str, Any] | None = None, most: int = 24) -> list[Part]:
    """Parts of this class at the corners of their parameters: as it comes, one parameter at an end, then several."""
    given = dict(given or {})
    fields = {n: f for n, f in kind.model_fields.items() if not {n, f.alias} & set(given)}
    choices: dict[str, list[Any]] = {}
    for index, (name, field) in enumerate(fields.items()):
        choices[field.alias or name] = _corners_of_field(field, index)
    if not all(choices.values()):
        return []
    base = {name: values[0] for name, values in choices.items()}
    single = (
        {**base, name: value}
        for place in range(1, 12)
        for name, values in choices.items()
        for value in values[place : place + 1]
    )
    drawn = random.Random(0)
    mixed = ({name: drawn.choice(values) for name, values in choices.items()} for _ in range(200))
    found: dict[Part, None] = {}
    for values in itertools.chain([base], single, mixed):
        if len(found) >= most or (not choices and found):
            break
        try:
            found[kind.model_validate({**values, **given})] = None
        except ValidationError:
            continue
    return list(found)


def _corners_of_field(field: FieldInfo, index: int) -> list[Any]:
    if field.examples:
        return list(field.examples)
    found = _corners(field.annotation, field.metadata, index)
    return found if field.is_required() else [field.get_default(call_default_factory=True), *found]


def _corners(annotation: Any, metadata: Iterable[Any], index: int) -> list[Any]:
    """The telling values of a type; a text names another term in another field."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _corners(arguments[0], [*arguments[1:], *metadata], index)
    if origin is Literal:
        return list(arguments)
    if origin in (Union, types.UnionType):
        return [value for choice in arguments for value in _corners(choice, metadata, index)]
    if origin is tuple and arguments[1:] == (...,):
        return [(value,) for value in _corners(arguments[0], (), index)[:2]]
    if origin is dict:
        keys, values = (_corners(each, (), index) for each in arguments)
        return [dict.fromkeys(keys[:2], value) for value in values]
    if annotation is str and (names := _names(metadata)):
        return list(names)
    if annotation in (str, bool, type(None)):
        texts = [TERMS[index % 2], TERMS[(index + 1) % 2]]
        return texts if annotation is str else [False, True] if annotation is bool else [None]
    if annotation in (int, float):
        corners, anywhere, small = _choices(annotation, metadata)
        tiny = [x for x in small if x not in corners][-1:]
        middle = anywhere[len(anywhere) // 2 : len(anywhere) // 2 + 1]
        return list(dict.fromkeys([*(x for x in corners if 0 < abs(x) < 1e-2), *middle, *corners, *tiny]))
    if annotation is Schedule:
        lowest, highest, _, _ = bounds_of(metadata)
        return [Schedule(start=lowest or 0.0, end=1.0 if highest is None else highest, steps=8)]
    return []
