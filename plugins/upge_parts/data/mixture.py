"""Several sources in given proportions."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from pydantic import Field, model_validator

from upge import Context, Data, DataSession, Problem, SomeData, opened


class Mixture(Data):
    """Several sources in given proportions: each problem comes from one of them, drawn by their weights.

        source(k) ~ weights, keyed by (seed, k);      problem k  =  the next of source(k)

    k numbers the problems of the run from 0. The source's name is put before ids and evaluation splits: `maths/test`.
    The order depends on k and the seed alone. `template` and `system` are set here, for all sources.
    """

    sources: dict[str, SomeData] = Field(min_length=1, examples=[{"letters": {"use": "lab"}}])
    """The sources by name."""
    weights: dict[str, float] = Field(default_factory=dict)
    """The weight of each source, in any unit; a source without one has 1."""

    @model_validator(mode="after")
    def _weighs_its_sources(self) -> Mixture:
        for name, weight in self.weights.items():
            if name not in self.sources:
                self.refuse(("weights", name), f"no source is called '{name}': {', '.join(self.sources)}", key=True)
            if weight < 0:
                self.refuse(("weights", name), "a weight is 0 or more")
        if not any(self.weight(name) for name in self.sources):
            self.refuse(("weights",), "all weights are 0: there is nothing to take")
        for name, source in self.sources.items():
            for key in ("template", "system"):
                if getattr(source, key) is not None:
                    self.refuse(("sources", name, key), f"'{key}' belongs to the mixture, for all sources", key=True)
        return self

    def weight(self, name: str) -> float:
        """The weight of a source."""
        return self.weights.get(name, 1.0)

    @contextmanager
    def open(self, context: Context) -> Iterator[Mixed]:
        with ExitStack() as stack:
            sessions = {
                name: stack.enter_context(opened(source, f"data.sources.{name}", source.open, context))
                for name, source in self.sources.items()
            }
            yield Mixed(sessions, {name: self.weight(name) for name in sessions}, context.seed)


@dataclass
class Mixed:
    """Open sources. `_drawn` remembers which source each problem so far came from, and the how-manieth it was there."""

    sessions: Mapping[str, DataSession]
    weights: Mapping[str, float]
    seed: int
    _drawn: list[tuple[str, int]] = field(default_factory=list)
    _counts: Counter[str] = field(default_factory=Counter)

    def take(self, step: int, count: int) -> list[Problem]:
        """The problems of one rollout batch."""
        return [self._problem(*self.drawn(place)) for place in range(step * count, (step + 1) * count)]

    def drawn(self, place: int) -> tuple[str, int]:
        """Which source problem `place` comes from, and its place there: how many before it came from the same."""
        while len(self._drawn) <= place:
            name = self._source(len(self._drawn))
            self._drawn.append((name, self._counts[name]))
            self._counts[name] += 1
        return self._drawn[place]

    def splits(self) -> Sequence[str]:
        """`source/split` of every split of every source."""
        return tuple(f"{name}/{split}" for name, session in self.sessions.items() for split in session.splits())

    def split(self, name: str) -> Sequence[Problem]:
        """The problems of a source's split."""
        source = next(each for each in self.sessions if name in {f"{each}/{s}" for s in self.sessions[each].splits()})
        return [_named(source, problem) for problem in self.sessions[source].split(name.removeprefix(f"{source}/"))]

    def state(self) -> dict[str, Any]:
        """The states of the sources."""
        return {name: session.state() for name, session in self.sessions.items()}

    def restore(self, state: dict[str, Any]) -> None:
        """Take up the states of the sources."""
        for name, session in self.sessions.items():
            session.restore(state[name])

    def _source(self, place: int) -> str:
        draw = random.Random(f"mixture/{self.seed}/{place}")
        return draw.choices(list(self.weights), list(self.weights.values()))[0]

    def _problem(self, name: str, place: int) -> Problem:
        return _named(name, self.sessions[name].take(place, 1)[0])


def _named(source: str, problem: Problem) -> Problem:
    return replace(problem, id=f"{source}/{problem.id}")
