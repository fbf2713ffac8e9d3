"""The metrics' names: those that a run logs are those that the documentation lists."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from support import tiny

import upge
from upge.evaluate.scores import pass_at_k
from upge.rollouts.batching import micro_batches
from upge.train.trainer import train

DOCUMENTED = (Path(__file__).parents[2] / "docs" / "runs.md").read_text()


def test_every_logged_name_is_documented(tmp_path: Path) -> None:
    folder = train(upge.load(tiny.recipe(tmp_path), ["train.steps=1"]))
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    names = set(re.findall(r'"([\w/@]+)":', "\n".join(line for line in lines if '"train"' in line)))
    for name in names - {"phase", "step"}:
        generic = re.sub(r"\b(rl|sft)\b", "<term>", name)
        assert generic in DOCUMENTED or f"/{generic.rpartition('/')[2]}" in DOCUMENTED, name


@pytest.mark.parametrize(
    ("n", "correct", "k", "chance"), [(4, 0, 2, 0.0), (4, 4, 1, 1.0), (4, 1, 1, 0.25), (4, 2, 2, 5 / 6)]
)
def test_pass_at_k_is_unbiased(n: int, correct: int, k: int, chance: float) -> None:
    assert pass_at_k(n, correct, k) == pytest.approx(chance)


def grouped(*sizes: tuple[int, int]) -> list[upge.Trajectory]:
    """Trajectories of (group, tokens)."""
    problem = upge.Problem("p", "?", "a")
    return [upge.Trajectory(problem, (0,), (1,) * (size - 1), "", 0.0, False, group=group) for group, size in sizes]


def test_a_prompt_stays_in_one_micro_batch_where_it_fits() -> None:
    rows = grouped((0, 4), (0, 6), (1, 10), (1, 10), (2, 3))
    assert micro_batches(rows, 20) == [[2, 3], [0, 1, 4]]
    assert micro_batches(rows, 10) == [[2], [3], [0], [1], [4]]
    assert micro_batches(rows, 1) == [[2], [3], [0], [1], [4]]


def test_a_scope_wider_than_a_trajectory_is_never_split() -> None:
    rows = grouped((0, 4), (0, 6), (1, 10))
    assert micro_batches(rows, 1, scope="group") == [[2], [0, 1]]
    assert micro_batches(rows, 1, scope="step") == [[0, 1, 2]]
