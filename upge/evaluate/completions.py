"""Responses from a file of JSON lines, as runs and evaluations leave them and other programs may write them.

    {"problem": "p7", "text": "6 + 6 = 12", "sample": 0, "stream": "eval/test", "step": 0, "truncated": false}

with `tokens`, a list, if they are known, and `opening`, how the prompt began the response itself, if it did.

`problem` and `text` are needed. Without `stream` a line belongs to the only split of `eval.splits`; without `sample` a
problem's responses are numbered as they come; without `tokens` no length is reported. Lines of other streams are left
out, and where a stream was measured at several steps, all but the last step's.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from upge.errors import InputError
from upge.files import parse_json, regular_file
from upge.runs.folder import banded, stream_of
from upge.types import Problem

Given = tuple[Problem, dict[str, Any]]
"""A problem, and a response to it as a line of completions.jsonl without its reward."""

SORTS: Mapping[str, type | tuple[type, ...]] = {
    "problem": str, "text": str, "stream": str, "step": int, "sample": int, "truncated": bool, "tokens": list,
    "opening": str,
}  # fmt: skip


@dataclass(frozen=True)
class Completions:
    """The responses of a file, read anew each time it is called; `count` of them."""

    file: Path
    problems: Mapping[tuple[str, str], Problem]
    steps: Mapping[str, int]
    only: str | None
    count: int

    def __call__(self) -> Iterator[Given]:
        """Every requested response, in the file's order."""
        numbers: Counter[tuple[str, str]] = Counter()
        for _, line in _lines(self.file, self.only):
            key = (line["stream"], line["problem"])
            if key not in self.problems or line["step"] != self.steps[line["stream"]]:
                continue
            kept = {"stream": line["stream"], "step": line["step"], "problem": line["problem"]}
            kept |= banded(self.problems[key])
            # The reward is to come; its place among the keys is that of a sampled response.
            kept |= {"sample": line.get("sample", numbers[key]), "reward": None}
            kept |= {"truncated": line.get("truncated", False)}
            kept |= {key: line[key] for key in ("text", "tokens", "opening") if key in line}
            numbers[key] += 1
            yield self.problems[key], kept


def completions_of(file: Path, problems: Mapping[str, Sequence[Problem]], least: int) -> Completions:
    """The responses of a file to the splits' problems.

    Raises InputError with the line that can't be read, or where a problem has fewer than `least` responses, or another
    number of them than the others of its split.
    """
    only = stream_of(next(iter(problems))) if len(problems) == 1 else None
    problem_of = {
        (stream_of(split), its_problem.id): its_problem for split in problems for its_problem in problems[split]
    }
    steps: dict[str, int] = {}
    seen: defaultdict[tuple[str, str, int], set[int]] = defaultdict(set)
    for number, line in _lines(file, only):
        steps[line["stream"]] = max(line["step"], steps.get(line["stream"], line["step"]))
        samples = seen[line["stream"], line["problem"], line["step"]]
        sample = line.get("sample", len(samples))
        if sample in samples:
            raise InputError(f"{file}:{number}: sample {sample} of '{line['problem']}' is there twice")
        samples.add(sample)
    for split, its in problems.items():
        stream = stream_of(split)
        numbers = {its_problem.id: len(seen[stream, its_problem.id, steps.get(stream, 0)]) for its_problem in its}
        _check(file, split, numbers, least)
    total = sum(len(seen[stream, problem, steps.get(stream, 0)]) for stream, problem in problem_of)
    return Completions(file, problem_of, steps, only, total)


def problems_in(file: Path, splits: Sequence[str]) -> dict[str, set[str]]:
    """The ids of the problems that a file has responses to, by split. Raises InputError for what can't be read."""
    ids: dict[str, set[str]] = {stream_of(split): set() for split in splits}
    for _, line in _lines(file, stream_of(splits[0]) if len(splits) == 1 else None):
        ids.setdefault(line["stream"], set()).add(line["problem"])
    return {split: ids[stream_of(split)] for split in splits}


def _check(file: Path, split: str, numbers: Mapping[str, int], least: int) -> None:
    most = max(numbers.values(), default=0)
    fewest = min(numbers, key=lambda problem: numbers[problem], default="")
    if most == 0:
        raise InputError(f"{file}: has no response to a problem of '{split}'")
    if numbers[fewest] < most:
        counts = f"{numbers[fewest]} responses to '{fewest}' of '{split}' and {most} to others"
        raise InputError(f"{file}: has {counts}; give as many to each (eval.limit: of so many problems only)")
    if most < least:
        raise InputError(f"{file}: has {most} responses to each problem of '{split}'; eval.pass_at needs {least}")


def _lines(file: Path, only: str | None) -> Iterator[tuple[int, dict[str, Any]]]:
    """(number, line) of every completion, `stream` and `step` filled in."""
    try:
        with regular_file(file).open(encoding="utf-8-sig") as lines:  # a byte order mark is no fault
            for number, text in enumerate(lines, start=1):
                if text.strip():
                    yield number, _parsed(text, f"{file}:{number}", only)
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{file}: can't be read: {getattr(error, 'strerror', None) or error}") from error


def _parsed(text: str, place: str, only: str | None) -> dict[str, Any]:
    try:
        line = parse_json(text)
    except json.JSONDecodeError as error:
        raise InputError(f"{place}: not JSON: {error.msg} at column {error.colno}") from error
    except ValueError as error:
        raise InputError(f"{place}: not JSON that can be read: {error}") from error
    if not isinstance(line, dict):
        raise InputError(f"{place}: not a JSON object")
    if only is not None:
        line.setdefault("stream", only)
    line.setdefault("step", 0)
    for key in ("problem", "text", "stream"):
        if key not in line:
            hint = "; with several splits each line says which: 'eval/<split>'" if key == "stream" else ""
            raise InputError(f"{place}: has no '{key}'{hint}")
    for key, sort in SORTS.items():
        if key in line and not isinstance(line[key], sort):
            raise InputError(f"{place}: '{key}' can't be {json.dumps(line[key], ensure_ascii=False)[:40]}")
    return line
