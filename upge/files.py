"""Safe reading of untrusted files, and printable forms of their text."""

from __future__ import annotations

import codecs
import json
import math
import os
import re
from decimal import Decimal
from pathlib import Path
from typing import Any, TypeGuard

from upge.errors import InputError

_ESCAPED = re.compile(r"(?i)\\ud[89a-f]")
_HALF = re.compile(r"[\ud800-\udfff]")
_DIGITS = 4000
"""Digits of an integer that Python reads; by default it refuses more than 4300."""
_MOVING = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
"""Control characters but tab and line feed, marks that turn the direction of writing, and halves of characters."""


def regular_file(path: Path) -> Path:
    """The path, if what is there may be opened: reading a pipe or a device may block, or never end.

    Raises:
        InputError: it is neither a file nor a folder. A missing path raises nothing here.
    """
    if path.exists() and not path.is_file() and not path.is_dir():
        raise InputError(f"{path}: can't be read: it is no regular file")
    return path


def refuse_links_out(folder: Path) -> None:
    """Raise InputError where a link in a folder leads out of it."""
    inside = os.path.realpath(folder)
    for place, folders, files in os.walk(folder):
        for path in (Path(place) / name for name in (*folders, *files)):
            if path.is_symlink() and not Path(os.path.realpath(path)).is_relative_to(inside):
                raise InputError(f"{path}: a link that leads out of the run folder; a run writes only inside it")


def read_text(path: Path) -> str:
    """The text of a UTF-8 file, without the byte order mark that some editors put before it.

    Raises:
        InputError: the file can't be read, or isn't UTF-8; with the line at fault.
    """
    try:
        data = regular_file(path).read_bytes()
    except OSError as error:
        raise InputError(f"{path}: can't be read: {error.strerror or error}") from error
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise InputError(f"{path}: can't be read: it is UTF-16 or UTF-32; save it as UTF-8")
    try:
        return data.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        wrong = f"byte {data[error.start]:#04x} is not UTF-8; save the file as UTF-8"
        raise InputError(f"{path}:{line}: can't be read: {wrong}") from error


def parse_json(text: str | bytes, *, exact: bool = False) -> Any:
    """The value of a JSON text. With `exact` nothing is lost: numbers keep all their digits.

    Then a number with a point or an exponent is a Decimal. An integer too long for Python always is. A key that occurs
    twice is an error; without `exact` the last one counts.

    Raises ValueError, also for a text nested too deeply to be parsed, and for half of a character: a `\\ud800` to
    `\\udfff` escape without its partner. No tokenizer accepts that, and no file can store it.
    """
    ways: dict[str, Any] = {"parse_float": Decimal, "parse_int": _integer, "object_pairs_hook": _object}
    try:
        value = json.loads(text, **ways) if exact else _loads(text)
        half = _ESCAPED.search(str(text)) and _HALF.search(json.dumps(value, ensure_ascii=False, default=str))
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if half:
        raise ValueError("half of a character: a \\ud800 to \\udfff escape without its partner")
    return value


def _loads(text: str | bytes) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        raise
    except ValueError:  # an integer too long for Python; a check of each integer would slow all others down
        return json.loads(text, parse_int=_integer)


def _integer(digits: str) -> int | Decimal:
    return int(digits) if len(digits) <= _DIGITS else Decimal(digits)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the key '{twice}' occurs twice in one object")
    return made


def is_number(value: Any) -> bool:
    """Whether a value of JSON is a number that a float can hold."""
    return isinstance(value, float) or (isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63)


def is_finite(value: Any) -> bool:
    """Whether a value of JSON is a finite number."""
    return is_number(value) and math.isfinite(value)


def is_count(value: Any) -> TypeGuard[int]:
    """Whether a value of JSON is a whole number from 0."""
    return isinstance(value, int) and is_number(value) and value >= 0


def shown(text: str) -> str:
    """A text as a terminal may be given it: what would move its cursor, or colour it, comes as an escape, `\\x1b`."""
    return _MOVING.sub(lambda match: ascii(match[0])[1:-1], text)
