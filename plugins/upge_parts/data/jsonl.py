"""Problems from files of JSON lines."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from upge import InputError, parse_json, regular_file
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
    try:
        # Only line feeds end a line: JSON may hold the other characters that splitlines() splits at.
        return regular_file(file).read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{file}: can't be read: {getattr(error, 'strerror', None) or error}") from error


def _object(line: str) -> Row | ValueError:
    try:
        found = parse_json(line)
    except json.JSONDecodeError as error:
        return ValueError(f"not JSON: {error.msg} at column {error.colno}")
    except ValueError as error:
        return ValueError(f"not JSON that can be read: {error}")
    return found if isinstance(found, dict) else ValueError("not a JSON object")
