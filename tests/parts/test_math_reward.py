"""The reward `math`: what verifies, what doesn't, and what can't hold it up. Needs the extra of that name.

The public test sets are looked for in the folder that UPGE_TEST_SETS names, or else in shared/data beside the
repository: JSON lists with `prompt` and `answer`.
"""

from __future__ import annotations

import itertools
import os
import random
from collections.abc import Iterator, Sequence
from time import monotonic
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import answer_forms
from support.answer_forms import SETS

from upge import Context, InputError, Problem
from upge_parts.rewards import answers
from upge_parts.rewards.answers import answer_in, spelled, unwrapped
from upge_parts.rewards.graders import Graders
from upge_parts.rewards.mathematics import Math, MathSession
from upge_parts.rewards.verifying import EXAMPLES
from upge_parts.rewards.verifying import grade as compare
from upge_parts.rewards.voting import classes as voted

pytestmark = pytest.mark.needs("math_verify")

PROFILE = os.environ.get("UPGE_PROFILE", "dev")


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


# Sentences, tags and thoughts.

NOUNS = """dollars eggs cents apples miles hours minutes students books meters liters kilograms feet inches yards pounds
ounces gallons people children marbles pencils cookies boxes bags trees flowers birds cats dogs fish cars buses pages
points goals games songs tickets coins stamps cards balls shirts shoes hats chairs tables rooms floors windows doors
bricks tiles sheep cows horses chickens rabbits bees ants plants seeds oranges bananas euros yen cups spoons plates
degrees weeks months"""
NUMBERS = ["18", "0", "-7", "3.5", "1,234", "1,234.50", "36%", "$27.00", "-3/4", "5/9", "2^10", r"\frac{14}{3}", "4e33"]
TEMPLATES = [
    "The answer is {} {}.",
    "The answer is exactly {} {}",
    "**Answer:** {} {}",
    "The answer is **{}** {}.",
    "The answer is {} {}, not 1000003 of them.",
    "The answer is not 1000003 but {} {}.",
    "The answer is {} {} because 3 + 4 = 7 and nothing else is left.",
    "So Ann has {} {} left.",
    "There are 3 boxes, so there are {} {}, not 1000003.",
    "<answer>{} {}</answer>",
    "<answer>\nShe has {} {}.\n</answer>",
    r"\boxed{{{} \text{{ {}}}}}",
    r"\boxed{{{} {}}}",
]


class InProcess(Graders):
    """Grades here: for formulas that are known to be harmless."""

    def __init__(self) -> None:
        self.known: dict[object, float] = {}

    def grade(self, questions: Sequence[tuple[str, ...]]) -> list[float | None]:
        return [self.known.setdefault(each, compare(*each)) for each in questions]


HERE = MathSession(InProcess(), "any")


def scored(reference: str, response: str, session: MathSession = HERE) -> float:
    return session.score([(Problem("p", "?", reference), response)])[0]


@given(st.sampled_from(TEMPLATES), st.sampled_from(NOUNS.split()), st.sampled_from(NUMBERS), st.sampled_from(NUMBERS))
def test_a_word_behind_a_number_is_no_part_of_it(template: str, noun: str, number: str, other: str) -> None:
    reference = number.strip("$").replace(",", "")
    assert scored(reference, template.format(number, noun)) == 1.0
    if other != number:
        assert scored(reference, template.format(other, noun)) == 0.0


@pytest.mark.parametrize("noun", NOUNS.split())
def test_every_noun_is_a_noun(noun: str) -> None:
    assert scored("18", f"The answer is 18 {noun}.") == scored("18", rf"\boxed{{18 {noun}}}") == 1.0
    assert scored("18", f"The answer is 81 {noun}.") == scored("18", rf"\boxed{{81 {noun}}}") == 0.0


