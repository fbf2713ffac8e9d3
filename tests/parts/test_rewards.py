"""Rewards that need no extra: letters, forms, sums; and the processes that grade, whatever is done to them."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Iterator
from pathlib import Path
from time import monotonic
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

import upge
from upge import Context, InputError, Problem, Reward, registry
from upge.recipe import RecipeError
from upge_parts.rewards.answers import LONGEST, answer_in, boxed, spelled, unwrapped
from upge_parts.rewards.choice import Choice
from upge_parts.rewards.exact import Exact
from upge_parts.rewards.formatted import Format
from upge_parts.rewards.graders import Graders, graders
from upge_parts.rewards.mathematics import Math
from upge_parts.rewards.weighted import Weighted


def score(reward: Reward, *responses: str, answer: str = "") -> list[float]:
    with reward.open(Context()) as session:
        return session.score([(Problem("p", "?", answer), response) for response in responses])


# Answers in text.


@pytest.mark.parametrize(
    ("text", "inside"),
    [
        (r"so \boxed{4}.", "4"),
        (r"\boxed{1} no, \boxed{2}", "2"),
        (r"\boxed{\frac{1}{\sqrt{2}}} }", r"\frac{1}{\sqrt{2}}"),
        (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
        (r"{ \fbox {x}", "x"),
        (r"\boxed{\boxed{7}}", r"\boxed{7}"),
        (r"\boxed{3} and then \boxed{4", "3"),
        (r"\boxed{}", ""),
        (r"\boxed 4", None),
        ("{4}", None),
    ],
)
def test_the_last_complete_box(text: str, inside: str | None) -> None:
    assert boxed(text) == inside


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("The answer is 4.\nBye.", "4."),
        ("The answer is 3. No: the ANSWER IS: 4", "4"),
        ("**Answer:** 4", "4"),
        ("the answer is\n\n$$\n4\n$$\nas $5$ shows", "4"),
        ("the answer is \\[ 4 \\]", "4"),
        ("First\nlast\n\n", "last"),
        ("It is\n\\[\n4\n\\].", "4"),
        ("", ""),
    ],
)
def test_the_last_answer(text: str, answer: str) -> None:
    assert answer_in(text, "last") == answer
    assert answer_in(text, "any") == answer
    assert answer_in(text, "boxed") is None


def test_a_box_goes_before_a_later_sentence_only_where_any_place_will_do() -> None:
    text = r"\boxed{1} The answer is 2"
    assert [answer_in(text, where) for where in ("any", "boxed", "last")] == ["1", "1", "2"]


@pytest.mark.parametrize(
    "written",
    [
        r"$\frac{1}{2}$",
        r"\dfrac{1}{2}.",
        r"\boxed{ \tfrac{1}{2} }",
        r"$$\boxed{\frac {1} {2}}$$.",
        r"**\(\displaystyle\frac{1}{2}\)**",
    ],
)
def test_spellings_of_one_answer(written: str) -> None:
    assert spelled(written) == r"\frac{1}{2}"


@pytest.mark.parametrize(("one", "other"), [("1", "2"), ("x", "X"), ("12", "1.2"), (r"\pi", "pi"), ("-1", "1")])
def test_other_answers_are_spelled_otherwise(one: str, other: str) -> None:
    assert spelled(one) != spelled(other)


@given(st.text(st.sampled_from(r"\{}$.* ()[]boxed1a" + "\n")) | st.text())
def test_any_text_can_be_searched(text: str) -> None:
    for where in ("boxed", "last", "any"):
        found = answer_in(text, where)  # type: ignore[arg-type]
        assert found is None or found in text
    assert unwrapped(unwrapped(text)) == unwrapped(text)
    assert isinstance(spelled(text), str)


def test_only_the_end_of_an_endless_line_is_read() -> None:
    assert answer_in("x" * 10**6 + "5", "any") == "x" * (LONGEST - 1) + "5"


# Choices.


@pytest.mark.parametrize(
    ("response", "letter"),
    [
        (r"\boxed{C}", "C"),
        (r"\boxed{\text{(c)}}.", "C"),
        (r"\boxed{A} or rather \boxed{B}", "B"),
        (r"The answer is C, but \boxed{A}", "A"),
        (r"The answer is C, but \boxed{A or B}", None),
        ("The answer is (D).", "D"),
        ("**Answer:** B", "B"),
        ("Answer: $B$", "B"),
        ("The correct answer is **C**", "C"),
        (r"answer is \text{A}", "A"),
        ("the answer is a matter of taste: B", None),
        ("the answer is A's brother", None),
        ("The answer is A. No, the answer is C.", "C"),
        ("I would say A.\nOr better B", "B"),
        ("It can't be (A), so (D) it must be", "D"),
        ("A cat and a Dog", None),
        ("the answer is F", None),
        ("", None),
        ("<answer>C</answer>", "C"),
        ("<answer>\nThe answer is (C), not A.\n</answer> B", "C"),
        (r"<answer>$\boxed{C}$</answer>", "C"),
        (r"<answer>A</answer> or rather \boxed{C}", "C"),
        (r"<think>\boxed{A}</think> The answer is C", "C"),
    ],
)
def test_the_letter_that_a_response_chooses(response: str, letter: str | None) -> None:
    assert Choice().answer(response) == letter


def test_choices_are_compared_with_the_reference_letter() -> None:
    assert score(Choice(), "answer: B", "answer: C", "none", answer="(B)") == [1.0, 0.0, 0.0]
    assert score(Choice(letters="WXYZ"), "answer: W", "answer: B", answer="W") == [1.0, 0.0]
    assert score(Choice(where="boxed"), r"\boxed{B}", "answer: B", answer="B") == [1.0, 0.0]
    assert score(Choice(where="last"), r"\boxed{B} answer: C", answer="B") == [0.0]


def test_a_reference_that_is_no_letter_is_refused() -> None:
    with pytest.raises(InputError, match="the answer of the problem 'p' is none of the letters ABCDE"):
        score(Choice(), "answer: B", answer="Paris")


# The answer letter for letter.


def test_a_letter_of_the_thought_counts_where_thoughts_are_read() -> None:
    assert Choice(thought="read").answer(r"<think>\boxed{A}</think> The answer is C") == "A"


def test_an_exact_answer_is_behind_the_thought_and_inside_its_tag() -> None:
    response = "<think>4?</think>\n<answer>\n5\n</answer>\n"
    assert score(Exact(after="<answer>"), response, "<answer>5", "5", answer="5") == [1.0, 1.0, 0.0]
    assert score(Exact(), "<think>4?</think>\n5", "<think>5</think>", answer="5") == [1.0, 0.0]
    assert score(Exact(thought="read"), "<think>4?</think>\n5", answer="5") == [0.0]


# Forms.


def test_a_form_is_of_the_whole_response() -> None:
    right = "<think>\nhm\n</think>\n<answer>4</answer>\n"
    assert score(Format(), right, "Well. " + right, "<think>hm", "") == [1.0, 0.0, 0.0, 0.0]
    assert score(Format(pattern="a+"), "aaa", "aab", "\ud800") == [1.0, 0.0, 0.0]


def test_a_pattern_without_end_scores_0_and_the_next_response_is_matched() -> None:
    endless = "a" * 5000
    assert score(Format(pattern="(a+)+b", seconds=0.2), endless, "aab", endless, "b") == [0.0, 1.0, 0.0, 0.0]


@pytest.mark.parametrize("pattern", ["(a", "*", "(" * 500 + ")" * 500, "a{99999999999}", "[z-a]"])
def test_what_is_no_pattern_is_refused(pattern: str) -> None:
    with pytest.raises(ValidationError, match="not a regular expression"):
        Format(pattern=pattern)


# Sums.


def test_a_sum_of_rewards() -> None:
    both = Weighted(rewards=(Exact(after="="), Format(pattern="<.*>.*")), weights=(1.0, 0.25))
    assert score(both, "<hm> = 4", "<hm> = 5", "= 4", "", answer="4") == [1.25, 0.25, 1.0, 0.0]
    assert Weighted.model_validate({key: value for key, value in both.dump().items() if key != "use"}) == both


def weighted(value: str) -> Any:
    return upge.load("grpo", overrides=[f"reward={{use: weighted, {value}}}"]).reward


def test_a_recipe_names_the_rewards_of_a_sum() -> None:
    found = weighted("rewards: [exact, {use: format, pattern: a}, {use: math, where: boxed}], weights: [1, -0.5, 2]")
    assert found == Weighted(rewards=(Exact(), Format(pattern="a"), Math(where="boxed")), weights=(1.0, -0.5, 2.0))
    nested = weighted("rewards: [{use: weighted, rewards: [exact], weights: [2.0]}], weights: [3.0]")
    assert score(nested, "4", answer="4") == [6.0]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("rewards: [exact, choice], weights: [1.0]", "there are 1 weights for 2 rewards"),
        ("rewards: [exat], weights: [1.0]", "no reward is called 'exat'"),
        ("rewards: [{use: exact, aftr: x}], weights: [1.0]", "unknown key 'aftr'"),
        ("rewards: [], weights: []", "should have at least 1 item"),
        ("rewards: [exact]", "'weights' is missing"),
        ("rewards: [{use: file.py:Mine}], weights: [1.0]", "'file.py:Mine' is code in a file"),
    ],
)
def test_a_wrong_sum_is_refused_with_its_reason(value: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        weighted(value)


# Mathematics without its extra.


def test_the_missing_extra_is_named_once_it_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    reward = registry.find(Reward, "math")()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"needs math-verify: pip install 'upge\[math\]'"):
        score(reward, "4", answer="4")


# The processes that grade. The module below is theirs, and does to them whatever it is asked.

HOSTILE = """
import os, signal, sys
from multiprocessing import parent_process

