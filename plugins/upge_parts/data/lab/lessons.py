"""The lessons that the lab's base model was made with."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from pydantic import Field, model_validator

from upge import Context, Data, Problem
from upge_parts.data.lab.task import LETTERS, STYLES, Task, generate


class LabLessons(Data):
    """An endless stream of lab problems with solutions of several styles: the training data of the lab's base model.

        problem = f(seed, step, index)      of the training side, uniform over chain lengths

    `worked` solutions have every intermediate state. `thorough` solutions also have the remaining operations, with
    varying separators. `short` solutions have only the answer. Test problems are excluded.
    """

    short: float = Field(ge=0)
    """The weight of short answers."""
    worked: float = Field(ge=0)
    """The weight of worked solutions."""
    thorough: float = Field(ge=0)
    """The weight of thorough solutions."""
    short_lengths: tuple[int, ...] = (1, 2, 3, 4, 5, 6, 7, 8)
    """Chain lengths of short answers."""
    worked_lengths: tuple[int, ...] = (1, 2, 3, 4, 5)
    """Chain lengths of worked solutions."""
    thorough_lengths: tuple[int, ...] = (1, 2, 3, 4, 5, 6, 7, 8)
    """Chain lengths of thorough solutions."""

    @model_validator(mode="after")
    def _something(self) -> LabLessons:
        if self.short + self.worked + self.thorough == 0:
            self.refuse(("short",), "all weights are 0: there is nothing to teach")
        return self

    @contextmanager
    def open(self, context: Context) -> Iterator[Lessons]:
        yield Lessons(self, context.seed)


@dataclass(frozen=True)
class Lessons:
    """An open stream of lessons."""

    settings: LabLessons
    seed: int

    def take(self, step: int, count: int) -> list[Problem]:
        """The lessons of one batch."""
        return [self._lesson(step, index) for index in range(count)]

    def splits(self) -> Sequence[str]:
        """No splits: lessons are for learning."""
        return ()

    def split(self, name: str) -> Sequence[Problem]:
        """Raises KeyError: there are none."""
        raise KeyError(name)

    def state(self) -> dict[str, Any]:
        """Nothing: the step says it all."""
        return {}

    def restore(self, state: dict[str, Any]) -> None:
        """Take up a saved state, which is empty."""

    def _lesson(self, step: int, index: int) -> Problem:
        draw = random.Random(f"lesson/{self.seed}/{step}/{index}")
        given = self.settings
        kinds = {"short": given.short_lengths, "worked": given.worked_lengths, "thorough": given.thorough_lengths}
        kind = draw.choices(list(kinds), [given.short, given.worked, given.thorough])[0]
        task = generate(("lesson", self.seed, step, index), kinds[kind], LETTERS, "train")
        columns = task.columns() | {"kind": kind}
        return Problem(f"{step}/{index}", task.prompt(), task.answer(), _solution(task, kind, draw), columns=columns)


def _solution(task: Task, kind: str, draw: random.Random) -> str:
    if kind == "thorough":
        return task.thorough(draw.choice(STYLES))
    return task.worked() if kind == "worked" else task.short()
