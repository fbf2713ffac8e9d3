"""Means and differences as tables of a document, in Markdown: a row a recipe, a column a metric."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from math import isfinite

from upge.evaluate.scores import Estimate
from upge.sweep.scores import Score

Titled = Mapping[str, Sequence[Score]]
"""Scores by what they are of."""


def document(titled: Titled, first: str) -> str:
    """A table of means for each title, and below it one of the differences to the `first` group."""
    return "\n".join(line for title, scores in titled.items() if scores for line in _tables(title, scores, first))


def _tables(title: str, scores: Sequence[Score], first: str) -> Iterator[str]:
    seeds = sorted({len(each.values) for each in scores})
    yield f"**{title}.** Means over {' or '.join(map(str, seeds))} seeds, ± half of Student's 95 % interval:\n"
    yield from _table(scores, lambda score: cell(score.mean, ".3f"))
    if any(each.difference for each in scores):
        yield f"**Differences to {_escaped(first)}**, seed by seed, in the same way:\n"
        differing = [each for each in scores if each.group != first]
        yield from _table(differing, lambda score: "" if score.difference is None else cell(score.difference, "+.3f"))


def _table(scores: Sequence[Score], told: Callable[[Score], str]) -> Iterator[str]:
    metrics = list(dict.fromkeys(each.metric for each in scores))
    found = {(each.group, each.metric): told(each) for each in scores}
    yield _line(["", *map(_escaped, metrics)])
    yield _line(["---"] * (len(metrics) + 1))
    for group in dict.fromkeys(each.group for each in scores):
        yield _line([_escaped(group), *(found.get((group, metric), "") for metric in metrics)])
    yield ""


def cell(estimate: Estimate, digits: str) -> str:
    """`.853 ± .012`; without an interval where one value says nothing of it."""
    value = _short(f"{estimate.value:{digits}}")
    half = (estimate.high - estimate.low) / 2
    return f"{value} ± {_short(f'{half:.3f}')}" if isfinite(half) else value


def _short(number: str) -> str:
    """Without the 0 before the point."""
    sign = number[0] if number[0] in "+-" else ""
    digits = number.removeprefix(sign)
    return (sign + (digits[1:] if digits.startswith("0.") else digits)).replace("-", "−")


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _escaped(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
