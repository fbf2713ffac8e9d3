"""The switch's picture: over time, which prompts by their success went to which term."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from math import sqrt

import torch

from upge.estimator.batch import Batch
from upge.estimator.part_calls import PartCaller
from upge.estimator.part_errors import PartError
from upge.recipe.schema import Recipe
from upge.report.charts import BOTTOM, COLOURS, LEFT, RIGHT, TOP, Frame, Tick, written
from upge.report.responses import Prompt

COLUMNS, LEVELS = 40, 33
"""The most columns of steps, and values of P, that the picture tells apart."""

NONE = "no term"
ANY = "prompts"


@dataclass(frozen=True)
class Spot:
    """So many prompts at one place of the picture, by the term that they went to."""

    x: float
    y: float
    radius: float
    colour: int
    tip: str


@dataclass(frozen=True)
class Bar:
    """A rectangle; `tip` is what is shown under the pointer."""

    x: float
    y: float
    width: float
    height: float
    colour: int
    tip: str


@dataclass(frozen=True)
class Picture:
    """The success of prompts over time by the term that they went to, and the terms' shares.

    Attributes: labels: the terms with their colours. threshold: None, or where on the drawing the switch divides.
    """

    spots: Sequence[Spot]
    shares: Sequence[Bar]
    labels: Sequence[tuple[str, int]]
    marks: Sequence[Tick]
    down: Sequence[Tick]
    wide: int


def chosen(recipe: Recipe | None, prompts: Sequence[Prompt]) -> list[str]:
    """The terms that each prompt's trajectories went to, "a + b" for several.

    Found again from the rewards, which is all that the switches may read for that; "prompts" where they read more, have
    a state, or there is none.
    """
    if recipe is None or not recipe.estimator.switch or not _by_rewards_alone(recipe):
        return [ANY] * len(prompts)
    labels: list[str] = []
    for step, members in groupby(prompts, key=lambda prompt: prompt.step):
        try:
            labels += _labels(recipe, step, list(members))
        except PartError:  # somebody's switch wants more than the rewards of one prompt
            return [ANY] * len(prompts)
    return labels


def _by_rewards_alone(recipe: Recipe) -> bool:
    switches = recipe.estimator.switch
    return all(switch.reads() <= {"reward"} and not switch.initial() for switch in switches)


@torch.no_grad()
def _labels(recipe: Recipe, step: int, prompts: Sequence[Prompt]) -> list[str]:
    rewards = torch.tensor([reward for prompt in prompts for reward in prompt.rewards])
    group = torch.tensor([index for index, prompt in enumerate(prompts) for _ in prompt.rewards])
    rollouts = torch.zeros(len(rewards), dtype=torch.bool)
    batch = Batch(None, torch.arange(len(rewards)), group, rollouts, rewards)
    viewer, named = PartCaller(batch, step), torch.ones(len(prompts))
    weighed: dict[str, torch.Tensor] = {}
    for index, switch in enumerate(recipe.estimator.switch):
        for term, coefficient in viewer.coefficients(switch, f"switch.{index}", {}).items():
            weighed[term] = weighed.get(term, named) * coefficient
    table = {term: weight.tolist() for term, weight in weighed.items()}
    return [" + ".join(term for term in table if table[term][i]) or NONE for i in range(len(prompts))]


def picture(prompts: Sequence[Prompt], labels: Sequence[str], terms: Sequence[str]) -> Picture | None:
    """The picture of some prompts, with a label each; None where there are none. `terms` have the first colours."""
    if not prompts:
        return None
    first, last = prompts[0].step, max(prompt.step for prompt in prompts)
    wide = -(-(last - first + 1) // COLUMNS)
    columns = (last - first) // wide + 1
    successes = [prompt.success for prompt in prompts]
    low, high = min(0.0, *successes), max(1.0, *successes)
    frame = Frame(first - 0.5, first + columns * wide - 0.5, low - 0.06 * (high - low), high + 0.06 * (high - low))
    cells = Counter(
        ((prompt.step - first) // wide, level, label)
        for prompt, level, label in zip(prompts, _levels(successes, low, high), labels, strict=True)
    )
    colours = {label: index % COLOURS for index, label in enumerate(_ordered(set(labels), terms))}
    spread = _Spread(frame, first, wide, colours)
    return Picture(
        spots=spread.spots(cells),
        shares=spread.shares(cells),
        labels=list(colours.items()),
        marks=frame.across(),
        down=frame.down(),
        wide=wide,
    )


def _levels(successes: Sequence[float], low: float, high: float) -> list[float]:
    """Each P, or, where there are too many different ones, the middle of the range in which it is."""
    if len(set(successes)) <= LEVELS:
        return list(successes)
    wide = (high - low) / (LEVELS - 1)
    return [low + round((success - low) / wide) * wide for success in successes]


def _ordered(labels: set[str], terms: Sequence[str]) -> list[str]:
    return [term for term in terms if term in labels] + sorted(labels - set(terms))


@dataclass(frozen=True)
class _Spread:
    """Counts of (column, P, label) on a drawing."""

    frame: Frame
    first: int
    wide: int
    colours: dict[str, int]

    def spots(self, cells: Counter[tuple[int, float, str]]) -> list[Spot]:
        """A disc for each count, its area in proportion."""
        width = (self.frame.x(self.first + self.wide) - self.frame.x(self.first)) / 2
        largest = min(9.0, max(width, 2.5))
        most = max(cells.values())
        spots = []
        for (column, success, label), count in sorted(cells.items(), key=lambda item: -item[1]):
            x = self.frame.x(self.first + (column + 0.5) * self.wide - 0.5)
            tip = f"{self._steps(column)} · P = {written(success)} · {_prompts(count)} · {label}"
            radius = round(max(1.2, largest * sqrt(count / most)), 1)
            spots.append(Spot(x, self.frame.y(success), radius, self.colours[label], tip))
        return spots

    def shares(self, cells: Counter[tuple[int, float, str]]) -> list[Bar]:
        """For each column the labels' shares, one on the other, the first at the bottom."""
        counts: Counter[tuple[int, str]] = Counter()
        for (column, _, label), count in cells.items():
            counts[column, label] += count
        bars = []
        for column in sorted({column for column, _ in counts}):
            total, top = sum(counts[column, label] for label in self.colours), BOTTOM
            left = self.frame.x(self.first + column * self.wide - 0.5)
            right = self.frame.x(self.first + (column + 1) * self.wide - 0.5)
            for label, colour in self.colours.items():
                height = counts[column, label] / total * (BOTTOM - TOP)
                top -= height
                tip = f"{self._steps(column)} · {label} · {_prompts(counts[column, label])} of {total}"
                if height:
                    bars.append(Bar(left, round(top, 1), round(right - left - 0.6, 1), round(height, 1), colour, tip))
        return bars

    def _steps(self, column: int) -> str:
        start = self.first + column * self.wide
        return f"step {start}" if self.wide == 1 else f"steps {start}–{start + self.wide - 1}"


def _prompts(count: int) -> str:
    return f"{count} prompt{'' if count == 1 else 's'}"


def shares_down() -> list[Tick]:
    """The ticks beside shares."""
    return Frame(LEFT, RIGHT, 0.0, 1.0).down()
