"""What data, rewards and engines owe: laws of their open sessions, each with what was expected and what came."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, TypeAlias, get_args, get_origin

from pydantic.fields import FieldInfo

from upge.errors import InputError
from upge.estimator.part_errors import PartError, line_of
from upge.part import BatchField, Data, Engine, Part, Reward
from upge.testing import data_laws, engine_laws, field_laws, reward_laws
from upge.testing.strategies import bounds_of, corner_parts

Broken: TypeAlias = tuple[str, str | None, str]
"""(law, failure or None, example)."""


def settled(kind: type[Part], given: Mapping[str, Any]) -> bool:
    """Whether every parameter that isn't given has a default, or is a number or a choice, which can be drawn."""
    return all(
        not field.is_required() or {name, field.alias} & set(given) or _drawable(field.annotation)
        for name, field in kind.model_fields.items()
    )


def openable(kind: type[Part], given: Mapping[str, Any]) -> list[Part]:
    """Some parts of a slot whose sessions are looked at, as they come first; an engine's cost the most."""
    if not settled(kind, given):
        return []
    made = corner_parts(kind, _fixed(kind, given))
    return [part for part in made if _cheap(part)][: 2 if issubclass(kind, Engine) else 6]


def _fixed(kind: type[Part], given: Mapping[str, Any]) -> dict[str, Any]:
    """What is not drawn: what is given, and defaults that mean something: texts, parts, and seconds."""
    kept = {
        field.alias or name: field.get_default(call_default_factory=True)
        for name, field in kind.model_fields.items()
        if not field.is_required() and not (_drawable(field.annotation) and _of_a_share(field))
    }
    return kept | dict(given)


def _of_a_share(field: FieldInfo) -> bool:
    """Whether a parameter is none with a unit: a float counts only as a share, within [0, 1]."""
    low, high, _, _ = bounds_of(field.metadata)
    return field.annotation is not float or (low is not None and high is not None and low >= 0 and high <= 1)


def _cheap(part: Part) -> bool:
    """Whether no drawn number is large: it may be one of processes, or of problems to make."""
    fields = type(part).model_fields
    numbers = {name: value for name, value in part if isinstance(value, int) and value > 64}
    return all(value == fields[name].get_default(call_default_factory=True) for name, value in numbers.items())


def _drawable(annotation: Any) -> bool:
    return annotation in (int, float, bool) or (get_origin(annotation) is not None and _of_choices(annotation))


def _of_choices(annotation: Any) -> bool:
    return bool(get_args(annotation)) and all(isinstance(each, str | int) for each in get_args(annotation))


_LAWS = ((Data, data_laws), (Reward, reward_laws), (Engine, engine_laws), (BatchField, field_laws))


def broken_laws(parts: Sequence[Part], examples: int) -> Iterator[Broken]:
    """How parts of one class stand to the laws of their slot, one law after the other; the first part that breaks it.

    Nothing where a session can't be had here: without a package that the class names, or where opening refuses.
    """

    laws: Mapping[str, Callable[[Any, int], None]] = MappingProxyType({})
    for slot, module in _LAWS:
        if isinstance(parts[0], slot):
            laws = module.LAWS
    if any(importlib.util.find_spec(module) is None for module in type(parts[0]).packages):
        return
    for law, check in laws.items():
        found = None
        for part in parts:
            try:
                found = _failure(part, check, examples)
            except InputError:  # the part refuses these parameters, or this machine
                continue
            if found is not None:
                yield law, found, repr(part)
                break
        if found is None:
            yield law, None, ""


def _failure(part: Part, check: Callable[[Any, int], None], examples: int) -> str | None:
    try:
        check(part, examples)
    except (AssertionError, PartError) as error:
        return str(error).partition("\n\n")[0] or "it does not hold"
    except InputError:
        raise
    except Exception as error:
        return f"{type(error).__name__}: {error} ({line_of(error, type(part))})"
    return None
