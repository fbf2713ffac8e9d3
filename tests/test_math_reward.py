"""The reward `math`: what verifies, what doesn't, and what can't hold it up. Needs the extra of that name.

The public test sets are looked for in the folder that UPGE_TEST_SETS names, or else in shared/data beside the
repository: JSON lists with `prompt` and `answer`.
"""

from __future__ import annotations

import itertools
import json
import os
import random
from collections.abc import Iterator
from pathlib import Path
from time import monotonic

import pytest

from upge import Context, InputError, Problem
from upge_parts.rewards.answers import answer_in, spelled, unwrapped
from upge_parts.rewards.graders import Graders
from upge_parts.rewards.mathematics import Math, MathSession
from upge_parts.rewards.verifying import EXAMPLES
from upge_parts.rewards.voting import classes as voted

pytestmark = pytest.mark.needs("math_verify")

PROFILE = os.environ.get("UPGE_PROFILE", "dev")
SETS = Path(os.environ.get("UPGE_TEST_SETS") or Path(__file__).parents[2] / "shared" / "data")


@pytest.fixture(scope="module")
def session() -> Iterator[MathSession]:
    with Math(workers=2, seconds=10.0).open(Context()) as opened:
        yield opened


def grade(session: MathSession, answer: str, *responses: str) -> list[float]:
    return session.score([(Problem("p", "?", answer), response) for response in responses])


# What means the same, and what doesn't.


@pytest.mark.parametrize(
    ("answer", "response"),
    [
        ("1/2", r"The answer is $\frac{1}{2}$."),
        (r"\frac{14}{3}", r"\boxed{14/3}"),
        ("0.5", r"\boxed{\dfrac12}"),
        ("4.5e33", r"$4.5\times 10^{33}$"),
        (r"90^\circ", r"\boxed{90}"),
        ("2220", "so there are 2,220"),
        (r"\text{Evelyn}", "The answer is Evelyn."),
        ("p - q", "The answer is $-q+p$."),
        (r"\left( 3, \frac{\pi}{2} \right)", r"\boxed{(3, \pi/2)}"),
        (r"\{1, 2\}", r"\boxed{\{2, 1\}}"),
        ("x^2-1", r"\boxed{(x-1)(x+1)}"),
        ("5", r"\boxed{x = 5}"),
        ("10", r"\boxed{10 \text{ cm}}"),
        ("42", "The answer is 42. This is because 40+2 = 42, or 41+1."),
        ("4", "therefore x = 4"),
        ("4", "So 7 minus 3 leaves us 4 apples"),
        ("4", "We get $x=3$ and so $y = 4$ holds."),
        (r"\boxed{204}", "204"),
    ],
)
def test_what_means_the_same_verifies(session: MathSession, answer: str, response: str) -> None:
    assert grade(session, answer, response) == [1.0]


@pytest.mark.parametrize(
    ("answer", "response"),
    [
        ("3", r"first \boxed{3}, then \boxed{4}"),
        ("5", r"\boxed{5, 7}"),
        ("5", r"\boxed{5 \text{ or } 7}"),
        ("5", "The answer is 5 or 7"),
        ("7", "The answer is 42. This is because 3+4 = 7"),
        ("(1,2)", r"\boxed{[1,2]}"),
        ("(1,2)", r"\boxed{(2,1)}"),
        ("1", r"\boxed{1.0001}"),
        ("x", r"\boxed{y}"),
        ("5", r"\boxed{}"),
        ("5", ""),
        ("5", r"\boxed{5"[:-1]),
    ],
)
def test_what_means_something_else_does_not(session: MathSession, answer: str, response: str) -> None:
    assert grade(session, answer, response) == [0.0]


def test_what_graders_are_prepared_with_verifies(session: MathSession) -> None:
    pairs = [(Problem("p", "?", reference), rf"\boxed{{{answer}}}") for reference, answer in EXAMPLES]
    assert session.score(pairs) == [1.0] * len(pairs)


def test_where_the_answer_stands_is_a_setting() -> None:
    responses = [r"\boxed{4}, or the answer is 5", "The answer is 4"]
    for where, scores in (("boxed", [1.0, 0.0]), ("last", [0.0, 1.0]), ("any", [1.0, 1.0])):
        with Math(workers=1, where=where).open(Context()) as session:  # type: ignore[arg-type]
            assert grade(session, "4", *responses) == scores
            assert [session.answer(each) is not None for each in responses] == [True, where != "boxed"]


def test_a_problem_without_an_answer_is_refused(session: MathSession) -> None:
    with pytest.raises(InputError, match="the problem 'p' has no answer"):
        grade(session, " ", "4")


# Votes.


