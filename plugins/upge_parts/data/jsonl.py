"""Problems from files of JSON lines."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pydantic import Field

from upge import Context, Data, InputError, Problem
from upge_parts.data.session import InMemory


class Jsonl(Data):
    """Problems from JSON lines: `prompt` (text or messages), `answer`, and perhaps `demonstration`, `id`, `band`.

        {"prompt": "2 + 2 =", "answer": "4", "demonstration": "2 + 2 = 4", "id": "sum-1", "band": "easy"}

    Other keys are left alone; without `id` a problem is named by its line. Malformed lines are all reported, with
    their numbers, before anything is trained.
    """

    path: str = Field(min_length=1)
    """The file of training problems, relative to the working directory."""
    evaluation: dict[str, str] = Field(default_factory=dict)
    """Files of evaluation problems by the name of their split."""

    @contextmanager
    def open(self, context: Context) -> Iterator[InMemory]:
        evaluation = {name: read(Path(path)) for name, path in self.evaluation.items()}
        yield InMemory(read(Path(self.path)), evaluation, context.seed)


def read(path: Path) -> list[Problem]:
    """The problems of a file. Raises InputError with every malformed line."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: can't be read: {getattr(error, 'strerror', None) or error}") from error
    problems, faults = [], []
    seen: dict[str, int] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            problem = parse(line, default_id=f"{path.stem}-{number}")
            if problem.id in seen:
                raise ValueError(f"the id '{problem.id}' is that of line {seen[problem.id]} too")
            seen[problem.id] = number
            problems.append(problem)
        except ValueError as error:
            faults.append(f"{path}:{number}: {error}")
    if not problems and not faults:
        faults.append(f"{path}: holds no problems")
    if faults:
        raise InputError("\n".join(faults))
    return problems


def parse(line: str, default_id: str) -> Problem:
    """The problem in a line of JSON. Raises ValueError saying what is wrong with it."""
    try:
        found = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON: {error.msg} at column {error.colno}") from error
    if not isinstance(found, dict):
        raise ValueError("not a JSON object")
    return Problem(
        id=_text(found, "id", default_id) or default_id,
        prompt=_prompt(found),
        answer=_text(found, "answer") or "",
        demonstration=_text(found, "demonstration", None),
        band=_text(found, "band", None),
    )


_REQUIRED = object()


def _text(found: Mapping[str, Any], key: str, default: Any = _REQUIRED) -> str | None:
    value = found.get(key, default)
    if value is _REQUIRED:
        raise ValueError(f"has no '{key}'; it has {', '.join(found) or 'nothing'}")
    if value is None or isinstance(value, str):
        return value
    if key in ("id", "answer") and isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    raise ValueError(f"'{key}' should be text, not {type(value).__name__}")


def _prompt(found: Mapping[str, Any]) -> str | list[dict[str, str]]:
    value = found.get("prompt", found.get("messages"))
    if isinstance(value, str) and value:
        return value
    if isinstance(value, list) and value and all(_is_message(turn) for turn in value):
        return value
    raise ValueError("'prompt' should be text, or a list of messages with 'role' and 'content'")


def _is_message(turn: Any) -> bool:
    return isinstance(turn, dict) and all(isinstance(turn.get(key), str) for key in ("role", "content"))
