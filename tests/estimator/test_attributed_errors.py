"""Whom a message names where code that isn't upge's fails: the part, its file and line, and never upge's own part."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import TypeAdapter

from upge import Completion, Context, PartError, Problem, Request, Sampling
from upge.code import module_in
from upge.errors import InputError, Terminated
from upge.estimator.batch import Batch
from upge.estimator.part_calls import PartCaller
from upge.part import AReward, SomeData
from upge.rollouts import sessions

PROBLEM = Problem("p7", "?", "a")

RAISES = {
    "SystemExit": "import sys; sys.exit(3)",
    "OverflowError": "raise OverflowError('far')",
    "RecursionError": "return fails(*given)",
    "MemoryError": "raise MemoryError",
    "StopIteration": "return next(iter(()))",
    "KeyError": "return {}['no']",
    "JSONDecodeError": "import json; return json.loads('{')",
    "Mute": "raise Mute",
}
"""The class that a message has to name, and the line that raises it: the last of the file."""

HEAD = "class Mute(Exception):\n    def __str__(self):\n        raise RuntimeError\n\n\n"


def written(folder: Path, text: str) -> Path:
    path = folder / "theirs.py"
    path.write_text(text)
    return path


def line(path: Path, mark: str = "# here") -> str:
    number = next(n for n, text in enumerate(path.read_text().splitlines(), start=1) if text.endswith(mark))
    return f"{path}:{number}"


def module(path: Path) -> ModuleType:
    found = module_in(path)
    assert isinstance(found, ModuleType)
    return found


def scored(value: Any, pairs: int = 2) -> list[float]:
    reward = TypeAdapter(AReward).validate_python(value)
    with sessions.opened(reward, "reward", reward.open, Context()) as session:
        return session.score([(PROBLEM, "x")] * pairs)


def function(folder: Path, body: str, *, head: str = HEAD) -> tuple[Path, dict[str, Any]]:
    path = written(folder, f"{head}def fails(*given):\n    {body}  # here\n")
    return path, {"use": "python", "function": f"{path}:fails"}


def blamed(call: Callable[[], object], path: Path | None, *words: str) -> str:
    with pytest.raises(PartError) as error:
        call()
    said = str(error.value)
    assert "upge_parts" not in said
    assert " of the package " not in said
    if path is not None:
        assert line(path) in said
    assert all(word in said for word in words), said
    return said


@pytest.mark.parametrize("batch", [False, True])
@pytest.mark.parametrize("name", RAISES)
def test_what_a_reward_s_function_raises_is_the_function_s(tmp_path: Path, name: str, batch: bool) -> None:
    path, value = function(tmp_path, RAISES[name])
    blamed(lambda: scored({**value, "batch": batch}), path, f"theirs.py:fails raised {name}", "p7")


@pytest.mark.parametrize("name", RAISES)
def test_also_within_a_sum_of_rewards(tmp_path: Path, name: str) -> None:
    path, value = function(tmp_path, RAISES[name])
    blamed(lambda: scored({"use": "weighted", "rewards": ("exact", value), "weights": (1.0, 1.0)}), path, name)


WRONG = ["10**400", "float('nan')", "float('inf')", "1e31", "'1'", "None", "[1.0]", "(each for each in (1,))", "Mute"]


@pytest.mark.parametrize("body", [*WRONG, "__import__('numpy').ones(2)", "__import__('torch').tensor(float('nan'))"])
def test_what_is_no_score_is_the_function_s(tmp_path: Path, body: str) -> None:
    head = HEAD + "class Worse:\n    def __repr__(self):\n        raise RuntimeError\n\n\n"
    _, value = function(tmp_path, f"return {body}", head=head)
    blamed(lambda: scored(value), None, "theirs.py:fails returned ", "a score is a finite number", "p7")


@pytest.mark.parametrize("body", ["return [1.0]", "return (1.0 for _ in range(2))", "return None", "return 'ab'"])
def test_a_wrong_number_of_scores_is_the_function_s(tmp_path: Path, body: str) -> None:
    _, value = function(tmp_path, body)
    blamed(lambda: scored({**value, "batch": True}), None, "theirs.py:fails returned ", "2 responses")


SCORES: list[Any] = [
    1,
    True,
    0.5,
    np.bool_(True),
    np.float32(0.5),
    np.int64(2),
    torch.tensor(0.5),
    torch.tensor(True),
    Decimal("0.5"),
]


@pytest.mark.parametrize("score", [*SCORES, torch.tensor(True), np.array(0.25), Decimal("0.5")], ids=repr)
def test_numbers_of_numpy_and_torch_are_scores(score: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    given = ModuleType("given_scores")
    given.one = lambda problem, text: score  # type: ignore[attr-defined]
    given.all = lambda problems, texts: [score] * len(texts)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "given_scores", given)
    for value in ({"function": "given_scores:one"}, {"function": "given_scores:all", "batch": True}):
        found = scored({"use": "python", **value})
        assert found == [float(score)] * 2
        assert all(type(each) is float for each in found)


@pytest.mark.parametrize("made", [np.array, torch.tensor, tuple, list])
def test_an_array_of_numbers_is_a_score_for_each_response(made: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    given = ModuleType("given_arrays")
    given.all = lambda problems, texts: made([0.25, 1.0])  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "given_arrays", given)
    assert scored({"use": "python", "function": "given_arrays:all", "batch": True}) == [0.25, 1.0]


# Classes of a file.

CLASSES = """\
from contextlib import contextmanager
import upge
{head}
class Theirs(upge.{base}):
    @contextmanager
    def open(self, context):
        yield self

    def fails(self, *given):
        {body}  # here

    score = take = sample = fails
