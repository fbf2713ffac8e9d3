"""The metrics' names: each one that a run logs has a row in the table, and each row is a name that a run logs."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support import tiny

import upge
from upge.evaluate.scores import columns, pass_at_k, records
from upge.rollouts.batching import micro_batches
from upge.rollouts.preflight import Report
from upge.runs.metric_names import METRICS, SUBJECTS, LoggedName, Phase, lookup
from upge.train.metrics import StepMetrics
from upge.train.run import train

ACTOR_CRITIC = {
    "critic": {"lr": 1e-3},
    "estimator": {
        "switch": {"use": "success_rate", "above": "rl", "otherwise": "sft"},
        "terms": {
            "rl": {"source": "rollouts", "denominator": "old", "advantage": "gae", "reduction": "token_mean"},
            "bonus": {"source": "rollouts", "direction": "entropy", "weight": 0.01}
            | {"denominator": "current", "advantage": "one", "reduction": "token_mean"},
            "kl": {"source": "rollouts", "denominator": "current", "reduction": "token_mean"}
            | {"advantage": {"use": "kl", "estimator": "k3", "coefficient": 0.01}},
            "sft": tiny.HYBRID["terms"]["sft"],  # type: ignore[index]
        },
    },
}
"""A recipe that reads everything which costs a forward pass, and so logs what only some runs do."""


def logged(folder: Path) -> Iterator[tuple[str, Phase]]:
    """The names in a run's two logs, and the phases of their lines."""
    for line in _lines(folder / "metrics.jsonl"):
        yield from ((name, line["phase"]) for name in line.keys() - {"phase", "step"})
    for line in _lines(folder / "timings.jsonl"):
        yield from ((name, "time") for name in line.keys() - {"phase", "step"})


def _lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def logged_in_rare_cases() -> Iterator[tuple[str, Phase]]:
    """What a run logs of faults that the runs here don't have, or an evaluation of answers that they don't make."""
    metrics = StepMetrics(["rl"], lambda x: x, fields=["teacher"])
    metrics.add("rl/clamped", 3)
    metrics.add("fields/teacher/missing", 1)
    yield from ((name, "train") for name in metrics.reduced())
    yield from ((name, "check") for name in Report(2, repeated=1).metrics())
    record = records("test", [upge.Trajectory(upge.Problem("p", "?", "a"), (0,), (1,), "a", 1.0, False)])[0]
    record.answers = ["a"]
    yield from ((f"test/{score}", "eval") for score in columns([record], [1]))


@pytest.fixture(scope="module")
def names(tmp_path_factory: pytest.TempPathFactory) -> set[tuple[str, Phase]]:
    """Every name with its phase."""
    found = set(logged_in_rare_cases())
    steps = {"steps": 2, "minibatches": 2}
    cases: tuple[dict[str, Any], ...] = (
        # A learning rate too small for float32 changes no weight.
        {"train": steps, "rollout": {"refill": {"rounds": 1}}, "optimizer": {"lr": 1e-12}},
        {"train": steps, **ACTOR_CRITIC},
    )
    for number, blocks in enumerate(cases):
        folder = tmp_path_factory.mktemp(f"names{number}")
        critic = blocks.pop("critic", None)
        file = tiny.recipe(folder, **blocks)
        if critic is not None:
            file.write_text(json.dumps(json.loads(file.read_text()) | {"critic": critic}))
        found |= set(logged(train(upge.load(file))))
    return found


def test_every_logged_name_has_a_row(names: set[tuple[str, Phase]]) -> None:
    assert sorted((name, phase) for name, phase in names if lookup(name, phase) is None) == []


def test_every_row_is_logged(names: set[tuple[str, Phase]]) -> None:
    rows = {row.metric.name for name, phase in names if (row := lookup(name, phase)) is not None}
    assert sorted({metric.name for metric in METRICS} - rows) == []


def test_every_row_says_what_it_is() -> None:
    assert len({(metric.name, metric.phase) for metric in METRICS}) == len(METRICS)
    for metric in METRICS:
        assert metric.unit, metric.name
        assert metric.meaning[-1:].isalnum() or metric.meaning.endswith((")", "`")), metric.name
        assert (metric.subject in SUBJECTS) == (metric.phase == "train"), metric.name


@pytest.mark.parametrize(
    ("name", "phase", "row", "values"),
    [
        ("rl/nll", "train", "<term>/nll", {"term": "rl"}),
        ("share/rl", "train", "share/<term>", {"term": "rl"}),
        ("sums/test/hard/pass@16", "eval", "<place>/pass@<k>", {"place": "sums/test/hard", "k": "16"}),
        ("data/overlap/sums/test", "check", "data/overlap/<split>", {"split": "sums/test"}),
    ],
)
def test_a_row_is_found_by_its_pattern(name: str, phase: Phase, row: str, values: dict[str, str]) -> None:
    found = lookup(name, phase)
    assert isinstance(found, LoggedName)
    assert (found.metric.name, found.values) == (row, values)


def test_the_terms_tell_a_share_from_a_term_that_is_called_so() -> None:
    rows = [lookup("share/masked", "train", terms=(term,)) for term in ("share", "masked")]
    assert [row and row.metric.name for row in rows] == ["<term>/masked", "share/<term>"]


def test_a_name_of_another_phase_or_of_none_has_no_row() -> None:
    assert lookup("test/avg@4", "train") is None
    assert lookup("reward", "eval") is None
    assert lookup("rl/unheard", "train") is None


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
