"""Recipe files and texts to trees: YAML 1.2, with every problem of a text reported at its place."""

from __future__ import annotations

import re
import stat
from pathlib import Path

from upge.recipe.building import TreeBuilder
from upge.recipe.faults import Fault, Place, RecipeError, nearest
from upge.recipe.nodes import Node, describe, plain
from upge.recipe.sources import Source

__all__ = ["MAX_BYTES", "Node", "describe", "parse", "parse_value", "plain", "read"]

MAX_BYTES = 1 << 17
"""How large a recipe may be, with all that it extends, in bytes: many times what one needs."""

# Everything but YAML's printable characters, lone surrogates included; and U+0085, a character to YAML 1.2 and a line
# break to ruamel.
_FORBIDDEN = re.compile("[^\t\n\r\x20-\x7e\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def read(path: Path, name: str | None = None, before: int = 0) -> Node:
    """The tree of a recipe file; its places call the file `name`, or as `path` spells it.

    `before` is how many bytes of the same recipe have been read from other files.

    Raises:
        RecipeError: every problem found: with the file itself, or as `parse` tells.
    """
    name = str(path) if name is None else name
    return parse(_text(path, name, MAX_BYTES - before), name)


def parse(text: str, name: str) -> Node:
    """The tree of a recipe's text, whose root must be a map; its places call the file `name`.

    Raises:
        RecipeError: every problem found: syntax errors (the first of them), forbidden characters, duplicate or
            non-string keys, anchors, aliases, merge keys, tags, several documents, too deep nesting, no map at all.
    """
    source = Source(name, text.removeprefix("\ufeff"))
    root = parse_value(source)
    if root is None:
        raise RecipeError([Fault("the file is empty", source.place(0), "write at least a name: and an estimator:")])
    if not isinstance(root.value, dict):
        message = f"a recipe is a map of blocks, not {describe(root)}"
        raise RecipeError([Fault(message, root.place, "write key: value lines")])
    return Node(root.value, source.place(0))


def parse_value(source: Source) -> Node | None:
    """The tree of any YAML value; None if there is nothing but blanks and comments.

    Raises:
        RecipeError: every problem found, as `parse` tells.
    """
    faults = [_forbidden(source, match) for match in list(_FORBIDDEN.finditer(source.text))[:10]]
    if faults:
        raise RecipeError(faults)
    builder = TreeBuilder(source)
    root = builder.document()
    if builder.faults:
        raise RecipeError(builder.faults)
    return root


def _text(path: Path, name: str, limit: int) -> str:
    data = b""
    try:
        data = _bytes(path, limit)
        return data.decode()
    except UnicodeDecodeError as error:
        before = data[: error.start].decode()
        place = Source(name, before + data[error.start :].decode(errors="replace")).place(len(before))
        raise RecipeError([Fault(f"byte {data[error.start]:#04x} is not UTF-8", place)]) from None
    except FileNotFoundError:
        meant = nearest(path.name, [file.name for file in sorted(path.parent.glob("*.yaml"))])
        hint = None if meant is None else f"did you mean '{path.with_name(meant)}'?"
        raise RecipeError([Fault("there is no such file", Place(name, 1, 1, ""), hint)]) from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise RecipeError([Fault(f"cannot read this file: {reason}", Place(name, 1, 1, ""))]) from None


def _bytes(path: Path, limit: int) -> bytes:
    # Opening a pipe or a device may block or never end, so what it is comes first.
    if not stat.S_ISREG(path.stat().st_mode):
        raise ValueError("it is a folder" if path.is_dir() else "it is no regular file")
    with path.open("rb") as file:
        data = file.read(max(0, limit) + 1)
    if len(data) > limit:
        raise ValueError(f"{'it' if limit == MAX_BYTES else 'the recipe, with it,'} is larger than {MAX_BYTES} bytes")
    return data


def _forbidden(source: Source, match: re.Match[str]) -> Fault:
    message = f"the character U+{ord(match[0]):04X} is not allowed"
    return Fault(message, source.place(match.start()), r'in double quotes it may be written as an escape, "\x07"')
