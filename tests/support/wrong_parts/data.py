"""Wrong data. The docstring of each says what is wrong with it."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from pydantic import Field

from upge import Context, Data, Problem

ONE_RANK = {"Dealt"}
CORNER = {"Short", "Nameless", "Onward"}


class Base(Data):
    """What the wrong ones share, which is right."""

    @contextmanager
    def open(self, context: Context) -> Iterator[Any]:
        self.__dict__.update(_context=context, _taken=0)
        self.__dict__["_test"] = iter([self.one("t")])
        yield self

    def one(self, key: object) -> Problem:
        number = random.Random(f"{self._context.seed}/{key}").randrange(10**6)
        return Problem(f"{key}/{number}", f"{number} + 1?", str(number + 1))

    def take(self, step: int, count: int) -> Any:
        return [self.one(f"{step}/{i}") for i in range(count)]

    def splits(self) -> Any:
        return ("test",)

    def split(self, name: str) -> Any:
        return [self.one(f"{name}/{i}") for i in range(8)]

    def state(self) -> dict[str, Any]:
        return {}

    def restore(self, state: dict[str, Any]) -> None:
        pass


class Streaming(Base):
    """The next problems, whichever step is asked for."""

    def take(self, step: int, count: int) -> Any:
        self.__dict__["_taken"] += count
        return [self.one(i) for i in range(self._taken - count, self._taken)]


class Shuffling(Base):
    """In the order of Python's own generator."""

    def take(self, step: int, count: int) -> Any:
        return random.sample(super().take(step, count), count)


class Listing(Base):
    """Columns that are no numbers or texts, which runs keep and send."""

    def one(self, key: object) -> Problem:
        return replace(super().one(key), columns={"steps": [1, 2]})


class Clock(Base):
    """In the order of the day."""

    def take(self, step: int, count: int) -> Any:
        return [self.one(f"{step}/{i}/{int(time.time()) // 86400}") for i in range(count)]


class Short(Base):
    """No more than it has, though its caller asks for more."""

    size: int = Field(default=64, ge=1, le=64)

    def take(self, step: int, count: int) -> Any:
        return super().take(step, count)[: self.size]


class Nameless(Base):
    """Ids by the place in the batch: other problems of the same name at every step."""

    def take(self, step: int, count: int) -> Any:
        return [Problem(str(i), p.prompt, p.answer) for i, p in enumerate(super().take(step, count))]


class Emptied(Base):
    """A split that can be read once."""

    def split(self, name: str) -> Any:
        return self._test


class Lent(Base):
    """It gives away the list that it goes on using."""

    def take(self, step: int, count: int) -> Any:
        kept = self.__dict__.setdefault("_lists", {})
        return kept.setdefault((step, count), super().take(step, count))


class Dealt(Base):
    """Every rank takes others, which the machine deals out once more."""

    def take(self, step: int, count: int) -> Any:
        return [self.one(f"{step}/{i}/{self._context.rank}") for i in range(count)]


class Unsaved(Base):
    """A state that JSON can't hold."""

    def state(self) -> dict[str, Any]:
        return {"generator": random.Random(0)}


class Deaf(Base):
    """It doesn't take up the state that it gives."""

    def take(self, step: int, count: int) -> Any:
        self.__dict__["_taken"] = max(self._taken, step + 1)
        return super().take(step, count)

    def state(self) -> dict[str, Any]:
        return {"taken": self._taken}


class Onward(Base):
    """It takes up a state that lies ahead, but not one that lies behind."""

    def take(self, step: int, count: int) -> Any:
        self.__dict__["_taken"] = max(self._taken, step + 1)
        return super().take(step, count)

    def state(self) -> dict[str, Any]:
        return {"taken": self._taken}

    def restore(self, state: dict[str, Any]) -> None:
        self.__dict__["_taken"] = max(self._taken, state["taken"])
