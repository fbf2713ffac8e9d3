"""How rewards were spread in the early, the middle and the late steps."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import isfinite

from upge.report.allocation import Bar
from upge.report.charts import BOTTOM, LEFT, RIGHT, Frame, Tick, written
from upge.report.responses import Prompt

MOST_VALUES = 12
"""So many different rewards get a bar each; of more, bars are ranges."""

BINS = 20


@dataclass(frozen=True)
class Histogram:
    """The shares of rewards in some steps."""

    title: str
    count: int
    bars: Sequence[Bar]
    marks: Sequence[Tick]
    down: Sequence[Tick]


def histograms(prompts: Sequence[Prompt]) -> list[Histogram]:
    """Three histograms on the same axes, of fewer where there are fewer steps; none without rewards."""
    rewards = sorted({reward for prompt in prompts for reward in prompt.rewards if isfinite(reward)})
    steps = sorted({prompt.step for prompt in prompts})
    if not rewards or not steps:
        return []
    edges = _edges(rewards)
    counted = []
    for start, end in _thirds(len(steps)):
        within = [prompt for prompt in prompts if steps[start] <= prompt.step <= steps[end - 1]]
        values = [reward for prompt in within for reward in prompt.rewards if isfinite(reward)]
        title = f"step {steps[start]}" if end - start == 1 else f"steps {steps[start]}–{steps[end - 1]}"
        counted.append((title, Counter(_bin(value, edges) for value in values), len(values)))
    most = max((max(counts.values()) / total for _, counts, total in counted if total), default=1.0)
    return [_drawn(title, counts, total, edges, most) for title, counts, total in counted]


def _thirds(count: int) -> list[tuple[int, int]]:
    cuts = [count * index // 3 for index in range(4)]
    return [(start, end) for start, end in pairwise(cuts) if end > start]


def _edges(rewards: Sequence[float]) -> list[tuple[float, float]]:
    """The ranges that have a bar; of few different rewards each is a range."""
    if len(rewards) <= MOST_VALUES:
        return [(reward, reward) for reward in rewards]
    low, wide = rewards[0], (rewards[-1] - rewards[0]) / BINS
    return [(low + index * wide, low + (index + 1) * wide) for index in range(BINS)]


def _bin(value: float, edges: Sequence[tuple[float, float]]) -> int:
    return next((index for index, (_, end) in enumerate(edges) if value <= end), len(edges) - 1)


def _drawn(
    title: str, counts: Counter[int], total: int, edges: Sequence[tuple[float, float]], most: float
) -> Histogram:
    frame, wide = Frame(0.0, 1.0, 0.0, most * 1.06), (RIGHT - LEFT) / len(edges)
    bars = []
    for index, (low, high) in enumerate(edges):
        share = counts[index] / (total or 1)
        said = written(low) if low == high else f"{written(low)} … {written(high)}"
        tip = f"reward {said} · {counts[index]} of {total} · {share:.1%}"
        top, gap = frame.y(share), min(0.18 * wide, 14.0)
        bars.append(
            Bar(round(LEFT + index * wide + gap, 1), top, round(wide - 2 * gap, 1), round(BOTTOM - top, 1), 0, tip)
        )
    return Histogram(title, total, bars, _marks(edges, wide), frame.down())


def _marks(edges: Sequence[tuple[float, float]], wide: float) -> list[Tick]:
    """A tick under each bar of few, under every fifth edge of many."""
    if edges[0][0] == edges[0][1]:
        return [Tick(round(LEFT + (i + 0.5) * wide, 1), written(value)) for i, (value, _) in enumerate(edges)]
    return [Tick(round(LEFT + i * wide, 1), written(edges[i][0])) for i in range(0, len(edges), 5)]
