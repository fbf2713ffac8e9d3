"""What a run finds out about its problems before it starts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from support import tiny

import upge
from upge import InputError, Problem
from upge.model import Prompt
from upge.rollouts.preflight import Report, checked, coming, normalised
from upge.rollouts.sampler import PromptedProblem
from upge.train.run import train
from upge.types import DataSession, Trajectory
from upge_parts.data.session import InMemory


class Scribe:
    """What the check asks of a collector: a token is a character, and what ends with the answer is right."""

    context = 12

    def prompted(self, problem: Problem, group: int) -> PromptedProblem:
        return PromptedProblem(problem, group, tuple(range(len(normalised(problem.prompt)))))

    def fits(self, asked: PromptedProblem, response: int) -> bool:
        return len(asked.prompt) + response <= self.context

    def demonstrations(self, asked: list[PromptedProblem]) -> list[tuple[Trajectory | None, str | None]]:
        return [self._shown(each.problem) for each in asked]

    def _shown(self, problem: Problem) -> tuple[Trajectory | None, str | None]:
        text = problem.demonstration or ""
        if not text or len(text) > 6:
            return None, "too_long" if text else "missing"
        if len(text) == 6:
            return None, "no_room"
        right = bool(problem.answer) and text.endswith(problem.answer)
        return Trajectory(problem, (0,), (0,), text, float(right), True), None


PROBLEMS = [
    Problem("right", "2 + 2", "4", "it: 4"),
    Problem("wrong", "2 + 3", "5", "it: 6"),
    Problem("unanswered", "2 + 4", "", "hm"),
    Problem("none", "2 + 5", "7"),
    Problem("long", "2 + 6", "8", "it is certainly 8"),
    Problem("asked at length", "what is 2 + 7?", "9", "9"),
]


def report(problems: list[Problem] = PROBLEMS, **changes: Any) -> Report:
    given = {"evaluation": {}, "budget": 6, "demonstrations": True, **changes}
    return checked(problems, given.pop("evaluation"), Scribe(), **given)  # type: ignore[arg-type]


def test_each_fault_is_counted_once() -> None:
    found = report()
    assert found == Report(6, prompts_too_long=1, missing=1, too_long=1, wrong=2, overlap={})
    assert len(found.sentences()) == 4
    assert "2 of 6 demonstrations get no reward" in found.sentences()


def test_the_budget_is_not_blamed_for_the_context() -> None:
    found = report([*PROBLEMS, Problem("no room", "2 + 7", "9", "it's 9")])
    assert (found.too_long, found.no_room) == (2, 1)
    assert found.metrics()["data/demonstrations/too_long"] == 2
    said = "\n".join(found.sentences())
    assert "1 of 7 demonstrations are over the token budget" in said
    assert "1 of 7 demonstrations have no room after their prompts in the model's context" in said


def test_what_a_prompt_opens_is_told_and_refused_by_nobody() -> None:
    put = Prompt("2 + 2<think>", (0,), "<think>", "<think>")
    asked = PromptedProblem(Problem("p", "2 + 2", "4", "<think>4"), 0, (0,), put=put)
    assert (asked.repeated, PromptedProblem(PROBLEMS[0], 0, (0,), put=put).repeated) == (True, False)
    found = Report(2, repeated=1)
    assert found.metrics()["data/demonstrations/repeated"] == 1
    assert found.sentences() == []
    assert found.notes() == [
        "1 of 2 demonstrations begin with what the prompt opens the response with; it is taken once"
    ]
    assert "data/demonstrations/repeated" not in Report(2).metrics(), "few templates open a response"


def test_what_no_term_reads_is_not_looked_at() -> None:
    assert report(demonstrations=False) == Report(6, prompts_too_long=1, overlap={})
    assert report(budget=0).prompts_too_long == 1, "14 characters are more than 12"
    assert report(PROBLEMS[:1]).sentences() == []


def test_training_prompts_that_evaluation_has_are_counted_by_split() -> None:
    splits = {
        "test": [Problem("x", "  2 +\n2", "4"), Problem("y", "2 + 2", "4"), Problem("z", "WHAT IS 2 + ７?", "9")],
        "other": [Problem("w", "3 + 3", "6")],
    }
    found = report(evaluation=splits)
    assert found.overlap == {"test": 2, "other": 0}
    assert found.sentences()[0] == "2 of 6 training prompts are also in test"
    assert found.metrics()["data/overlap/test"] == 2


def test_conversations_are_compared_by_what_is_said() -> None:
    turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "2 + 2"}]
    assert normalised(turns) == normalised("2 +  2")
    assert normalised(turns) != normalised("2 + 3")


def test_the_problems_to_come_are_those_that_a_run_takes() -> None:
    session: DataSession = InMemory([Problem(str(i), f"q{i}", "") for i in range(10)], {}, 3)
    taken = [problem for step in range(9) for problem in session.take(step, 4)]
    assert list(coming(session, 2, 4, 100)) == taken[:8]
    assert list(coming(session, 9, 4, 7)) == taken[:7]
    assert sorted(problem.id for problem in coming(session, 9, 4, 100)) == [str(i) for i in range(10)]
    assert list(coming(session, 0, 4, 100)) == []


def test_a_run_tells_what_it_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = train(upge.load(tiny.recipe(tmp_path, train={"steps": 3})))
    said = capsys.readouterr().err
    assert "24 of 24 training prompts are also in test" in said
    first = json.loads((folder / "metrics.jsonl").read_text().splitlines()[0])
    assert first == {
        "phase": "check",
        "step": 0,
        "data/problems": 24,
        "data/prompts/too_long": 0,
        "data/demonstrations/missing": 0,
        "data/demonstrations/too_long": 0,
        "data/demonstrations/wrong": 16,
        "data/overlap/test": 24,
    }


def test_a_run_may_refuse_such_data_or_not_look(tmp_path: Path) -> None:
    path = tiny.recipe(tmp_path, train={"steps": 1})
    with pytest.raises(InputError, match="also in test"):
        train(upge.load(path, ["train.check=refuse"]))
    folder = train(upge.load(path, ["train.check=refuse", "train.check_problems=0"]))
    assert '"check"' not in (folder / "metrics.jsonl").read_text()