@pytest.mark.parametrize(
    ("reference", "response"),
    [
        ("18", "18 is the answer."),
        ("18", "The final answer is: \\boxed{18} eggs"),
        ("18", "She has 18 eggs left.\nI hope this helps!"),
        ("18", "The answer is 3 boxes of 6 eggs = 18 eggs."),
        ("18", "The final answer to the question of the eggs is 18. I used 3 steps"),
        ("18", "答案是 18。因为 9*2 是 18"),
        ("18", "#### 18"),
        ("18", "The answer is `18`."),
        ("18", "The answer is $18 and not $20."),
        ("18", "The answer is −(−18), that is to say."),
        ("5", "The answer is 5 m/s^2."),
        ("5", r"\boxed{5 \text{ m/s}^2}"),
        ("5", "The answer is 5 m/s^2 downwards"),
        ("7", "The answer is 7 N"),
        ("-3/4", "The answer is -3/4 of the pie."),
        ("7/2", "The answer is 3 1/2 cups."),
        ("2ab", "The answer is 2ab because of symmetry"),
        ("MR=SRMC", "The answer is MR=SRMC because nothing else is left."),
        ("(3, 4)", "The answer is (3, 4), a point of the line"),
        ("1, 2, 3", "The answer is $1$, $2$ and $3$."),
        ("1, 2", "The answer is 1 or 2"),
        ("1/2", "The answer is 0.5, or 1/2."),
        ("3, 5, 7", "The answer is 3, 5, 7 because they are prime."),
        (r"\text{Evelyn}", r"The answer is \text{Evelyn} because she is tall"),
        ("12.5", "The answer is 12.5%."),
        (r"\frac{5}{2}", r"The answer is $\frac{5}{2}$ m/s."),
        ("18", "The answer is 18/day"),
        ("18", "The answer is 18 °C"),
        ("18", "答案是：18个鸡蛋。"),
        ("18", "答案是18，不是20。"),
        ("18", "####18"),
        ("18", "The answer is ***18***."),
        ("18", "***Answer:*** _18_"),
        ("18", "The answer is <b>18</b> eggs"),
        ("18", "The answer is 18 🎉"),
        ("18", "The answer is 18 :)"),
        ("18", "The answer is 18,"),
        ("18", "Answer\n======\n18"),
        ("18", "The answer is 18.<|im_end|>"),
        ("18", r"The answer is $\boldsymbol{18}$"),
        ("1000000", "The answer is 1 000 000."),
    ],
)
def test_what_a_sentence_states(reference: str, response: str) -> None:
    assert scored(reference, response) == 1.0


@pytest.mark.parametrize(
    ("reference", "response"),
    [
        ("3", "The answer is between 3 and 5."),
        ("5", "The answer is between 3 and 5."),
        ("18", "The answer is 18 or 19?"),
        ("19", "The answer is 18 or 19?"),
        ("18", "The answer is 18 eggs or 19 eggs"),
        ("20", "The answer is 18, not 20."),
        ("20", "The answer is not 20 but 18"),
        ("20", "The answer is not 20."),
        ("20", "She has 18 (not 20)"),
        ("18", "The answer is 18!."),
        ("5", "The answer is 5x^2"),
        ("2", "The answer is 5 m/s^2"),
        ("12", "The answer is 1 2."),
        ("20", "答案是18，不是20。"),
    ],
)
def test_what_a_sentence_does_not_state(reference: str, response: str) -> None:
    assert scored(reference, response) == 0.0


@pytest.mark.parametrize(
    "response",
    [
        "<answer>5</answer>",
        "<answer>\n5\n</answer>",
        "<answer>The answer is 5</answer>",
        "<answer>\nIt takes 3 steps.\nThe answer is 5 eggs.\n</answer>",
        r"<answer>$\boxed{5}$, not 6</answer>",
        "<answer>6</answer> No: <ANSWER> 5 </ANSWER>",
        r"\boxed{6}, no, <answer>5</answer>",
        r"<answer>6</answer>, no, \boxed{5}",
        "<think>I must write <answer>6</answer>.</think><answer>5</answer>",
        "<final_answer>5</final_answer>",
        "<answer>5",
    ],
)
def test_answer_tags_are_read_as_boxes_are(response: str) -> None:
    assert scored("5", response) == 1.0
    assert scored("6", response) == 0.0
    whole = "</" in response
    assert scored("5", response, MathSession(InProcess(), "boxed")) == float(whole)


def test_empty_tags_hold_no_answer() -> None:
    assert [scored("5", each) for each in ("5 <answer></answer>", "<answer> </answer>", "</answer>")] == [0.0] * 3


@pytest.mark.parametrize(
    "end",
    [
        "</think>",
        "</think >",
        "</thinking>",
        "</reasoning>",
        "</seed:think>",
        "[/THINK]",
        "◁/think▷",
        "<|channel|>final<|message|>",
    ],
)
def test_a_thought_is_not_searched_where_an_answer_follows(end: str) -> None:
    text = rf"<think>It is \boxed{{6}}, or {end} rather \boxed{{7}}.{end}"
    reading = MathSession(InProcess(), "any", "read")
    assert [scored(each, text + "\nThe answer is 5.") for each in "567"] == [1.0, 0.0, 0.0]
    assert [scored(each, text + "\nThe answer is 5.", reading) for each in "567"] == [0.0, 0.0, 1.0]
    assert HERE.answer(text + "\nThe answer is 5.") == "5"
    for nothing in (" \n", "<|im_end|>\n"):
        assert [scored(each, text + nothing) for each in "567"] == [0.0, 0.0, 1.0]


