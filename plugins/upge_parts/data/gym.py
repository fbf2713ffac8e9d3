"""Entries of reasoning_gym by their names, so that whoever scores a response can make its entry again.

    gsm_symbolic?difficulty=1.0&seed=0&size=1000#17      generator ? configuration # index

An entry's metadata may hold anything, so it is not copied into the problem: generators are deterministic, and an entry
is made again from its name alone. What stands before the last "/" of an id is not part of it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any
from urllib.parse import parse_qsl, quote, unquote, urlencode

from upge import InputError, did_you_mean

EXTRA = "pip install 'upge[reasoning-gym]'"


def made(generator: str, configuration: Mapping[str, Any]) -> Any:
    """A generator of reasoning_gym with its configuration. Raises InputError where it can't be had."""
    try:
        import reasoning_gym
        from reasoning_gym.factory import DATASETS
    except ModuleNotFoundError as missing:
        raise InputError(f"reasoning_gym is not installed: {EXTRA}") from missing
    if generator not in DATASETS:
        raise InputError(f"reasoning_gym has no generator '{generator}'; {did_you_mean(generator, DATASETS)}")
    try:
        # As a name writes it, so that a problem and its reward have the same.
        return reasoning_gym.create_dataset(generator, **json.loads(json.dumps(configuration)))
    except Exception as error:  # a generator checks its configuration as it likes, with assertions for one
        raise InputError(f"reasoning_gym's {generator} refuses its configuration: {error}") from error


def name_of(generator: str, configuration: Mapping[str, Any], index: int) -> str:
    """The name of an entry, the same for the same configuration in any order; it has no "/"."""
    written = urlencode(
        {key: json.dumps(configuration[key]) for key in sorted(configuration)}, quote_via=quote, safe=""
    )
    return f"{quote(generator, safe='')}?{written}#{index}"


def entry_of(name: str) -> tuple[str, int]:
    """The generator with its configuration, as written, and the index. Raises ValueError for what names no entry."""
    written, mark, index = name.rpartition("/")[2].rpartition("#")
    if not (mark and "?" in written and index.isdecimal()):
        raise ValueError(f"'{name}' names no entry of reasoning_gym")
    return written, int(index)


def configured(written: str) -> tuple[str, dict[str, Any]]:
    """The generator and the configuration that the first part of a name writes."""
    generator, _, query = written.partition("?")
    return unquote(generator), {key: json.loads(value) for key, value in parse_qsl(query)}
