"""When two formulas mean the same: Math-Verify's word, and where it is known to be wrong a rule of our own.

Math-Verify and sympy are imported when used; what is here runs in graders, since some formulas compute for ever.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from typing import Any

from upge_parts.rewards.answers import integer, unwrapped

DIGITS = 30
"""Digits to which two exact numbers are computed, where they are too close for Math-Verify to tell apart."""
EXACT, ROUNDED = 1e-20, 1e-3
"""How far two numbers may differ, relative to the larger: two exact ones; one of which is a decimal."""

_EXPONENT = re.compile(r"(?<![\w.])(\d+(?:\.\d+)?|\.\d+)(?:[eE]\+?|\s?[x×*]\s?10\^\{?)(-?\d+)\}?(?![\w.])")
_EULER = re.compile(r"(?<![\\a-zA-Z0-9])E(?=_)")
_DELIMITER = re.compile(r"(?<!\\)\$|(?<!\\)\\[()\[\]]")
_THOUSANDS = re.compile(r"[-+]?\d{1,3}(?:,\d{3})+(?:\.\d+)?(?=\s*(?:\\?%)?\Z)")
_MIXED = re.compile(r"(?<![\w.}^/])(\d+)\s+(\d+)\s?/\s?(\d+)(?![\w.])")
_BASE = re.compile(r"\(?([0-9A-Za-z]+)\)?_\{?\s?(?:\\text\{)?([0-9]+|[a-z]+)\}{0,2}")
_BASES = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"]
_SYMBOLS = {
    "−": "-", "×": r"\times ", "÷": r"\div ", "·": r"\cdot ", "π": r"\pi ", "∞": r"\infty ", "≤": r"\le ", "≥": r"\ge ",
    "∪": r"\cup ", "∩": r"\cap ", "∈": r"\in ", "±": r"\pm ", "∓": r"\mp ", "°": r"^\circ ", "∅": r"\emptyset ",
    r"\varnothing": r"\emptyset", "⟨": "(", "⟩": ")", "²": "^2", "³": "^3", "½": r"\frac12 ", "~": " ", "**": "^",
}  # fmt: skip
_SYMBOL = re.compile("|".join(map(re.escape, _SYMBOLS)))
_ANGLE = re.compile(r"(?:\\(?:left|right)\s?)?\\([lr])angle(?![a-zA-Z])")
_ROOT = re.compile(r"√\s?(?:(\d+(?:\.\d+)?|[a-zA-Z])|\(([^()]*)\))")


def same(reference: str, answer: str) -> bool:
    """Whether an answer means what the reference does, by Math-Verify, but for what is known to be wrong there."""
    from math_verify import verify

    one, other = plain(reference), plain(answer)
    bases = [_BASE.fullmatch(each.rpartition("=")[2].strip()) for each in (one, other)]
    if bases[0] and bases[1]:
        return _base(bases[0]) == _base(bases[1])
    # Its own time limits are alarms, which a long computation in C doesn't hear: the keeper has the time.
    gold, target = expressions(one), expressions(other)
    if not verify(gold, target, timeout_seconds=None):
        if "%" not in one + other:
            return False
        gold, target = (expressions(re.sub(r"\\?%", "", each)) for each in (one, other))
        return bool(verify(gold, target, timeout_seconds=None)) and not _differ(gold, target)
    return not (_differ(gold, target) or _repeat_otherwise(one, other))


def plain(formula: str) -> str:
    r"""A formula as Math-Verify reads it: `1,234` → `1234`, `4e33` → `4 \times 10^{33}`, `∅` → `\emptyset`."""
    formula = _SYMBOL.sub(lambda symbol: _SYMBOLS[symbol[0]], unwrapped(formula))
    formula = _ROOT.sub(lambda root: rf"\sqrt{{{root[1] or root[2]}}}", formula)
    formula = _ANGLE.sub(lambda angle: "(" if angle[1] == "l" else ")", formula)
    formula = re.sub(r"\\?[$£€¥₹₩₽]\s?(?=\.?\d)", "", formula) if formula.count("$") % 2 else formula
    formula = re.sub(r"[£€¥₹₩₽]\s?", "", formula)
    if _THOUSANDS.match(formula):
        formula = formula.replace(",", "")
    formula = _MIXED.sub(r"\1\\frac{\2}{\3}", formula)
    formula = _EULER.sub(r"\\Xi ", _EXPONENT.sub(r"\1 \\times 10^{\2}", formula))  # else E_1 is the number 1
    return _DELIMITER.sub(" ", formula)


def expressions(formula: str) -> list[Any]:
    """What Math-Verify understands in all of a formula: an expression and its text, or one of them."""
    from math_verify import parse

    return list(parse(rf"\boxed{{{formula}}}", parsing_timeout=None))


def _base(written: re.Match[str]) -> tuple[str, str]:
    """The digits and the base of a number such as `123_5`."""
    base = str(_BASES.index(written[2])) if written[2] in _BASES else written[2]
    return written[1].lstrip("0").upper(), base


def _differ(gold: list[Any], target: list[Any]) -> bool:
    """Whether what Math-Verify takes for equal is not: numbers that are both small, equations without solutions."""
    from sympy import Basic, Eq

    one, other = ([each for each in found if isinstance(each, Basic)] for found in (gold, target))
    if not one or not other or one[0] == other[0]:
        return False
    if isinstance(one[0], Eq) and isinstance(other[0], Eq):
        return _unsolved(one[0], other[0])
    return _apart(*(each.rhs if isinstance(each, Eq) else each for each in (one[0], other[0])))


def _apart(one: Any, other: Any) -> bool:
    """Whether two numbers are apart, or two of which two lists or intervals consist."""
    from sympy import Expr, FiniteSet

    items = _items(one), _items(other)
    if items[0] and len(items[0]) == len(items[1]):
        if isinstance(one, FiniteSet) or isinstance(other, FiniteSet):
            return not all(any(not _apart(x, y) for y in items[1]) for x in items[0])
        return any(_apart(x, y) for x, y in zip(*items, strict=True))
    if not (isinstance(one, Expr) and isinstance(other, Expr)) or one.free_symbols or other.free_symbols:
        return False
    return not any(_close(x, y) for x in _percents(one) for y in _percents(other))


def _items(expression: Any) -> tuple[Any, ...]:
    from sympy import FiniteSet, Interval, Tuple

    if isinstance(expression, Interval):
        return (expression.start, expression.end)
    return tuple(expression.args) if isinstance(expression, FiniteSet | Tuple) else ()


def _percents(number: Any) -> Iterator[Any]:
    """A number, and if it is so many percent, so many."""
    from math_verify.grader import get_pct_val

    yield number
    if (value := get_pct_val(number)) is not None:
        yield value


def _close(one: Any, other: Any) -> bool:
    """Whether two numbers are equal but for rounding. What can't be computed is left to Math-Verify."""
    from sympy import Abs, Float

    rounded = one.has(Float) or other.has(Float)
    try:
        a, b = (each.doit().evalf(DIGITS) for each in (one, other))
        size = max(Abs(a), Abs(b))
        return bool(size == 0 or Abs(a - b) <= size * (ROUNDED if rounded else EXACT))
    except (TypeError, ValueError, AttributeError):
        return True


def _unsolved(one: Any, other: Any) -> bool:
    """Whether two equations have no solutions, and aren't the same but for a factor."""
    from sympy import simplify, solve

    try:
        if solve(one, one.free_symbols) or solve(other, other.free_symbols):
            return False
        ratio = simplify((one.lhs - one.rhs) / (other.lhs - other.rhs))
    except NotImplementedError:
        return False
    return not (ratio.is_number and ratio.is_finite)


def _repeat_otherwise(reference: str, answer: str) -> bool:
    """Whether the reference lists something twice, and the answer not so often: to Math-Verify lists are sets."""
    if re.search(r"[(\[{]", reference + answer):
        return False
    one, other = ([part.strip() for part in each.split(",")] for each in (reference, answer))
    if len(set(one)) == len(one):
        return False
    whole = [integer(part) for part in one], [integer(part) for part in other]
    counts = Counter(whole[0]), Counter(whole[1])
    return counts[0] != counts[1] or sorted(Counter(one).values()) != sorted(Counter(other).values())