# What Math-Verify takes for the same and is not, and the reverse.


@pytest.mark.parametrize(
    ("reference", "answer"),
    [
        ("1/2004!", "1/2006!"),
        ("2^{-99}", "2^{-98}"),
        ("e^{-100}", "e^{-101}"),
        ("x = 2^{-99}", "2^{-98}"),
        ("(2^{-99}, 1)", "(2^{-98}, 1)"),
        ("2^{-99}, 1", "2^{-98}, 1"),
        ("0.0000001", "0.0000002"),
        ("123_5", "123_7"),
        ("123_5", "x = 123_7"),
        ("4210_{5}", r"4210_{\text{six}}"),
        ("16,3,1,1", "16,3,3,1"),
        ("x^2+1=0", "x^2+2=0"),
        (r"\frac{1}{3} E_{1}+\frac{2}{3} E_{2}", r"\frac{2}{3} E_{1}+\frac{1}{3} E_{2}"),
        ("2", "3 1/2"),
    ],
)
def test_what_only_looks_the_same(reference: str, answer: str) -> None:
    assert scored(reference, rf"\boxed{{{answer}}}") == scored(answer, rf"\boxed{{{reference}}}") == 0.0
    assert scored(reference, rf"\boxed{{{reference}}}") == scored(answer, rf"\boxed{{{answer}}}") == 1.0


def test_a_list_that_repeats_something_asks_for_it_as_often() -> None:
    assert [scored("16,3,1,1", each) for each in ("16,3,1", "16,3,3,1", "1, 3, 1, 16")] == [0.0, 0.0, 1.0]
    assert scored("1,2", "1,2,2") == 1.0


@pytest.mark.parametrize(
    ("reference", "answer"),
    [
        (r"\emptyset", r"\varnothing"),
        ("∅", r"\{\}"),
        ("(1,2,3)", r"\langle 1,2,3\rangle"),
        ("(1,2,3)", r"\left\langle 1, 2, \frac62 \right\rangle"),
        ("1/2004!", r"\frac{1}{2004!}"),
        ("2^{-99}", r"\frac{1}{2^{99}}"),
        ("2^{-99}, 1", r"1, \frac{1}{2^{99}}"),
        ("1/3", "0.333333"),
        ("1/192", "0.005208"),
        ("0.125", r"12.5\%"),
        ("12.5", r"12.5\%"),
        ("4210_{5}", r"4210_{\text{five}}"),
        ("4210_{5}", "4210"),
        ("16,3,1,1", "1, 16, 1, 3"),
        ("x^2+1=0", "2x^2+2=0"),
        ("7/2", "3 1/2"),
        ("3.3e12", r"x = 3.3 \times 10^{12}"),
        (r"\sqrt{2}", "√2"),
        ("-5", "−5"),
    ],
)
def test_what_only_looks_different(reference: str, answer: str) -> None:
    assert scored(reference, rf"\boxed{{{answer}}}") == scored(answer, rf"\boxed{{{reference}}}") == 1.0


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
    return answer_forms.references()


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


def test_math_recognises_at_least_what_bare_math_verify_does(session: MathSession) -> None:
    """Of a few problems every form; `python tests/support/answer_forms.py` measures all."""
    references()
    right, wrong = answer_forms.drawn(2 if PROFILE == "dev" else 30)
    picked = [each[:: {"dev": 11, "ci": 7}.get(PROFILE, 1)] for each in (right, wrong)]
    ours, bare = answer_forms.measure(*picked)
    count = len(picked[0])
    worse = [case for case, a, b in zip(picked[0], ours, bare, strict=False) if a < b]
    taken = [case for case, a in zip(picked[1], ours[count:], strict=True) if a]
    assert (worse, taken) == ([], [])
    assert sum(ours[:count]) > sum(bare[:count])


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


@pytest.mark.parametrize("text", ["*" * 20001, "** " * 7000, ":) " * 7000, "# " * 9000, r"\boxed{" * 3000 + "}" * 3000])
def test_what_is_around_an_answer_is_taken_off_in_a_bounded_number_of_looks(
    text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each look costs the length, so that a number of them that grows with it would cost its square."""
    looks = 0
    pattern = answers._SET_OFF

    class Counting:
        def sub(self, *given: Any) -> str:
            nonlocal looks
            looks += 1
            return pattern.sub(*given)

    monkeypatch.setattr(answers, "_SET_OFF", Counting())
    unwrapped(text)
    assert 0 < looks <= 40


def test_layers_that_people_write_all_come_off() -> None:
    assert unwrapped("**" * 12 + r"$\boxed{\boxed{4}}$." + "**" * 12) == "4"
