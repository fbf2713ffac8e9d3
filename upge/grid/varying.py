"""`--vary KEY=V1,V2`: a setting of a grid, and the values that it takes."""

from __future__ import annotations

import re
from dataclasses import dataclass

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from upge.errors import InputError

SEED = "train.seed"
"""What is varied by `--seeds`."""


@dataclass(frozen=True)
class Varied:
    """A setting and its values. Attributes: key: its dotted path. values: YAML, each as it was written."""

    key: str
    values: tuple[str, ...]

    def overrides(self) -> list[tuple[str, str]]:
        """(key, value) for each value."""
        return [(self.key, value) for value in self.values]


def parse(text: str) -> Varied:
    """`KEY=V1,V2`: what follows the `=` is a YAML list without its brackets; `{…}`, `[…]` and `'…'` keep their commas.

    Raises InputError: no key, no value, or no such list.
    """
    key, equals, listed = text.partition("=")
    if not equals or not key.strip():
        raise InputError(f"--vary {text}: write a setting and its values, --vary optimizer.lr=1e-5,3e-5")
    try:
        items = YAML(typ="safe", pure=True).compose(f"[{listed}\n]").value
    except (YAMLError, AttributeError) as error:
        hint = "values are YAML with commas between them; those that have commas themselves stand in quotes or brackets"
        raise InputError(f"--vary {text}: {hint}") from error
    values = tuple(f"[{listed}"[item.start_mark.index : item.end_mark.index] for item in items)
    unread = f"[{listed}"[items[-1].end_mark.index :].strip() if items else ""
    if not values or "" in values or unread == ",":
        raise InputError(f"--vary {text}: a value is missing; null removes a setting, '' is the empty text")
    if unread:
        raise InputError(f"--vary {text}: '{unread}' is no value; a text that begins with # stands in quotes")
    return Varied(key.strip(), values)


def slug(text: str) -> str:
    """A value as part of a folder's name."""
    return re.sub(r"[^\w.+=-]+", "_", text).strip("_")
