"""What completions.jsonl says: the success of each prompt over time, measurements, and some responses to read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

from upge.errors import InputError
from upge.evaluate.scores import Record
from upge.files import parse_json
from upge.runs.reader import is_count, is_finite, is_number

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


MOST_RESPONSES = 1000
"""How many responses a page holds to be read, about."""

MOST_CHARACTERS = 4000
"""How much of a response it holds."""


@dataclass(frozen=True)
class Prompt:
    """A prompt of a rollout batch with the rewards of its rollouts."""

    step: int
    problem: str
    rewards: tuple[float, ...]

    @property
    def success(self) -> float:
        """P: the mean reward."""
        return fmean(self.rewards)


@dataclass(frozen=True)
class Shown:
    """Responses to be read: some of `total`, spread evenly; `cut`: some of them are not shown to their end."""

    rows: list[dict[str, Any]]
    total: int
    cut: bool


@dataclass
class Responses:
    """All responses of a run, counted.

    Attributes:
        trained: (step, problem) → rewards. measured: step → (split, problem) → record. total: lines.
        groups: the first line of each prompt's responses.
    """

    file: Path
    trained: dict[tuple[int, str], list[float]] = field(default_factory=dict)
    measured: dict[int, dict[tuple[str, str], Record]] = field(default_factory=dict)
    groups: list[int] = field(default_factory=list)
    total: int = 0

    @property
    def prompts(self) -> list[Prompt]:
        """The prompts of all rollout batches, in order."""
        return [Prompt(step, problem, tuple(rewards)) for (step, problem), rewards in self.trained.items()]

    def shown(self, labels: Mapping[tuple[int, str], str] | None = None, most: int = MOST_RESPONSES) -> Shown:
        """Whole prompts' responses, spread evenly over the file, `most` of them or a few more.

        `labels`: (step, problem) of training → the terms that the prompt went to.
        """
        chosen = _evenly(self.groups, self.total, most)
        rows, cut, taking = [], False, False
        firsts = set(self.groups)
        for index, line in enumerate(_lines(self.file) if chosen else ()):
            taking = index in chosen if index in firsts else taking
            if taking:
                rows.append(_row(line, labels or {}))
                cut = cut or len(line["text"]) > MOST_CHARACTERS
        return Shown(rows, self.total, cut)


def read(folder: Path) -> Responses:
    """The responses of a run; none where none were kept. Raises InputError where a line can't be read."""
    found, last = Responses(folder / "completions.jsonl"), None
    for line in _lines(found.file) if found.file.is_file() else ():
        step, problem, (stream, _, split) = line["step"], line["problem"], line["stream"].partition("/")
        if (stream, split, step, problem) != last:
            found.groups.append(found.total)
            last = (stream, split, step, problem)
        found.total += 1
        if stream == "eval":
            records = found.measured.setdefault(step, {})
            record = records.setdefault((split, problem), Record(split, problem, line.get("band")))
            record.add(line["reward"], line["truncated"], len(line["tokens"]))
        else:
            found.trained.setdefault((step, problem), []).append(line["reward"])
    return found


def _evenly(groups: Sequence[int], total: int, most: int) -> set[int]:
    """Which of the groups to take, so that their lines are about `most`."""
    if total <= most:
        return set(groups)
    count = max(1, len(groups) * most // total)
    return {groups[index * len(groups) // count] for index in range(count)}


def _row(line: dict[str, Any], labels: Mapping[tuple[int, str], str]) -> dict[str, Any]:
    own = {key: line[key] for key in ("stream", "step", "problem", "sample", "reward", "truncated")}
    term = labels.get((line["step"], line["problem"]), "") if line["stream"] == "train" else ""
    return own | {"term": term, "length": len(line["tokens"]), "text": line["text"][:MOST_CHARACTERS]}


KINDS = {"stream": str, "step": int, "problem": str, "sample": int, "reward": int | float, "truncated": bool} | {
    "text": str,
    "tokens": list,
}
"""What a line holds."""


def _lines(file: Path) -> Iterator[dict[str, Any]]:
    """The whole lines of the file: the last one of a run that was stopped may be cut off."""
    with file.open(encoding="utf-8") as lines:
        for number, text in enumerate(lines, start=1):
            if not text.endswith("\n"):
                return
            try:
                line = parse_json(text)
            except ValueError as error:
                raise InputError(f"{file}:{number}: can't be read ({error})") from error
            wrong = [key for key, kind in KINDS.items() if not isinstance(line, dict) or not _is(line.get(key), kind)]
            if wrong:
                raise InputError(f"{file}:{number}: is no response: it has no '{wrong[0]}', or another kind of it")
            if not is_finite(line["reward"]):
                raise InputError(f"{file}:{number}: its reward is not finite")
            if not isinstance(line.get("band", ""), str):
                raise InputError(f"{file}:{number}: its band is no text")
            yield line


def _is(value: Any, kind: Any) -> bool:
    return isinstance(value, kind) and (kind is bool or not isinstance(value, bool))
