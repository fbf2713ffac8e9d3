"""A function of your own."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from pydantic import Field

from upge import Code, Context, PartError, Problem, Reward, Terminated, as_list, as_score, error_text, function_of


class PythonFunction(Reward):
    """The score that a Python function returns for a problem and a response; only with `--allow-code`.

        R = function(problem, response), or with `batch` [R, …] = function(problems, responses)

    A problem has `id`, `prompt`, `answer`, `demonstration` and `band`; a response is text. A score is a finite number,
    or true or false, of Python, numpy or torch. A function that raises, or returns anything else, ends the run with
    the problem's id.

        reward: {use: python, function: rewards.py:score}

    Units: the function's. Source: the function.
    """

    function: Code = Field(examples=["operator:eq"])
    """`module:function` of an installed module, or `file.py:function` of a file beside the recipe."""
    batch: bool = False
    """Whether the function takes lists, with all responses to score at once, and returns a list."""

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
        found = self._called(f"{problems[0].id} … {problems[-1].id}", problems, texts)
        try:
            scores = as_list(found, len(pairs))
        except ValueError as error:
            raise self._wrong(f"returned {error}") from error
        return [self._number(score, problem) for score, problem in zip(scores, problems, strict=True)]

    def _called(self, about: str, *given: Any) -> Any:
        try:
            return self.function(*given)
        except Terminated:
            raise
        except (Exception, SystemExit) as error:  # the function is anybody's
            raise self._wrong(f"raised {error_text(error)} (problem '{about}', {self._line(error)})") from error

    def _line(self, error: BaseException) -> str:
        """`file:line` of what raised: the last line of the function's own file, else the last of all."""
        frames = traceback.extract_tb(error.__traceback__)[1:] or traceback.extract_tb(error.__traceback__)
        file = getattr(getattr(self.function, "__code__", None), "co_filename", None)
        frame = ([each for each in frames if each.filename == file] or list(frames))[-1]
        return f"{frame.filename}:{frame.lineno}"

    def _number(self, score: Any, problem: Problem) -> float:
        try:
            return as_score(score, f" for the problem '{problem.id}'")
        except ValueError as error:
            raise self._wrong(f"returned {error}") from error

    def _wrong(self, fault: str) -> PartError:
        return PartError(f"the reward's function {self.name} {fault}", "reward")
