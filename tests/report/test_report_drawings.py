"""What reports draw: ticks, curves, the switch's picture, histograms."""

from __future__ import annotations

import re
from math import floor, isclose, log10
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import tiny

import upge
from upge.report.allocation import ANY, NONE, chosen, picture
from upge.report.charts import (
    BOTTOM,
    LEFT,
    MOST_POINTS,
    RIGHT,
    TOP,
    Chart,
    Point,
    curve,
    framed,
    smoothed,
    thinned,
    ticks,
    written,
)
from upge.report.curves import groups
from upge.report.histograms import BINS, histograms
from upge.report.html import pieces
from upge.report.responses import Prompt


@given(st.floats(-1e9, 1e9), st.floats(1e-9, 1e9), st.integers(2, 8))
def test_ticks_are_round_few_and_within(low: float, span: float, most: int) -> None:
    high = low + span
    if not high - low > 1e-9 * max(abs(low), abs(high)):
        return
    found = ticks(low, high, most)
    room = 1e-6 * (high - low)
    assert all(low - room <= tick <= high + room for tick in found)
    assert len(found) <= most + 1
    if len(found) > 1:
        step = found[1] - found[0]
        digit = step / 10 ** floor(log10(step) + 1e-6)
        assert min(abs(digit - round_) for round_ in (1, 2, 5)) < 1e-3


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0"), (0.5, "0.5"), (-2, "−2"), (1e4, "10000"), (2e-5, "2·10⁻⁵"), (1e-6, "10⁻⁶"), (-1.5e7, "−1.5·10⁷")],
)
def test_numbers_are_written_short(value: float, text: str) -> None:
    assert written(value) == text


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=40))
def test_every_point_is_on_the_drawing(values: list[float]) -> None:
    frame = framed(list(range(len(values))), values)
    assert all(LEFT <= frame.x(x) <= RIGHT and TOP <= frame.y(y) <= BOTTOM for x, y in enumerate(values))


@given(st.lists(st.floats(2**-20, 2**20), min_size=1, max_size=40))
def test_every_point_and_tick_is_on_a_drawing_of_doublings(values: list[float]) -> None:
    frame = framed(values, values, log_x=True, log_y=True)
    assert all(LEFT <= frame.x(x) <= RIGHT and TOP <= frame.y(x) <= BOTTOM for x in values)
    assert all(TOP <= tick.at <= BOTTOM for tick in frame.down())


@given(st.integers(1, 2000))
def test_a_long_curve_is_drawn_by_means(count: int) -> None:
    chart = Chart("any", [curve("", [(float(i), float(i)) for i in range(count)])])
    drawn = chart.series[0].points
    assert len(drawn) <= MOST_POINTS
    assert ("means of" in chart.note) == (count > MOST_POINTS)
    assert [point.x for point in drawn] == [point.y for point in drawn]


def test_means_and_moving_means() -> None:
    points = [Point(float(i), float(i % 2)) for i in range(6)]
    assert [(p.x, p.y) for p in thinned(points, 4)] == [(1.5, 0.5), (4.5, 0.5)]
    assert [p.y for p in smoothed(points)] == pytest.approx([1 / 2, 1 / 3, 2 / 3, 1 / 3, 2 / 3, 1 / 2])


def test_metrics_that_belong_together_are_drawn_together() -> None:
    lines = [
        {"phase": "train", "step": i, "a/nll": i, "b/nll": -i, "share/a": 0.5, "rows": 8, "new": i} for i in range(3)
    ]
    found, still = groups(lines, [], ["a", "b"])
    titles = {group.title: [chart.title for chart in group.charts] for group in found}
    assert titles == {"Reward and success": ["Terms chosen"], "Terms": ["nll"], "Other": ["new"]}
    assert still == {"rows": 8}
    (nll,) = found[1].charts
    assert [(series.label, series.colour) for series in nll.series] == [("a", 0), ("b", 1)]


@given(
    st.lists(st.tuples(st.integers(0, 200), st.sampled_from("ab"), st.floats(0, 1)), min_size=1, max_size=60),
)
def test_the_picture_counts_every_prompt(given: list[tuple[int, str, float]]) -> None:
    given.sort()
    prompts = [Prompt(step, str(i), (reward,)) for i, (step, _, reward) in enumerate(given)]
    drawn = picture(prompts, [label for _, label, _ in given], ["b", "a"])
    assert drawn is not None
    counts = [int(re.search(r"(\d+) prompts?", spot.tip)[1]) for spot in drawn.spots]  # type: ignore[index]
    assert sum(counts) == len(prompts)
    assert [label for label, _ in drawn.labels] == [label for label in "ba" if label in {each[1] for each in given}]
    heights: dict[float, float] = {}
    for bar in drawn.shares:
        heights[bar.x] = heights.get(bar.x, 0.0) + bar.height
    assert all(isclose(height, BOTTOM - TOP, abs_tol=0.2) for height in heights.values())


def test_without_a_switch_by_rewards_no_terms_are_told_apart(tmp_path: Path) -> None:
    prompts = [Prompt(0, "p", (1.0, 0.0))]
    assert chosen(None, prompts) == [ANY]
    assert picture([], [], []) is None
    alone = {"terms": {"rl": tiny.HYBRID["terms"]["rl"]}}
    assert chosen(upge.load(tiny.recipe(tmp_path, estimator=alone)), prompts) == [ANY]
    refusing = {**alone, "switch": {"use": "informative", "keep": ["rl"]}}
    loaded = upge.load(tiny.recipe(tmp_path, estimator=refusing))
    assert chosen(loaded, [*prompts, Prompt(0, "q", (1.0, 1.0))]) == ["rl", NONE]


@given(st.lists(st.lists(st.floats(-2, 2), min_size=1, max_size=5), min_size=1, max_size=20))
def test_histograms_count_every_reward(rewards: list[list[float]]) -> None:
    prompts = [Prompt(step, "p", tuple(own)) for step, own in enumerate(rewards)]
    found = histograms(prompts)
    assert sum(each.count for each in found) == sum(map(len, rewards))
    assert len(found) == min(3, len(rewards))
    for each in found:
        assert len(each.bars) <= max(BINS, 12)
        assert sum(int(re.search(r"(\d+) of", bar.tip)[1]) for bar in each.bars) == each.count  # type: ignore[index]


def test_subscripts_are_told_from_text() -> None:
    assert pieces("∇J_rl = Σ_t s(q)") == [("∇J", "rl"), (" = Σ", "t"), (" s(q)", "")]
    assert pieces("1 where _x") == [("1 where _x", "")]
