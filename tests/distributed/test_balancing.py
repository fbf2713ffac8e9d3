"""Prompts dealt among ranks: whole, as evenly as they can be, and none of them lost."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch
from hypothesis import example, given
from hypothesis import strategies as st

from upge.rollouts.batching import WORTHWHILE, Load, balanced, dealt, most, portions
from upge.types import Problem, Trajectory


@st.composite
def loads(draw: st.DrawFn) -> tuple[list[Load], int]:
    """Prompts of a rollout batch, some of which cost nothing and some of which are missing; and how many ranks."""
    ranks = draw(st.integers(2, 5))
    groups = sorted(draw(st.sets(st.integers(0, 30), max_size=20)))
    tokens = st.one_of(st.just(0), st.integers(1, 10), st.integers(1, 5000))
    return [Load(group, group % ranks, draw(tokens)) for group in groups], ranks


def by_step(loads: list[Load], steps: int) -> list[list[Load]]:
    """The prompts of each optimizer step."""
    chosen = portions(torch.tensor([load.group for load in loads], dtype=torch.long), steps)
    return [[load for load, own in zip(loads, rows.tolist(), strict=True) if own] for rows in chosen]


@given(loads(), st.integers(1, 3))
@example(([], 2), 1)
@example(([Load(0, 0, 7)], 3), 2)
@example(([Load(0, 0, 0), Load(1, 1, 0)], 2), 1)
def test_every_optimizer_step_is_as_even_as_the_costliest_first_makes_it(
    case: tuple[list[Load], int], steps: int
) -> None:
    given_, ranks = case
    owner, before = dealt(given_, ranks, steps), {load.group: load.rank for load in given_}
    assert set(owner) == set(before)
    assert set(owner.values()) <= set(range(ranks))
    assert dealt(given_[::-1], ranks, steps) == owner, "all ranks come to the same, in whatever order they hear"
    for step in by_step(given_, steps):
        found = most(step, owner, ranks)
        assert found <= most(step, before, ranks)
        mean, largest = sum(load.tokens for load in step) / ranks, max((load.tokens for load in step), default=0)
        assert WORTHWHILE * found <= mean + largest * (1 - 1 / ranks) + 1e-9, "Graham's bound"
        assert all(owner[load.group] == load.rank for load in step if not load.tokens)


def test_prompts_without_signal_on_one_rank_make_room_for_others() -> None:
    given_ = [Load(group, group % 2, 0 if group % 2 else 100) for group in range(8)]
    owner = dealt(given_, 2, 1)
    assert most(given_, owner, 2) == 200
    assert [owner[group] for group in (1, 3, 5, 7)] == [1, 1, 1, 1], "what costs nothing stays"


def test_what_is_nearly_even_stays_where_it_is() -> None:
    given_ = [Load(0, 0, 100), Load(1, 1, 98), Load(2, 0, 51), Load(3, 1, 50)]
    assert dealt(given_, 2, 1) == {0: 0, 1: 1, 2: 0, 3: 1}


@dataclass
class Rank:
    """A team of threads in one process, as far as dealing asks for one."""

    rank: int
    world: int
    heard: list[list[Any]]
    together: threading.Barrier

    def all_gather(self, mine: list[Any]) -> list[Any]:
        self.heard[self.rank] = mine
        self.together.wait(10)
        everybodys = [each for its in self.heard for each in its]
        self.together.wait(10)
        return everybodys


def test_trajectories_move_whole_and_in_their_order() -> None:
    world, heard, together = 3, [[], [], []], threading.Barrier(3)
    batch = [trajectory(group, sample) for group in range(9) for sample in range(1 + group % 4)]

    def share(rank: int) -> Any:
        team: Any = Rank(rank, world, heard, together)
        own = [each for each in batch if each.group % world == rank]
        tokens = {group: 1000 * (group % world == 0) * (1 + group) for group in {each.group for each in own}}
        return balanced(team, own, tokens, 1)

    with ThreadPoolExecutor(world) as pool:
        shares = list(pool.map(share, range(world)))
    assert sorted((each for its in shares for each in its), key=lambda each: each.group) == batch
    assert all(its == sorted(its, key=lambda each: each.group) for its in shares)
    holders = [{each.group for each in its} for its in shares]
    assert sum(map(len, holders)) == 9, "a prompt is held by one rank"
    assert [len(its & {0, 3, 6}) for its in holders] == [1, 1, 1], "the costly ones are spread"


def trajectory(group: int, sample: int) -> Trajectory:
    return Trajectory(Problem(f"p{group}", "?", "a"), (2,), (3, 1), "", 0.0, False, sample=sample, group=group)
