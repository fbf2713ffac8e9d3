"""What an unquoted YAML scalar means: the core schema of YAML 1.2 (yaml.org/spec/1.2.2, chapter 10.3.2)."""

from __future__ import annotations

import math
import re

Scalar = str | int | float | bool | None
"""What a scalar can be; a string is the rule and the others are exceptions to it."""

_WORDS: dict[str, Scalar] = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL")),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
    **dict.fromkeys((".inf", ".Inf", ".INF", "+.inf", "+.Inf", "+.INF"), math.inf),
    **dict.fromkeys(("-.inf", "-.Inf", "-.INF"), -math.inf),
    **dict.fromkeys((".nan", ".NaN", ".NAN"), math.nan),
}
_DECIMAL = re.compile(r"[-+]?[0-9]+")
_OCTAL = re.compile(r"0o[0-7]+")
_HEXADECIMAL = re.compile(r"0x[0-9a-fA-F]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")

_LONGEST_NUMBER = 400
"""Characters; beyond any float's digits, and far below the length at which Python refuses to convert an integer."""


def resolve(text: str) -> Scalar:
    """The value of an unquoted scalar: `1e-6` is a float and `012` the integer 12; `no` and `1_000` are strings.

    Raises:
        ValueError: a number that is too long, or too large for a float (`1e999`); the message says which.
    """
    if text in _WORDS:
        return _WORDS[text]
    if _FLOAT.fullmatch(text) is None and _OCTAL.fullmatch(text) is None and _HEXADECIMAL.fullmatch(text) is None:
        return text
    if len(text) > _LONGEST_NUMBER:
        raise ValueError(f"a number of {len(text)} characters")
    return _number(text)


def _number(text: str) -> int | float:
    if _OCTAL.fullmatch(text):
        return int(text[2:], 8)
    if _HEXADECIMAL.fullmatch(text):
        return int(text[2:], 16)
    if _DECIMAL.fullmatch(text):
        return int(text)
    if math.isinf(value := float(text)):
        raise ValueError(f"{text} is too large for a float")
    return value
