"""What graders of mathematical answers run: see `upge_parts.rewards.graders`."""

from __future__ import annotations

import logging

from upge_parts.rewards.comparison import same

EXAMPLES = [
    *[("1/2", r"\boxed{0.5}"), ("10", r"$5 \cdot 2$"), ("12", "So there are 12"), ("-3", r"-\frac{6}{2}")],
    *[
        ("2220", "2,220"),
        ("4.5e3", r"4.5 \times 10^{3}"),
        (r"90^\circ", "90"),
        ("50", r"50\%"),
        (r"\frac{\pi}{2}", r"\pi/2"),
    ],
    *[(r"3\sqrt{13}", r"\sqrt{117}"), (r"\sqrt[3]{8}", "2"), ("2^{10}", "1024"), (r"\binom{5}{2}", "10"), ("4!", "24")],
    *[("x^2-1", "(x-1)(x+1)"), ("p - q", "-q+p"), ("x = 5", "5"), (r"\frac{x+2}{7}", r"\frac{1}{7}x + \frac27")],
    *[
        ("(1, 2)", r"\left( 1, \frac{4}{2} \right)"),
        (r"\{1, 2\}", r"\{2, 1\}"),
        ("1, -2", "-2, 1"),
        ("1,2,3", r"\{3,2,1\}"),
    ],
    *[("[2, 5)", r"[2, 5.0)"), (r"(-\infty, 0]", r"(-\infty, 0.0]"), (r"(0,1) \cup (2,3)", r"(2,3) \cup (0,1)")],
    *[("x > 3", "3 < x"), (r"1 \le x \le 2", r"1 \leq x \leq 2.0"), ("y = 2x + 3", "y = 3 + 2x"), ("1 + 2i", "2i + 1")],
    *[(r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}", r"\begin{pmatrix} 1.0 \\ 2 \end{pmatrix}"), ("5", r"5 \text{ cm}")],
    *[(r"\log_2 8", "3"), (r"\ln e", "1"), (r"\sin \frac{\pi}{6}", r"\frac12"), ("e^{-x}", r"\frac{1}{e^x}")],
    *[(r"a_{n} = 2n", "a_{n} = n + n"), ("f(x) = x", "f(x) = 2x/2"), (r"|x|", r"|-x|"), (r"\lfloor 2.5 \rfloor", "2")],
]
"""The kinds of answers that there are, each in two spellings: who has read them reads their like many times faster."""


def prepare() -> None:
    """Import math-verify and try it. Raises RuntimeError where it doesn't work, and everything would score 0."""
    from sympy.core.random import seed

    logging.getLogger("math_verify").setLevel(logging.ERROR)
    scores = [grade(reference, answer) for reference, answer in EXAMPLES]
    if scores[0] != 1.0:
        raise RuntimeError("math-verify says that 1/2 is not 0.5: reinstall it, pip install 'upge[math]'")
    seed(0)  # some of sympy's tests are at random points: each grader, a fork of this process, tests at the same ones


def grade(reference: str, answer: str, *alternatives: str) -> float:
    """1.0 if an answer means what the reference does, or each of its alternatives does, else 0.0."""
    right = same(reference, answer) or (len(alternatives) > 1 and all(same(reference, each) for each in alternatives))
    return float(right)
