"""Problems from files of JSON lines."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from upge import InputError, parse_json, read_text
from upge_parts.data.columns import Row
from upge_parts.data.files import FromFiles


class Jsonl(FromFiles):
    """Problems from JSON lines: `prompt` (text or messages), `answer`, and perhaps `demonstration`, `id`, `band`.

        {"prompt": "2 + 2 =", "answer": "4", "demonstration": "2 + 2 = 4", "id": "sum-1", "band": "easy"}

    Other keys are ignored; without `id` a problem is named by its line. Keys of other names can be mapped, nested ones
    too (see docs/data.md). Malformed lines are reported, with their numbers, before anything is trained.
    """

    def rows(self, file: Path) -> Iterator[tuple[int, Row | ValueError]]:
        """The objects of a file's lines."""
        # Only line feeds end a line: JSON may hold the other characters that splitlines() splits at.
        lines = read_text(file).split("\n")
        _refuse_document(file, lines)
        for number, line in enumerate(lines, start=1):
            if line.strip():
                yield number, _object(line)


def _refuse_document(file: Path, lines: Sequence[str]) -> None:
    """Raise InputError where a file isn't lines, but one list of rows as files named .json often are."""
    first = next((number for number, line in enumerate(lines, start=1) if line.strip()), 1)
    opening = "".join(lines[first - 1].split())
    if opening == "[" or opening.startswith("[{"):
        wanted = "write a line for each row (jq -c '.[]'), or read its folder with use: huggingface"
        raise InputError(f"{file}:{first}: one JSON list, where each line should be an object; {wanted}")


def _object(line: str) -> Row | ValueError:
    try:
        # Files with a byte order mark may have been put together; and a number keeps all of its digits.
        found = parse_json(line.removeprefix("\ufeff"), exact=True)
    except json.JSONDecodeError as error:
        return ValueError(f"not JSON: {error.msg.removesuffix(' at')} at column {error.colno}")
    except ValueError as error:
        return ValueError(f"not JSON that can be read: {error}")
    return found if isinstance(found, dict) else ValueError("not a JSON object")
