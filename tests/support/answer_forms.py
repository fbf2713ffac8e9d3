"""Responses that state a known answer, right or wrong, in many forms; and how often rewards take them for right.

    python tests/support/answer_forms.py [problems]     all by default; UPGE_TEST_SETS names the folder of test sets

prints how many right answers, and how many wrong ones, `math` and bare Math-Verify accept in each form.
"""

from __future__ import annotations

import json
import os
import random
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from upge import Context, Problem
from upge_parts.rewards.answers import spelled, unwrapped
from upge_parts.rewards.graders import Graders, graders
from upge_parts.rewards.mathematics import Math
from upge_parts.rewards.verifying import EXAMPLES

SETS = Path(os.environ.get("UPGE_TEST_SETS") or Path(__file__).parents[3] / "shared" / "data")

SENTENCES = (
    "The answer is {}.",
    "The answer is ${}$.",
    "The answer is: {}",
    "The final answer is {}. I hope it is correct.",
    "The final answer is ${}$. I hope it is correct.",
    "So the final answer is **{}**.",
    "**Answer:** {}",
    "**Answer: {}**",
    "Answer: ${}$",
    "Final Answer: {}",
    "Answer = {}",
    "Hence the answer is \\({}\\).",
    "The answer is\n\\[\n{}\n\\]",
    "Therefore the answer is\n\n$$\n{}\n$$\nas was to be shown.",
    "The answer is ${}$, which completes the proof.",
    "The answer is {}, which completes the proof.",
    "The answer is {} because nothing else is left.",
    "The answer is ${}$ because nothing else is left.",
    "The answer is {} dollars.",
    "The answer is {} eggs",
    "The answer is exactly {}.",
    "The answer is ${}$, not $1000003$.",
    "The answer is {}, not 1000003.",
    "The answer is not 1000003 but {}.",
    "The answer is {} (not 1000003).",
    "The correct answer to the question is ${}$.",
    "There are 17 ways, so ${}$ is the answer.",
    "There are 17 ways, so {} is the answer.",
    "We need 3 steps.\nThe answer is {} units in all.\nI checked it twice.",
    "So there are {} of them.",
    "So there are ${}$ of them.",
    "Therefore, ${}$.",
    "Therefore we get {}",
    "We get 3, hence ${}$ is what remains.",
    "Finally, 3 + 4 are 7.\n\n${}$",
    "#### {}",
    "\\[ {} \\]",
    "${}$",
    "{}",
    "The answer is $x = {}$.",
    "答案是 {}。",
    "The answer: {} apples are left over in the end.",
)
"""Sentences that state an answer."""

FORMS = {
    "plain": "{}",
    "box": r"So 3 remain. We have $\boxed{{{}}}$, as 3 shows.",
    "box, unit": r"\boxed{{{}}} eggs are left of 1000003.",
    "unit in a box": r"\boxed{{{} \text{{ eggs}}}}",
    "tags": "<think>It may be 7.</think>\n<answer>{}</answer>",
    "tags, lines": "<answer>\n{}\n</answer>",
    "tags, sentence": "<answer>\nThe answer is {}.\n</answer>",
    "tags, box": "<answer>\n$\\boxed{{{}}}$\n</answer>",
}
"""Whole responses around an answer."""

THOUGHT = "<think>Perhaps \\boxed{1000003}? The answer is 1000003.</think>\n"


class Case(NamedTuple):
    form: str
    reference: str
    response: str


def references(folder: Path = SETS) -> list[str]:
    """The reference answers of all public test sets in a folder."""
    return [problem["answer"] for path in sorted(folder.glob("*.json")) for problem in json.loads(path.read_text())]


def responses(answer: str) -> Iterator[tuple[str, str]]:
    """Every form, and the response that states the answer in it; each sentence also behind a thought."""
    for sentence in SENTENCES:
        yield sentence, sentence.format(answer)
        yield "thought, " + sentence, THOUGHT + sentence.format(answer)
    for name, form in FORMS.items():
        yield name, form.format(answer)


