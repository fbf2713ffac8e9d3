"""The lines of a run's logs, validated: anybody may have edited them, and a killed run may have cut one off."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from upge.errors import InputError
from upge.files import is_count, is_finite, is_number, parse_json, regular_file

Line = dict[str, Any]


class Response(NamedTuple):
    """A sampled response without its text. Attributes: offset: bytes before its line. length: response tokens."""

    stream: str
    step: int
    problem: str
    band: str | None
    sample: int
    reward: float
    truncated: bool
    length: int
    offset: int


def metrics_line(text: str | bytes, place: str) -> Line:
    """A line of metrics.jsonl or timings.jsonl: `phase`, `step`, and numbers."""
    line = _object(text, place)
    if not isinstance(line.get("phase"), str) or not is_count(line.get("step")):
        raise InputError(f"{place}: has no 'phase', a text, or no 'step', a number from 0")
    if wrong := [name for name, value in line.items() if name != "phase" and not is_number(value)]:
        raise InputError(f"{place}: '{wrong[0][:80]}' is no number")
    return line


def metrics_lines(file: Path) -> Iterator[Line]:
    """The whole lines of metrics.jsonl or timings.jsonl. Raises InputError with the first line that can't be read."""
    for number, _, text in _lines(file):
        yield metrics_line(text, f"{file}:{number}")


COMPLETION: Mapping[str, Any] = {"stream": str, "step": int, "problem": str, "sample": int, "reward": int | float} | {
    "truncated": bool,
    "text": str,
    "tokens": list,
}
"""What a line of completions.jsonl holds."""


def completion_line(text: str | bytes, place: str) -> Line:
    """A line of completions.jsonl."""
    line = _object(text, place, "is no response: not a JSON object")
    if wrong := [key for key, kind in COMPLETION.items() if not _is(line.get(key), kind)]:
        raise InputError(f"{place}: is no response: it has no '{wrong[0]}', or another kind of it")
    if not is_finite(line["reward"]):
        raise InputError(f"{place}: its reward is not finite")
    if not is_count(line["step"]):
        raise InputError(f"{place}: its 'step' is no number from 0")
    if not isinstance(line.get("band", ""), str):
        raise InputError(f"{place}: its band is no text")
    return line


def responses(file: Path) -> Iterator[Response]:
    """The responses in the whole lines of completions.jsonl. Raises InputError where a line is none."""
    for number, offset, text in _lines(file):
        line = completion_line(text, f"{file}:{number}")
        texts = line["stream"], line["step"], line["problem"], line.get("band")
        scores = line["sample"], line["reward"], line["truncated"], len(line["tokens"])
        yield Response(*texts, *scores, offset)


def credit_lines(file: Path) -> Iterator[Line]:
    """The trajectories in the whole lines of credit.jsonl; weights that aren't finite become None."""
    for number, _, text in _lines(file):
        line = _object(text, f"{file}:{number}")
        if not _is_trajectory(line):
            raise InputError(f"{file}:{number}: is no trajectory with the weights of its tokens")
        for term in line["terms"].values():
            term["weights"] = [weight if is_finite(weight) else None for weight in term["weights"]]
        yield line


def _is_trajectory(line: Line) -> bool:
    pieces, terms = line.get("pieces"), line.get("terms")
    texts = [line.get("problem"), line.get("prompt"), *(pieces if isinstance(pieces, list) else [None])]
    return (
        is_count(line.get("step"))
        and isinstance(line.get("sample"), int)
        and is_finite(line.get("reward"))
        and all(isinstance(text, str) for text in texts)
        and isinstance(terms, dict)
        and all(isinstance(term, dict) and _is_term(term) for term in terms.values())
    )


def _is_term(term: Line) -> bool:
    weights, advantage = term.get("weights"), term.get("advantage")
    numbers = is_finite(term.get("coefficient")) and (advantage is None or is_finite(advantage))
    return numbers and isinstance(weights, list) and all(map(is_number, weights))


def _lines(file: Path) -> Iterator[tuple[int, int, bytes]]:
    """(number, offset in bytes, text) of each whole line: one that ends with a line feed."""
    offset = 0
    try:
        with regular_file(file).open("rb") as lines:
            for number, text in enumerate(lines, start=1):
                if text.endswith(b"\n"):
                    yield number, offset, text
                offset += len(text)
    except OSError as error:
        raise InputError(f"{file}: can't be read ({error.strerror or error})") from error


def _object(text: str | bytes, place: str, otherwise: str = "can't be read: not a JSON object") -> Line:
    try:
        line = parse_json(text.decode() if isinstance(text, bytes) else text)
    except ValueError as error:
        raise InputError(f"{place}: can't be read: {error}") from error
    if not isinstance(line, dict):
        raise InputError(f"{place}: {otherwise}")
    return line


def _is(value: Any, kind: Any) -> bool:
    return isinstance(value, kind) and (kind is bool or not isinstance(value, bool))
