"""Switches that name one term or several."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from upge import Switch


def _as_tuple(value: Any) -> Any:
    return (value,) if isinstance(value, str) else tuple(value) if isinstance(value, list) else value


Terms = Annotated[
    tuple[str, ...],
    Field(min_length=1),
    BeforeValidator(_as_tuple, json_schema_input_type=str | Annotated[tuple[str, ...], Field(min_length=1)]),
]
"""The names of terms: one, or a list."""


def two_terms(switch: Switch, first: str, second: str) -> None:
    """Refuse that two parameters name the same term, which would get only one of its two coefficients."""
    if getattr(switch, first) == getattr(switch, second):
        switch.refuse((second,), f"'{first}' names this term already; it can't have both coefficients")