"""


def part(folder: Path, base: str, body: str) -> tuple[Path, Any]:
    path = written(folder, CLASSES.format(head=HEAD, base=base, body=body))
    return path, module(path).Theirs()


def session_of(theirs: Any, place: str) -> Any:
    return sessions.opened(theirs, place, theirs.open, Context())


CALLS: dict[str, tuple[str, Callable[[Any], object]]] = {
    "Reward": ("reward", lambda session: session.score([(PROBLEM, "x")])),
    "Data": ("data", lambda session: session.take(0, 2)),
    "Engine": ("rollout.engine", lambda session: session.sample([Request("train", 0, "p", 0, (1,))] * 2, Sampling())),
}


@pytest.mark.parametrize("base", CALLS)
@pytest.mark.parametrize("name", RAISES)
def test_what_a_class_of_a_file_raises_names_its_line(tmp_path: Path, base: str, name: str) -> None:
    body = RAISES[name].replace("fails(*given)", "self.fails(*given)")
    path, theirs = part(tmp_path, base, body)
    place, call = CALLS[base]
    with session_of(theirs, place) as session:
        blamed(lambda: call(session), path, f"Theirs ({place}) raised {name}")


@pytest.mark.parametrize(
    ("base", "body", "said"),
    [
        ("Data", "return None", "returned NoneType from `take`; it should return a list of 2"),
        ("Data", "return (each for each in ())", "returned generator from `take`; it should return a list of 2"),
        ("Data", "return []", "returned 0 from `take`; it should return 2 of upge.Problem"),
        ("Data", "return [1, 2]", "returned int from `take`; it should return 2 of upge.Problem"),
        (
            "Data",
            "return [upge.Problem('p', '?', 4.0)] * 2",
            "returned the answer 4.0 of the problem 'p' from `take`; it should be text, or None",
        ),
        ("Data", "return [upge.Problem(7, '?', '4')] * 2", "returned the id 7 of the problem 7 from `take`"),
        ("Data", "return [upge.Problem('p', None, '4')] * 2", "returned the prompt None of the problem 'p'"),
        ("Data", "return [upge.Problem('p', [], '4')] * 2", "returned the prompt [] of the problem 'p'"),
        ("Data", "return [upge.Problem('p', [{'role': 'user'}], '4')] * 2", "messages with the texts 'role' and 'cont"),
        ("Engine", "return [upge.Completion((1,), None, False)]", "returned 1 from `sample`; it should return 2"),
        ("Engine", "return ['a', 'b']", "returned str from `sample`; it should return 2 of upge.Completion"),
    ],
)
def test_what_a_session_owes_is_asked_of_it(tmp_path: Path, base: str, body: str, said: str) -> None:
    _, theirs = part(tmp_path, base, body)
    place, call = CALLS[base]
    with session_of(theirs, place) as session:
        blamed(lambda: call(session), None, f"Theirs ({place}) ", said)


def test_a_split_owes_problems_too(tmp_path: Path) -> None:
    _, theirs = part(tmp_path, "Data", "return [upge.Problem('p', '?', True)]")
    type(theirs).split = type(theirs).take
    with session_of(theirs, "data") as session:
        blamed(lambda: session.split("test"), None, "Theirs (data) returned the answer True of the problem 'p' from")


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("return None", "returned NoneType from `{method}`; it should return a list"),
        ("return ['p']", "returned str from `{method}`; it should return "),
        ("return [upge.Problem('p', '?', 4)]", "returned the answer 4 of the problem 'p' from `{method}`"),
    ],
)
@pytest.mark.parametrize("method", ["take", "split"])
def test_what_a_source_of_a_mixture_returns_is_the_source_s(tmp_path: Path, method: str, body: str, said: str) -> None:
    _, theirs = part(tmp_path, "Data", body)
    type(theirs).split = type(theirs).take
    type(theirs).splits = lambda self: ("test",)
    mixture = TypeAdapter(SomeData).validate_python({"use": "mixture", "sources": {"one": theirs}})
    calls = {"take": lambda: session.take(0, 1), "split": lambda: session.split("one/test")}
    with sessions.opened(mixture, "data", mixture.open, Context()) as session:
        blamed(calls[method], None, "Theirs (data.sources.one) " + said.format(method=method))


@pytest.mark.parametrize("within", [False, True], ids=["alone", "in a mixture"])
@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("pass", "opened a Session, which has no `splits`"),
        ("splits = None", "opened a Session, which has no `splits`"),
        ("splits = lambda self: 'test'", "returned 'test' from `splits`; it should return a list of names"),
        ("splits = lambda self: [1]", "returned [1] from `splits`; it should return a list of names"),
    ],
)
def test_a_session_without_a_method_is_its_part_s(tmp_path: Path, within: bool, body: str, said: str) -> None:
    head = f"{HEAD}class Session:\n    {body}\n\n\n"
    path = written(
        tmp_path, CLASSES.format(head=head, base="Data", body="pass").replace("yield self", "yield Session()")
    )
    theirs = module(path).Theirs()
    place = "data.sources.one" if within else "data"
    if within:
        theirs = TypeAdapter(SomeData).validate_python({"use": "mixture", "sources": {"one": theirs}})
    with session_of(theirs, "data") as session:
        blamed(lambda: session.splits(), None, f"Theirs ({place}) {said}")


def test_a_part_within_a_part_answers_for_itself(tmp_path: Path) -> None:
    path, theirs = part(tmp_path, "Data", "raise ValueError('theirs')")
    mixture = TypeAdapter(SomeData).validate_python({"use": "mixture", "sources": {"one": theirs}})
    with sessions.opened(mixture, "data", mixture.open, Context()) as session:
        blamed(lambda: session.take(0, 1), path, "Theirs (data.sources.one) raised ValueError: theirs")


def test_what_may_end_a_run_passes(tmp_path: Path) -> None:
    for error in (KeyboardInterrupt, Terminated):
        path = written(tmp_path, f"from upge import Terminated\ndef fails(*given):\n    raise {error.__name__}\n")
        with pytest.raises(error):
            scored({"use": "python", "function": f"{path}:fails"})


def test_a_file_that_exits_when_it_is_imported_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=re.escape("theirs.py can't be imported: SystemExit: 2")):
        module_in(written(tmp_path, "import sys\nsys.exit(2)\n"))


def test_a_right_completion_passes_as_it_is(tmp_path: Path) -> None:
    _, theirs = part(tmp_path, "Engine", "return [upge.Completion((1,), None, False)] * 2")
    with session_of(theirs, "rollout.engine") as session:
        assert CALLS["Engine"][1](session) == [Completion((1,), None, False)] * 2


def test_a_method_of_another_signature_is_its_own_class_s(tmp_path: Path) -> None:
    path = written(
        tmp_path,
        "import upge\n\n\n"
        "class Gate(upge.Mask):  # here\n"
        '    """Nothing.\n\n    Formula: 1. Source: none."""\n\n'
        "    def __call__(self):\n        return 1.0\n",
    )
    part = module(path).Gate()
    tokens = torch.zeros(1, dtype=torch.long)
    batch = Batch(torch.zeros(1), tokens, tokens, torch.zeros(1, dtype=torch.bool), torch.zeros(1))
    blamed(lambda: PartCaller(batch, 0).factor(part, "terms.rl.mask.0"), path, "raised TypeError", "Gate")
