"""What rewards owe: a finite number for each response, in order, whatever stands beside it and whenever it is asked."""

from __future__ import annotations

import math
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import astuple
from typing import Any

import numpy
import torch

from upge.errors import InputError
from upge.part import Reward
from upge.testing.fixtures import context, shown, shuffled, told_apart, world
from upge.types import Problem

Pair = tuple[Problem, str]

PROBLEMS = (
    Problem("letters", "abcd R?", "dcba", "=dcba"),
    Problem("number", "What is 2 + 2?", "4"),
    Problem("shown empty", "Which of A and B?", "B", ""),
    Problem("talk", [{"role": "user", "content": "A root of x² − 9?"}], "-3", "It is \\boxed{-3}."),
    Problem("fraction", "Half of one?", "1/2", "The answer is 1/2."),
    Problem("zero", "0 · 7?", "0", "<think>0</think><answer>0</answer>"),
    Problem("words", "Say it.", "Zwölf Boxkämpfer", "A" * 400),
)
TEXTS = (
    "={answer}",
    "",
    "The answer is {answer}.",
    "\\boxed{{{answer}}}",
    "{answer}",
    "<think>so</think><answer>{answer}</answer>",
    "=",
    "nan",
    " \n\t",
    "1e999",
    "1/0",
    "\\boxed{{",
    "no",
    "{answer} " * 300,
    "<answer>",
    "ﷺ 🙂 \x00 \ud7ff",
    "A",
    "-" * 60,
)


def problems() -> tuple[Problem, ...]:
    """The problems, made anew, so that what one part does to them no other sees."""
    return tuple(deepcopy(problem) for problem in PROBLEMS)


def pairs(examples: int, of: Sequence[Problem] | None = None) -> list[Pair]:
    """Problems with and without demonstrations, and responses of all kinds: some right, some hardly a text.

    Each problem's answer is a response to another problem first, so that one text scores differently.
    """
    found = problems() if of is None else of
    crossed = [(found[(i + shift) % len(found)], found[i].answer or "") for i in range(len(found)) for shift in (1, 0)]
    made = [
        (problem, text.format(answer=problem.answer))
        for shift in range(len(found))
        for place, text in enumerate(TEXTS)
        for problem in [found[(place + shift) % len(found)]]
    ]
    return crossed + made[: max(2 * len(TEXTS), examples)]


def _named(pair: Pair) -> str:
    return f"response {shown(pair[1])} to the problem '{pair[0].id}' (answer {shown(pair[0].answer)})"


def _scores(session: Any, asked: Sequence[Pair]) -> list[float]:
    """The scores, held to their number and kind."""
    scores = session.score(list(asked))
    got = len(scores) if hasattr(scores, "__len__") else type(scores).__name__
    assert got == len(asked), f"for {len(asked)} responses: expected {len(asked)} scores, got {got}"
    for pair, score in zip(asked, scores, strict=True):
        number = isinstance(score, int | float | numpy.number | numpy.bool_) or (
            isinstance(score, torch.Tensor) and score.ndim == 0
        )
        if not number or not math.isfinite(float(score)):
            raise AssertionError(f"{_named(pair)}: expected a finite number, got {shown(score)}")
    return [float(score) for score in scores]


def _accepted(part: Reward, examples: int, of: Sequence[Problem] | None = None) -> dict[int, float]:
    """The pairs that the reward doesn't refuse, by their numbers, and what each scores alone."""
    found: dict[int, float] = {}
    with part.open(context()) as session:
        for number, pair in enumerate(pairs(examples, of)):
            try:
                found[number] = _scores(session, [pair])[0]
            except InputError:
                continue
            except Exception as error:
                if isinstance(error, AssertionError):
                    raise
                raise AssertionError(
                    f"{_named(pair)}: expected a finite number, got {type(error).__name__}: {error}"
                ) from error
    return found


def check_numbers(part: Reward, examples: int) -> None:
    """Every response has a finite score, an empty one and a strange one too; no responses have none."""
    _accepted(part, examples)
    with part.open(context()) as session:
        assert list(session.score([])) == [], "for no responses: expected no scores"


def check_pairing(part: Reward, examples: int) -> None:
    """A response's score depends on it and its problem alone: not on what is scored beside or before it."""
    alone, all_pairs = _accepted(part, examples), pairs(examples)
    kept = list(alone)
    orders = {
        "scored together": kept,
        "scored together in another order": [kept[i] for i in shuffled(len(kept))],
        "scored among its doubles": [number for number in kept[: len(kept) // 2] for _ in range(2)],
    }
    for number, (how, order) in enumerate(orders.items()):
        with world(number), part.open(context()) as session:
            for again in ("", ", for the second time"):
                scores = _scores(session, [all_pairs[i] for i in order])
                for index, score in zip(order, scores, strict=True):
                    assert score == alone[index], (
                        f"{_named(all_pairs[index])}, {how}{again}: expected {alone[index]!r} as alone, got {score!r}"
                    )


def check_leaves(part: Reward, examples: int) -> None:
    """Problems are what they were: others read them too."""
    given = problems()
    before = [repr(astuple(problem)) for problem in given]
    _accepted(part, examples, given)
    for problem, was in zip(given, before, strict=True):
        now = repr(astuple(problem))
        if now != was:
            raise AssertionError(f"it changes the problem '{problem.id}': {told_apart(was, now)}")


def check_answers(part: Reward, examples: int) -> None:
    """Where it has `answer`, that is a text or None, the same again; `classes` numbers every answer."""
    with part.open(context()) as session:
        answer, classes = getattr(session, "answer", None), getattr(session, "classes", None)
        if not callable(answer):
            return
        texts = [text for _, text in pairs(examples)][2 * len(PROBLEMS) :][: len(TEXTS)]
        answers = [answer(text) for text in texts]
        for text, found in zip(texts, answers, strict=True):
            kind = found is None or isinstance(found, str)
            assert kind, f"answer({shown(text)}): expected a text or None, got {shown(found)}"
            again = answer(text)
            assert again == found, f"answer({shown(text)}) again: expected {shown(found)}, got {shown(again)}"
        different = sorted({found for found in answers if found})
        if callable(classes) and len(different) > 1:
            got = classes(PROBLEMS[1], different)
            whole = isinstance(got, Sequence) and len(got) == len(different) and all(isinstance(n, int) for n in got)
            assert whole, f"classes of {len(different)} answers: expected as many numbers, got {shown(got)}"


LAWS = {
    "every response has a finite score": check_numbers,
    "a score depends on its problem and response alone": check_pairing,
    "problems are what they were": check_leaves,
    "its final answers are texts": check_answers,
}
