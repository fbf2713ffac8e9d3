"""What a value of a data set is as text: the same text whether JSON, Parquet or a data set of the Hub holds it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import date, time, timedelta
from decimal import Decimal
from typing import Any

LONGEST = 400
"""Digits of a number that are written out; doubles have 309 at most before their point."""


def text_of(value: Any, column: str, *, numbers: bool = True) -> str | None:
    """A value as text or None: 4, 4.0 and "4" are "4", and 1e-7 is "0.0000001".

    Raises ValueError for what is neither text nor, where these are welcome, a number that is finite.
    """
    if value is None or isinstance(value, str):
        return value
    if numbers and isinstance(value, int | float | Decimal) and not isinstance(value, bool):
        return _written(value, column)
    raise ValueError(f"'{column}' should be text, not {type(value).__name__}{_remedy(value, column)}")


def plain_columns(row: Mapping[str, Any]) -> dict[str, str | float]:
    """The numbers and texts of a row by their names: `Problem.columns`. Nulls, lists and all others are left out."""
    plain = {name: float(x) if isinstance(x, Decimal) else x for name, x in row.items()}
    return {name: x for name, x in plain.items() if isinstance(x, str) or (isinstance(x, int | float) and _finite(x))}


def _finite(x: int | float) -> bool:
    return isinstance(x, int) or math.isfinite(x)


def plain_names(schema: Any) -> list[str]:
    """The columns of an Arrow table that have numbers, truth values or texts."""
    from pyarrow import types

    kinds = (types.is_integer, types.is_floating, types.is_boolean, types.is_string, types.is_large_string)
    return [field.name for field in schema if any(of_kind(field.type) for of_kind in kinds)]


def whole(value: Any) -> int | None:
    """The integer that a number is, be it written 2 or 2.0; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float | Decimal):
        return None
    text = _written(value, "")
    return int(text) if text.lstrip("-").isdecimal() else None


def as_stored(row: Mapping[str, Any], schema: Any) -> Mapping[str, Any]:
    """A row of an Arrow table, its short floats with the fewest digits that make the same: a float32 of 0.1 is 0.1."""
    short = [name for name in row if "float" in str(schema.field(name).type)]  # float64 is called double
    return {**row, **{name: _stored(row[name], schema.field(name).type) for name in short}} if short else row


def _stored(value: Any, kind: Any) -> Any:
    import numpy
    from pyarrow import types

    if isinstance(value, float) and (types.is_float32(kind) or types.is_float16(kind)):
        return float(str((numpy.float32 if types.is_float32(kind) else numpy.float16)(value)))
    if isinstance(value, Mapping) and types.is_struct(kind):
        inner = {kind.field(at).name: kind.field(at).type for at in range(kind.num_fields)}
        return {name: _stored(each, inner[name]) if name in inner else each for name, each in value.items()}
    if isinstance(value, list) and hasattr(kind, "value_type"):
        return [_stored(each, kind.value_type) for each in value]
    return value


def _written(value: int | float | Decimal, column: str) -> str:
    """A number in digits: the fewest that make the same double, without an exponent, without zeros that say nothing."""
    number = value if isinstance(value, Decimal) else Decimal(repr(value))
    if not number.is_finite():
        raise ValueError(f"'{column}' is {number}, which is no number; null says that there is none")
    if abs(number.adjusted()) > LONGEST:
        raise ValueError(f"'{column}' is a number of more than {LONGEST} digits; in quotes it is read as text")
    digits = format(number, "f")
    digits = digits.rstrip("0").rstrip(".") if "." in digits else digits
    return "0" if digits == "-0" else digits


def _remedy(value: Any, column: str) -> str:
    if isinstance(value, bool):
        return ": put it in quotes, spelled as a response should say it"
    if isinstance(value, list) and value:
        return f": name an item of it, {column}.0"
    if isinstance(value, Mapping) and value:
        return f": name a key of it, {column}.{next(iter(value))}"
    if isinstance(value, date | time | timedelta | bytes):
        return ": store it as text, spelled as a response should say it"
    return ""