def wrong(reference: str, other: str) -> Iterator[str]:
    """Answers that aren't the reference: another problem's, and its own with a number changed."""
    plain = unwrapped(reference)
    if spelled(other) != spelled(reference):
        yield unwrapped(other)
    if (number := re.search(r"\d+", plain)) is not None:
        yield plain[: number.start()] + str(int(number[0]) + 1) + plain[number.end() :]
    if re.fullmatch(r"[1-9]\d*(_\{?\d\}?)?", plain):
        yield f"{plain.partition('_')[0]}_{{7}}" if "_" in plain and "7" not in plain.partition("_")[2] else f"-{plain}"
        yield f"{plain.partition('_')[0]}!" if len(plain) > 1 else f"2^{{-{plain}}}"


class BareMathVerify:
    """Math-Verify on whole responses, in processes that can be stopped."""

    def __init__(self, processes: Graders) -> None:
        self._processes = processes

    def score(self, cases: Sequence[Case]) -> list[float]:
        return [grade or 0.0 for grade in self._processes.grade([(c.reference, c.response) for c in cases])]


def prepare() -> None:
    """Import what the graders need, and use it once: who has read formulas reads their like many times faster."""
    import logging

    logging.getLogger("math_verify").setLevel(logging.CRITICAL)
    for reference, answer in EXAMPLES:
        grade(reference, f"The answer is ${answer}$.")


def grade(reference: str, response: str) -> float:
    """1.0 if bare Math-Verify takes a whole response for right."""
    from math_verify import parse, verify

    gold = parse(rf"\boxed{{{unwrapped(reference)}}}", parsing_timeout=None)
    return float(verify(gold, parse(response, parsing_timeout=None), timeout_seconds=None))


def measure(right: Sequence[Case], others: Sequence[Case], seconds: float = 5.0) -> list[list[float]]:
    """The scores of right and of wrong cases: by `math`, then by bare Math-Verify."""
    cases = [*right, *others]
    here = str(Path(__file__).parents[1])
    if here not in os.environ.get("PYTHONPATH", "").split(os.pathsep):
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [here, os.environ.get("PYTHONPATH", "")]))
    with Math(workers=2, seconds=seconds).open(Context()) as session:
        ours = session.score([(Problem("p", "?", case.reference), case.response) for case in cases])
    with graders("support.answer_forms", 2, seconds) as processes:
        bare = BareMathVerify(processes).score(cases)
    return [ours, bare]


def drawn(count: int | None = None, folder: Path = SETS) -> tuple[list[Case], list[Case]]:
    """Right and wrong cases of `count` problems of the test sets, or of all."""
    draw = random.Random(0)
    answers = references(folder)
    draw.shuffle(answers)
    right, others = [], []
    for reference, other in list(zip(answers, answers[1:] + answers[:1], strict=True))[:count]:
        right += [Case(form, reference, text) for form, text in responses(unwrapped(reference))]
        others += [Case(form, reference, text) for each in wrong(reference, other) for form, text in responses(each)]
    return right, others


def main() -> None:
    """Print the table."""
    right, others = drawn(int(sys.argv[1]) if len(sys.argv) > 1 else None)
    ours, bare = measure(right, others)
    print(f"{'right':>7} {'math':>7} {'bare':>7} {'wrong':>7} {'math':>7} {'bare':>7}  form")
    forms = list(dict.fromkeys(case.form for case in right))
    for form in [*forms, None]:
        picked = [
            [index for index, case in enumerate(cases, start) if form in (None, case.form)]
            for cases, start in ((right, 0), (others, len(right)))
        ]
        numbers = [n for where in picked for n in (len(where), *(int(sum(s[i] for i in where)) for s in (ours, bare)))]
        print(" ".join(f"{number:>7}" for number in numbers), "", "all" if form is None else repr(form))


if __name__ == "__main__":
    main()
