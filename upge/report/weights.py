"""What credit.jsonl says: with which weight each token of a few responses was pushed up or down."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from upge.errors import InputError
from upge.files import parse_json
from upge.records.metrics import is_count, is_finite, is_number

MOST = 120
"""How many trajectories a page holds, about: those of whole steps, spread evenly."""

Line = dict[str, Any]


def token_weights(folder: Path) -> list[Line]:
    """Trajectories with the weights of their tokens; none where none were kept. Raises InputError for a bad line."""
    file = folder / "credit.jsonl"
    if not file.is_file():
        return []
    with file.open(encoding="utf-8") as texts:
        lines = [_line(text, f"{file}:{number}") for number, text in enumerate(texts, start=1) if text.endswith("\n")]
    steps = sorted({line["step"] for line in lines})
    count = max(1, len(steps) * MOST // len(lines)) if len(lines) > MOST else len(steps)
    shown = {steps[index * len(steps) // count] for index in range(count)} if steps else set()
    return [line for line in lines if line["step"] in shown]


def _line(text: str, place: str) -> Line:
    try:
        line = parse_json(text)
    except ValueError as error:
        raise InputError(f"{place}: can't be read ({error})") from error
    if not isinstance(line, dict) or not _is_whole(line):
        raise InputError(f"{place}: is no trajectory with the weights of its tokens")
    for term in line["terms"].values():
        term["weights"] = [weight if is_finite(weight) else None for weight in term["weights"]]
    return line


def _is_whole(line: Line) -> bool:
    texts = [line.get("problem"), line.get("prompt"), *_listed(line.get("pieces"))]
    terms = line.get("terms")
    counts = is_count(line.get("step")) and isinstance(line.get("sample"), int)
    return (
        counts
        and is_finite(line.get("reward"))
        and all(isinstance(text, str) for text in texts)
        and isinstance(terms, dict)
        and all(isinstance(term, dict) and _is_term(term) for term in terms.values())
    )


def _is_term(term: Line) -> bool:
    weights = term.get("weights")
    said = is_finite(term.get("coefficient")) and (term.get("advantage") is None or is_finite(term["advantage"]))
    return said and isinstance(weights, list) and all(map(is_number, weights))


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [None]