def test_an_answer_is_what_stands_in_the_response(session: MathSession) -> None:
    assert session.answer(r"so \boxed{ \dfrac{1}{2} }.") == r"\dfrac{1}{2}"
    assert session.answer("The answer is $4$.") == "4"
    assert session.answer("\n") is None
    assert session.answer(r"\boxed{\,}") is None


def classes(session: MathSession, *answers: str) -> list[int]:
    return session.classes(Problem("p", "?", "1"), answers)


def test_answers_that_verify_against_each_other_are_one_class(session: MathSession) -> None:
    same = ["1/2", "0.5", r"\dfrac12", r"$\frac{1}{2}$", r"\frac{2}{4}", "2^{-1}"]
    assert classes(session, *same) == [0] * len(same)
    assert classes(session, "2", "x = 2", "2.0", "02", "two", r"\{2,1\}", "1,2") == [0, 0, 0, 0, 4, 5, 5]
    others = ["5", "7", "5 or 7", "(1,2)", "(2,1)", "[1,2]", r"\sqrt{2}", "1.41", "-5"]
    assert classes(session, *others) == list(range(len(others)))


def test_of_a_sentence_what_counts_for_the_score_counts_for_the_vote(session: MathSession) -> None:
    texts = ["The answer is 42. This is because 40+2 = 42, or 41+1.", r"\boxed{42}", "So there are 42 apples, Ann says"]
    answers = [session.answer(text) for text in texts]
    assert None not in answers
    assert classes(session, *map(str, answers)) == [0, 0, 0]
    assert grade(session, "42", *texts) == [1.0] * 3


class Nobody(Graders):
    """Asked nothing."""

    def __init__(self) -> None: ...

    def grade(self, questions: object) -> list[float | None]:
        assert not questions
        return []


def test_integers_need_no_verifier() -> None:
    responses = ["The answer is $7$.", r"\boxed{+7}", r"\boxed{007}", "so 8", r"\boxed{-7}"]
    assert grade(MathSession(Nobody(), "any"), "7", *responses[:3], responses[4]) == [1.0, 1.0, 1.0, 0.0]
    many = [str(number) for number in range(-50, 50)]
    assert voted([*many, "+7", "007"], Nobody()) == [*range(100), 57, 57]


def test_an_answer_that_never_ends_has_its_own_class_and_the_others_theirs() -> None:
    evil = [answer_in(each, "any") or "" for each in HANGING]
    with Math(workers=2, seconds=1.0).open(Context()) as session:
        began = monotonic()
        found = classes(session, evil[0], "1", *evil[1:3], "1.0", r"\frac22", *evil[3:], "2/2")
    assert [found[index] for index in (1, 4, 5, -1)] == [1] * 4
    assert len(set(found)) == len(HANGING) + 1
    assert monotonic() - began < 3 * 1.0 * len(found) + 60


# The public test sets.


def references() -> list[str]:
    if not SETS.is_dir():
        pytest.skip("no public test sets: UPGE_TEST_SETS names their folder")
    return [
        problem["answer"] for path in sorted(SETS.glob("*.json")) for problem in json.loads(path.read_text("utf-8"))
    ]


def spellings(reference: str) -> Iterator[str]:
    plain = unwrapped(reference)
    yield reference
    yield plain
    yield f"{plain}."
    yield f"${plain}$"
    yield rf"\boxed{{{plain}}}"
    yield rf"\[ \boxed{{ {plain} }} \]"
    yield f"There are 17 ways.\nThe answer is ${plain}$."
    yield f"There are 17 ways.\n**Answer:** {plain}"
    yield rf"So we have $\boxed{{{plain}}}$, as 3 shows."
    yield plain.replace(r"\frac", r"\dfrac")
    yield plain.replace(",", " , ").replace("{", "{ ")


def test_every_reference_verifies_in_its_common_spellings(session: MathSession) -> None:
    pairs = [(Problem("p", "?", answer), each) for answer in references() for each in spellings(answer)]
    scores = session.score(pairs)
    assert [(p.answer, each) for (p, each), found in zip(pairs, scores, strict=True) if found != 1.0] == []


@pytest.mark.draws
def test_every_reference_verifies_by_its_meaning(session: MathSession) -> None:
    """Integers as fractions, which only math-verify can know to be equal."""
    numbers = [answer for answer in references() if unwrapped(answer).lstrip("-").isdigit()]
    few = numbers[: 100 if PROFILE == "dev" else None]
    written = [(Problem("p", "?", n), rf"\boxed{{\frac{{{2 * int(unwrapped(n))}}}{{2}}}}") for n in few]
    assert few
    assert session.score(written) == [1.0] * len(few)


