"""What completions.jsonl says: the success of each prompt over time, measurements, and some responses to read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

from upge.evaluate.paired import records_by_step
from upge.evaluate.scores import Record
from upge.runs.log_lines import Line
from upge.runs.reader import RunReader

MOST = 120
"""How many trajectories a page holds, about: those of whole steps, spread evenly."""


def token_weights(run: RunReader) -> list[Line]:
    """Trajectories with the weights of their tokens, those of `MOST` evenly spread steps; none where none were kept."""
    lines = run.credit
    steps = sorted({line["step"] for line in lines})
    count = max(1, len(steps) * MOST // len(lines)) if len(lines) > MOST else len(steps)
    shown = {steps[index * len(steps) // count] for index in range(count)} if steps else set()
    return [line for line in lines if line["step"] in shown]


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
        trained: (step, problem) → rewards. measured: step → (split, problem) → record.
        groups: the place of the first response to each prompt.
    """

    run: RunReader
    trained: dict[tuple[int, str], list[float]] = field(default_factory=dict)
    measured: dict[int, dict[tuple[str, str], Record]] = field(default_factory=dict)
    groups: list[int] = field(default_factory=list)

    @property
    def prompts(self) -> list[Prompt]:
        """The prompts of all rollout batches, in order."""
        return [Prompt(step, problem, tuple(rewards)) for (step, problem), rewards in self.trained.items()]

    def shown(self, labels: Mapping[tuple[int, str], str] | None = None, most: int = MOST_RESPONSES) -> Shown:
        """Whole prompts' responses, spread evenly over the file, `most` of them or a few more.

        `labels`: (step, problem) of training → the terms that the prompt went to.
        """
        total = len(self.run.responses)
        ends = [*self.groups, total][1:]
        chosen = _evenly(self.groups, total, most)
        spans = [(start, end) for start, end in zip(self.groups, ends, strict=True) if start in chosen]
        lines = list(self.run.texts(self.run.responses[index] for span in spans for index in range(*span)))
        cut = any(len(line["text"]) > MOST_CHARACTERS for line in lines)
        return Shown([_row(line, labels or {}) for line in lines], total, cut)


def read(run: RunReader) -> Responses:
    """The responses of a run; none where none were kept. Raises InputError where a line can't be read."""
    result, last = Responses(run), None
    for index, response in enumerate(run.responses):
        key = (response.stream, response.step, response.problem)
        if key != last:
            result.groups.append(index)
            last = key
        if response.stream.partition("/")[0] != "eval":
            result.trained.setdefault(key[1:], []).append(response.reward)
    result.measured = records_by_step(run)
    return result


def _evenly(groups: Sequence[int], total: int, most: int) -> set[int]:
    """Which of the groups to take, so that their lines are about `most`."""
    if total <= most:
        return set(groups)
    count = max(1, len(groups) * most // total)
    return {groups[index * len(groups) // count] for index in range(count)}


def _row(line: dict[str, Any], labels: Mapping[tuple[int, str], str]) -> dict[str, Any]:
    columns = {key: line[key] for key in ("stream", "step", "problem", "sample", "reward", "truncated")}
    term = labels.get((line["step"], line["problem"]), "") if line["stream"] == "train" else ""
    return columns | {"term": term, "length": len(line["tokens"]), "text": line["text"][:MOST_CHARACTERS]}