remembered = []

def prepare():
    global prepared
    prepared = True

def grade(what, value=0.0):
    match what:
        case "give": return value if prepared else None
        case "who": return os.getpid()
        case "remember":
            remembered.append(value)
            return len(remembered) - 1
        case "loop":
            while True: pass
        case "deaf": return 9 ** 9 ** 9
        case "loop_on":
            while True:
                try:
                    while True: pass
                except BaseException: pass
        case "exit": os._exit(3)
        case "quit": sys.exit(3)
        case "crash": os.kill(os.getpid(), signal.SIGSEGV)
        case "memory": return float(len(bytearray(64 * 2**30)))
        case "deep": return grade_deeper()
        case "raise": raise ValueError(what)
        case "text": return what
        case "kill_keeper": os.kill(parent_process().pid, signal.SIGKILL)

def grade_deeper():
    return grade_deeper() + 1
"""
FAILING = ["loop", "deaf", "loop_on", "exit", "quit", "crash", "memory", "deep", "raise", "text", "kill_keeper"]


@pytest.fixture
def hostile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "hostile_grading.py").write_text(HOSTILE)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return "hostile_grading"


@pytest.fixture
def two(hostile: str) -> Iterator[Graders]:
    with graders(hostile, 2, 0.3) as opened:
        yield opened


def test_grades_are_in_the_order_of_the_questions(two: Graders) -> None:
    assert two.grade([("give", float(value)) for value in range(50)]) == list(range(50))
    assert two.grade([]) == []


@pytest.mark.parametrize("how", FAILING)
def test_a_question_that_breaks_its_grader_has_no_grade_and_harms_no_other(two: Graders, how: str) -> None:
    questions = [("give", 1.0), (how,), ("give", 2.0), (how,), (how,), ("give", 3.0)]
    assert two.grade(questions) == [1.0, None, 2.0, None, None, 3.0]


def test_no_question_knows_of_another(hostile: str) -> None:
    with graders(hostile, 1, 10.0) as one:
        assert one.grade([("remember", 1.0), ("remember", 2.0)]) == [0.0, 0.0]
        grader, other = one.grade([("who",), ("who",)])
    assert grader != other


def test_many_long_questions_take_their_time_and_no_more(two: Graders) -> None:
    began = monotonic()
    two.grade([("deaf",)] * 10)
    assert 10 * 0.3 / 2 <= monotonic() - began < 10 * 0.3 / 2 + 30


def test_ranks_have_graders_of_their_own(hostile: str) -> None:
    with graders(hostile, 1, 0.3) as one, graders(hostile, 1, 0.3) as other:
        assert one.grade([("who",)]) != other.grade([("who",)])
        assert one.grade([("loop",)]) == [None]
        assert other.grade([("give", 1.0)]) == one.grade([("give", 1.0)]) == [1.0]


def test_graders_end_with_their_session(hostile: str) -> None:
    with graders(hostile, 1, 60.0) as one:
        assert math.isfinite(one.grade([("who",)])[0] or math.nan)
    with pytest.raises(RuntimeError, match="have been stopped"):
        one.grade([("who",)])


def test_graders_that_cannot_start_say_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "never_ready.py").write_text("def prepare():\n    raise RuntimeError('no tongs')\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(InputError, match="can't be started: RuntimeError: no tongs"), graders("never_ready", 2, 1.0):
        pass
    with pytest.raises(InputError, match="No module named 'nowhere'"), graders("nowhere", 1, 1.0):
        pass
