"""A function of your own."""

from __future__ import annotations

import math
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from numbers import Real
from typing import Any

from pydantic import Field

from upge import Code, Context, PartError, Problem, Reward, function_of


class PythonFunction(Reward):
    """What a Python function says of the problem and the response; only with `--allow-code`.

        R = function(problem, response), or with `batch` [R, …] = function(problems, responses)

    A problem has `id`, `prompt`, `answer`, `demonstration` and `band`; a response is text. A score is a finite number,
    or true or false. A function that raises, or returns anything else, ends the run with the problem's id.

        reward: {use: python, function: rewards.py:score}

    Units: the function's. Source: the function.
    """

    function: Code = Field(examples=["operator:eq"])
    """`module:function` of an installed module, or `file.py:function` of a file beside the recipe."""
    batch: bool = False
    """Whether the function takes lists, all responses that there are to score at once, and returns a list."""

    @contextmanager
    def open(self, context: Context) -> Iterator[FunctionSession]:
        yield FunctionSession(self.function, function_of(self.function), self.batch)


@dataclass(frozen=True)
class FunctionSession:
    """The function, imported, and its name."""

    name: str
    function: Callable[..., Any]
    batch: bool

    def score(self, pairs: Sequence[tuple[Problem, str]]) -> list[float]:
        """The reward of each (problem, response text) pair. Raises PartError."""
        if not self.batch:
            return [self._number(self._called(problem.id, problem, text), problem) for problem, text in pairs]
        if not pairs:
            return []
        problems, texts = [problem for problem, _ in pairs], [text for _, text in pairs]
        scores = self._called(f"{problems[0].id} … {problems[-1].id}", problems, texts)
        if not isinstance(scores, Sequence) or len(scores) != len(pairs):
            counted = len(scores) if isinstance(scores, Sequence) else type(scores).__name__
            raise self._wrong(f"returned {counted} for {len(pairs)} responses; it owes a number for each")
        return [self._number(score, problem) for score, problem in zip(scores, problems, strict=True)]

    def _called(self, about: str, *given: Any) -> Any:
        try:
            return self.function(*given)
        except Exception as error:  # the function is anybody's
            frame = traceback.extract_tb(error.__traceback__)[-1]
            where = f"problem '{about}', {frame.filename}:{frame.lineno}"
            raise self._wrong(f"raised {type(error).__name__}: {error} ({where})") from error

    def _number(self, score: Any, problem: Problem) -> float:
        if not isinstance(score, Real) or not math.isfinite(score):
            said = repr(score)[:100]
            raise self._wrong(f"returned {said} for the problem '{problem.id}'; a score is a finite number")
        return float(score)

    def _wrong(self, fault: str) -> PartError:
        return PartError(f"the reward's function {self.name} {fault}", "reward")
