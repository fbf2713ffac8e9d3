"""What data owe: `take` is a function of its arguments, the seed and the restored state, whenever it is called."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

from upge.part import Data
from upge.testing.fixtures import context, shown, shuffled, world
from upge.types import DataSession, Problem

STEPS, COUNT = 6, 4


def check_problems(part: Data, examples: int) -> None:
    """`take` gives as many problems as it is asked for, in training and in splits each of them whole."""
    del examples
    with part.open(context()) as session:
        for step, count in ((0, 1), (0, COUNT), (5, 7), (1, 300), (1000, 2)):
            problems = session.take(step, count)
            got = len(problems) if isinstance(problems, Sequence) else type(problems).__name__
            assert got == count, f"take({step}, {count}): expected {count} problems, got {got}"
            _check_whole(problems, f"take({step}, {count})")
        for name in session.splits():
            assert isinstance(name, str), f"splits(): expected names, got {shown(name)}"
            _check_whole(session.split(name), f"split('{name}')")


def _check_whole(problems: Iterable[Problem], where: str) -> None:
    for place, problem in enumerate(problems):
        at = f"{where}, problem {place}"
        assert isinstance(problem, Problem), f"{at}: expected a Problem, got {shown(problem)}"
        for field in ("id", "answer", "demonstration", "band"):
            value = getattr(problem, field)
            optional = value is None and field != "id"
            assert optional or isinstance(value, str), f"{at}, {field}: expected a text, got {shown(value)}"
        assert problem.id, f"{at}, id: expected a name, got ''"
        for name, value in problem.columns.items():
            fits = isinstance(name, str) and isinstance(value, str | int | float)
            assert fits, f"{at}, columns: expected numbers and texts by name, got {shown(name)}: {shown(value)}"
        prompt = problem.prompt
        messages = not isinstance(prompt, str) and all(
            isinstance(m, dict) and isinstance(m.get("role"), str) and "content" in m for m in prompt
        )
        if not prompt or not (isinstance(prompt, str) or messages):
            said = "expected a text, or messages with role and content"
            raise AssertionError(f"{at}, prompt: {said}, got {shown(prompt)}")


def check_take(part: Data, examples: int) -> None:
    """The same arguments give the same problems: twice, called ahead, in another order, in another session."""
    del examples
    with part.open(context()) as session:
        expected = {step: _copied(session.take(step, COUNT)) for step in range(STEPS)}
        for step in range(STEPS):
            _assert_same(expected[step], session.take(step, COUNT), f"take({step}, {COUNT}) again, after later ones")
        taken = session.take(1, COUNT)
        if isinstance(taken, list):
            taken.clear()
        _assert_same(expected[1], session.take(1, COUNT), f"take(1, {COUNT}), after the caller emptied its list")
    with world(1), part.open(context()) as session:
        for step in shuffled(STEPS):
            session.take(step + 7, 3)
            how = f"take({step}, {COUNT}), called ahead and in another order, in another session"
            _assert_same(expected[step], session.take(step, COUNT), how)
    with world(2), part.open(context(rank=1, world=2)) as session:
        how = f"take(0, {COUNT}) on rank 1 of 2; every rank takes all, and the machine deals them out"
        _assert_same(expected[0], session.take(0, COUNT), how)


def check_names(part: Data, examples: int) -> None:
    """An id names one problem: noise, resuming and comparisons are keyed by it."""
    del examples
    known: dict[str, dict[str, Any]] = {}
    with part.open(context()) as session:
        taken = [problem for step in range(40) for problem in session.take(step, 8)]
        for problem in taken:
            [is_] = _copied([problem])
            was = known.setdefault(problem.id, is_)
            differ = next((key for key in is_ if was[key] != is_[key]), None)
            assert differ is None, (
                f"the id '{problem.id}' names two problems: {differ}: expected {shown(was[differ or ''])}, "
                f"got {shown(is_[differ or ''])}"
            )


def check_splits(part: Data, examples: int) -> None:
    """A split is the same at every look, in every session."""
    del examples
    with part.open(context()) as session:
        splits = {name: _copied(session.split(name)) for name in session.splits()}
        session.take(0, COUNT)
        for name, expected in splits.items():
            _assert_same(expected, session.split(name), f"split('{name}') again")
    with world(1), part.open(context()) as session:
        names = list(session.splits())
        assert names == list(splits), f"splits() in another session: expected {list(splits)}, got {names}"
        for name in shuffled_names(names):
            _assert_same(splits[name], session.split(name), f"split('{name}') in another session")


def shuffled_names(names: Sequence[str]) -> list[str]:
    """The names in another order."""
    return [names[i] for i in shuffled(len(names))]


def check_state(part: Data, examples: int) -> None:
    """`state` goes through JSON, stays as it was when it was asked for, and `restore` takes it up."""
    del examples
    with part.open(context()) as session:
        for step in range(3):
            session.take(step, COUNT)
        state = session.state()
        written = _written(state)
        expected = {step: _copied(session.take(step, COUNT)) for step in range(3, STEPS)}
        assert _written(state) == written, f"a state that was given changed: expected {written}, got {_written(state)}"
    _check_resumed(part, written, expected)


def _check_resumed(part: Data, written: str, expected: dict[int, Any]) -> None:
    with world(1), part.open(context()) as session:
        session.restore(json.loads(written))
        again = _written(session.state())
        assert again == written, f"state() after restore(): expected {written}, got {again}"
        for step, problems in expected.items():
            _assert_same(problems, session.take(step, COUNT), f"take({step}, {COUNT}) after restore()")
    with part.open(context()) as session:  # one that has gone on is taken back
        _run_on(session)
        session.restore(json.loads(written))
        again = _written(session.state())
        assert again == written, f"state() after later steps and restore(): expected {written}, got {again}"
        for step, problems in expected.items():
            _assert_same(problems, session.take(step, COUNT), f"take({step}, {COUNT}) after later ones and restore()")


def _run_on(session: DataSession) -> None:
    for step in range(2 * STEPS):
        session.take(step, COUNT)


def _written(state: object) -> str:
    try:
        return json.dumps(state, sort_keys=True)
    except (TypeError, ValueError) as error:
        raise AssertionError(f"state(): expected what JSON can hold, got {shown(state)}: {error}") from error


def _copied(problems: Iterable[Problem]) -> list[dict[str, Any]]:
    """Problems as they are now, whatever becomes of them."""
    fields = list(Problem.__dataclass_fields__)
    return [{name: json.loads(json.dumps(getattr(p, name), default=repr)) for name in fields} for p in problems]


def _assert_same(expected: Sequence[dict[str, Any]], problems: Iterable[Problem], how: str) -> None:
    got = _copied(problems)
    assert len(got) == len(expected), f"{how}: expected {len(expected)} problems, got {len(got)}"
    for place, (one, other) in enumerate(zip(expected, got, strict=True)):
        for name in one:
            if one[name] != other[name]:
                said = f"expected {shown(one[name])}, got {shown(other[name])}"
                raise AssertionError(f"{how}: problem {place}, {name}: {said}")


LAWS = {
    "it gives as many problems as it is asked for, each of them whole": check_problems,
    "what is taken depends on step, count and seed alone": check_take,
    "an id names one problem": check_names,
    "a split is always the same": check_splits,
    "its state can be saved, and taken up again": check_state,
}
