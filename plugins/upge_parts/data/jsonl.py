"""Problems from files of JSON lines."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from upge import parse_json, read_text
from upge_parts.data.columns import Row
from upge_parts.data.files import FromFiles


class Jsonl(FromFiles):
    """Problems from JSON lines: `prompt` (text or messages), `answer`, and perhaps `demonstration`, `id`, `band`.

        {"prompt": "2 + 2 =", "answer": "4", "demonstration": "2 + 2 = 4", "id": "sum-1", "band": "easy"}

    Other keys are left alone; without `id` a problem is named by its line. Keys of other names are mapped, also nested
    ones (see docs/data.md). Malformed lines are reported, with their numbers, before anything is trained.
    """

    def rows(self, file: Path) -> Iterator[tuple[int, Row | ValueError]]:
        """The objects of a file's lines."""
        for number, line in enumerate(_lines(file), start=1):
            if line.strip():
                yield number, _object(line)


def _lines(file: Path) -> list[str]:
    # Only line feeds end a line: JSON may hold the other characters that splitlines() splits at.
    return read_text(file).split("\n")


def _object(line: str) -> Row | ValueError:
    try:
        # Files with a byte order mark may have been put together; and a number keeps all of its digits.
        found = parse_json(line.removeprefix("\ufeff"), decimals=True)
    except json.JSONDecodeError as error:
        return ValueError(f"not JSON: {error.msg} at column {error.colno}")
    except ValueError as error:
        return ValueError(f"not JSON that can be read: {error}")
    return found if isinstance(found, dict) else ValueError("not a JSON object")