@pytest.mark.draws
def test_wrong_answers_do_not_verify(session: MathSession) -> None:
    """Another problem's answer in the place of each, and numbers one off, or with another sign."""
    answers = references()
    random.Random(0).shuffle(answers)
    others = [(a, b) for a, b in itertools.pairwise(answers) if spelled(a) != spelled(b)]
    numbers = [n for n in map(unwrapped, answers) if n.isdigit() and n != "0"]
    near = [(n, wrong) for n in numbers for wrong in (str(int(n) + 1), f"-{n}", rf"\frac{{1}}{{{int(n) + 1}}}")]
    wrong = [*others[: 200 if PROFILE == "dev" else None], *near[: 100 if PROFILE == "dev" else None]]
    scores = session.score([(Problem("p", "?", a), rf"\boxed{{{unwrapped(b)}}}") for a, b in wrong])
    assert [pair for pair, found in zip(wrong, scores, strict=True) if found != 0.0] == []


# What can't hold it up.

PIECES = [
    *(r"\frac{", r"\sqrt{", r"\boxed{", r"\text{", r"\binom{5}{", "{", "}", "}}", "(", ")", "[", "]", "$", "$$", r"\["),
    *(
        r"\]",
        r"\left(",
        r"\right)",
        "1",
        "9",
        "-3",
        "0",
        "x",
        "n",
        "10^{",
        "2^",
        "_",
        "^",
        "+",
        "-",
        "=",
        "<",
        ",",
        "%",
    ),
    *("!", "/0", "\\", "\\\\", "&", r"\pi", r"\infty", r"\sum_{n=1}^{\infty}", r"\int_0^x", r"\log", r"\sin", r"\cup"),
    *(
        r"\le",
        "answer is ",
        "Answer: ",
        " or ",
        " and ",
        "so ",
        "\n",
        "\0",
        "\ud800",
        "½",
        "٣",
        "𝟡",
        "\u202e",
        "∞",
        "🙂",
    ),
]

HANGING = [
    r"\boxed{9^{9^{9^{9}}}}",
    r"\boxed{100000000!}",
    r"\boxed{\dfrac{5^{\left(5^{\left(5^{\left(5^5\right)}\right)} - 4\right)} - 5}{16}}",
    r"\boxed{(x+y+z)^{10000}}",
    r"\boxed{\binom{10^{10}}{10^{9}}}",
    r"\boxed{\sum_{n=1}^{10^{20}} \sin(n)^n}",
]
"""Known to go on for longer than anybody waits."""

ODD = [
    "9^9^9^9",
    r"\boxed{" + r"\frac{1}{" * 2000 + "1" + "}" * 2001,
    r"\boxed{" + r"\sqrt{" * 100 + "2" + "}" * 101,
    r"\boxed{" + "(" * 900 + "1" + ")" * 900 + "}",
    r"\boxed{" * 100_000,
    "$" * 1_000_000,
    "x" * 1_000_000,
    r"\boxed{" + "9" * 1_000_000 + "}",
    "answer is " * 100_000,
    " " * 1_000_000 + "7",
    r"\boxed{" + "1," * 499 + "1}",
    r"\boxed{\int_0^\infty \frac{\sin(x^x)}{e^{x^2}+x^{7}} dx}",
    r"\boxed{\lim_{x\to\infty} x^{x^{x}}}",
    r"\boxed{\log_{2^5}(\log_{2^4}(\log_{2^3}(\log_{2^2}(\log_{2^1}x))))}",
    r"\boxed{\begin{pmatrix} 1&2\\3&4 \end{pmatrix}^{1000000000}}",
    "\\boxed{\ud800\0\u202e}",
]


def soup(seed: int) -> str:
    """A completion of pieces drawn at random, half of them in a box."""
    draw = random.Random(seed)
    text = "".join(draw.choices(PIECES, k=draw.randint(0, 40)))
    return rf"\boxed{{{text}}}" if draw.random() < 0.5 else text


def test_what_would_never_end_scores_0_in_its_time_and_the_rest_is_scored() -> None:
    right = r"\boxed{\frac{10}{2}}"
    began = monotonic()
    with Math(workers=2, seconds=1.0).open(Context()) as session:
        scores = grade(session, "5", *(each for hanging in HANGING for each in (hanging, right)), *ODD, right)
    assert scores == [0.0, 1.0] * len(HANGING) + [0.0] * len(ODD) + [1.0]
    assert monotonic() - began < 1.0 * (2 * len(HANGING) + len(ODD) + 1) + 60


@pytest.mark.draws
def test_no_completion_hangs_or_crashes_it() -> None:
    """Answers that are none score 0: no soup is the number below, whatever it computes to."""
    count = {"dev": 100, "ci": 1000}.get(PROFILE, 10_000)
    with Math(workers=2, seconds=0.5).open(Context()) as session:
        scores = grade(session, "271828182845", *map(soup, range(count)), r"\boxed{271828182844+1}")
    assert scores == [0.0] * count + [1.0]
