"""The scorers of reasoning_gym."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import Any, ClassVar

from upge import Context, InputError, Problem, Reward
from upge_parts.data.gym import configured, entry_of, made


class ReasoningGymScore(Reward):
    """The score that reasoning_gym's own scorer gives the final answer; for problems of the data `reasoning_gym`.

        R = 1[score ≥ 1], or with `partial` the score

    The final answer is the text after the last `after`; a response without it, or one that the scorer can't read, is
    wrong. Many scorers give every answer 0.01 or so, which a gate or pass@k would count as a success: hence `partial`.
    Units: dimensionless, [0, 1]. Source: arXiv 2505.24760.
    """

    packages: ClassVar = {"reasoning_gym": "upge[reasoning-gym]"}

    after: str | None = None
    """The text before the final answer; null scores the whole response."""
    first_line: bool = False
    """Whether only the response's first line is read: base models continue after an answer."""
    partial: bool = False
    """Whether a partly right answer gets part of the score."""

    @contextmanager
    def open(self, context: Context) -> Iterator[ReasoningGymScore]:
        yield self

    def score(self, pairs: Sequence[tuple[Problem, str]]) -> list[float]:
        """The reward of each (problem, response text) pair. Raises InputError for problems of other data."""
        return [self._score(problem, text) for problem, text in pairs]

    def _score(self, problem: Problem, text: str) -> float:
        dataset, entry = _entry(problem.id)
        if self.first_line:
            text = text.strip().partition("\n")[0]
        if self.after is not None:
            _, found, text = text.rpartition(self.after)
            if not found:
                return 0.0
        try:
            score = float(dataset.score_answer(text.strip(), entry))
        except Exception:  # a scorer may fail on what it can't parse, and a response is anything
            return 0.0
        return score if self.partial else float(score >= 1)


@lru_cache(maxsize=4096)
def _entry(name: str) -> tuple[Any, dict[str, Any]]:
    """The generator and the entry that a problem's id names."""
    try:
        written, index = entry_of(name)
    except ValueError as error:
        raise InputError(f"reward: {error}; the reward 'reasoning_gym' is for the data of that name") from error
    dataset = _dataset(written)
    return dataset, dataset[index]


@lru_cache(maxsize=64)
def _dataset(written: str) -> Any:
    return made(*configured(written))
