"""The form of a response."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated

from pydantic import Field, field_validator

from upge import Context, Problem, Response, Reward
from upge_parts.rewards.graders import Graders, graders


class Format(Reward):
    r"""1 if the whole response matches a pattern, else 0.

        R = 1[pattern matches all of the response]

    The default requires a thought in think tags and after it an answer in answer tags. If the prompt opens the response
    itself, for example with `<think>`, the response after that opening may match too. A dot matches line breaks too. A
    response on which matching takes longer than `seconds`, as patterns like `(a+)+b` can, scores 0. Usually it is one
    of several rewards, with `weighted`. Needs Linux or macOS.

    Units: dimensionless, {0, 1}. Source: the format reward of DeepSeek-R1, arXiv 2501.12948.
    """

    pattern: Annotated[str, Field(max_length=1000)] = r"\s*<think>.*?</think>\s*<answer>.*?</answer>\s*"
    """A regular expression, as Python's `re` has them, for the whole response."""
    opening: bool = True
    """Whether the response after its prompt's opening, such as `<think>`, is matched as well."""
    seconds: Annotated[float, Field(gt=0, le=600)] = 1.0
    """The time limit for one response; then its grader is killed, and the response scores 0."""
    workers: Annotated[int, Field(ge=1, le=256)] = 1
    """Parallel worker processes of each rank."""

    @field_validator("pattern")
    @classmethod
    def _compiles(cls, pattern: str) -> str:
        try:
            re.compile(pattern, re.DOTALL)
        except (re.error, RecursionError, OverflowError) as error:
            raise ValueError(f"not a regular expression: {error}") from error
        return pattern

    @contextmanager
    def open(self, context: Context) -> Iterator[FormatSession]:
        with graders("upge_parts.rewards.matching", self.workers, self.seconds) as opened:
            yield FormatSession(opened, self.pattern, self.opening)


@dataclass(frozen=True)
class FormatSession:
    """Open graders, and the pattern they match."""

    graders: Graders
    pattern: str
    opening: bool = True

    def score(self, pairs: Sequence[tuple[Problem, str]]) -> list[float]:
        """The reward of each (problem, response text) pair."""
        asked = [(self.pattern, *self._forms(text)) for _, text in pairs]
        return [grade or 0.0 for grade in self.graders.grade(asked)]

    def _forms(self, text: str) -> list[str]:
        """What may match: the response, and where its prompt opens it the two together."""
        if self.opening and isinstance(text, Response) and text.opening:
            return [str(text), text.whole]
        return [str(text)]
