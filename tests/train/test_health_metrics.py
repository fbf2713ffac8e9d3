"""What health checks read of a rollout batch: loops, entropy, divergence and signal, against sums by hand."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support import tiny

import upge
from upge.train import metrics
from upge.train.metrics import StepMetrics
from upge.types import Problem, Trajectory


def rollout(tokens: Sequence[int], *, truncated: bool = True, logp: Sequence[float] | None = None) -> Trajectory:
    said = tuple(logp) if logp is not None else None
    return Trajectory(Problem("p", "", ""), (1,), tuple(tokens), "", 0.0, False, truncated, rollout_logp=said)


def tally() -> StepMetrics:
    return StepMetrics(["rl"], lambda x: x)


@pytest.mark.parametrize(
    ("text", "loops"),
    [
        *((text, True) for text in ("ababab", "xyzababab", "aaaaaa", "abcabcabc", "0abcdabcdabcd")),
        *((text, False) for text in ("", "abab", "abababc", "aaaaa", "abcabxabc")),
    ],
)
def test_a_loop_is_a_phrase_of_two_tokens_said_three_times_at_the_end(text: str, loops: bool) -> None:
    tokens = [ord(letter) for letter in text]
    assert metrics.loops(rollout(tokens)) is loops
    assert metrics.loops(rollout([*tokens, 0], truncated=False)) is loops


@given(
    head=st.lists(st.integers(0, 3), max_size=6),
    phrase=st.lists(st.integers(0, 3), min_size=2, max_size=5),
    k=st.integers(3, 5),
)
def test_any_phrase_said_often_enough_is_one(head: list[int], phrase: list[int], k: int) -> None:
    assert metrics.loops(rollout(head + phrase * k))
    assert not metrics.loops(rollout([*head, *phrase * k, 9]))


def test_entropy_and_loops_are_of_rollouts_alone() -> None:
    counted = tally()
    shown = Trajectory(Problem("p", "", ""), (1,), (2, 3) * 3, "", 1.0, demonstration=True)
    drawn = [rollout((2, 3) * 3, logp=[-1.0] * 6), rollout([4, 5], logp=[-0.5, -0.5]), rollout([4])]
    metrics.of_rollouts(counted, [*drawn, shown])
    found = counted.reduced()
    assert found["repetition"] == 1 / 3
    assert found["sampled_entropy"] == 7 / 8


@given(entropy=st.floats(1e-6, 10))
def test_the_sampled_entropy_has_the_digits_that_an_estimate_has(entropy: float) -> None:
    counted = tally()
    metrics.of_rollouts(counted, [rollout([2], logp=[-entropy])])
    found = counted.reduced()["sampled_entropy"]
    assert found == pytest.approx(entropy, rel=5.1e-4)
    assert found == float(f"{found:.4g}")


@given(
    counts=st.lists(st.integers(1, 5), min_size=2, max_size=5),
    weights=st.lists(st.floats(0.1, 1), min_size=5, max_size=5),
)
def test_divergences_are_exact_where_every_token_is_seen_as_often_as_it_is_likely(
    counts: list[int], weights: list[float]
) -> None:
    drawn = torch.tensor(counts, dtype=torch.float64)
    p, q = drawn / drawn.sum(), torch.tensor(weights[: len(counts)], dtype=torch.float64)
    q = q / q.sum()
    exact = float((p * (p / q).log()).sum())
    token = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    rows = {"trajectory": torch.zeros_like(token), "group": torch.zeros(1, dtype=torch.long), "reward": torch.zeros(1)}
    same = {"demonstration": torch.zeros(1, dtype=torch.bool)}
    for name, logp, other in (("kl_old", q, {"old_logp": p}), ("kl_reference", p, {"reference_logp": q})):
        counted = tally()
        fields = {field: x.log()[token] for field, x in other.items()}
        metrics.of_micro_batch(counted, upge.Batch(logp=logp.log()[token], **rows, **same, **fields))
        assert counted.reduced()[name] == pytest.approx(exact, rel=1e-9, abs=1e-12)


def test_demonstrations_have_no_divergence() -> None:
    zero = torch.zeros(2)
    shown = {"demonstration": torch.ones(1, dtype=torch.bool), "reward": torch.ones(1)}
    rows = {"trajectory": torch.zeros(2, dtype=torch.long), "group": torch.zeros(1, dtype=torch.long)}
    counted = tally()
    metrics.of_micro_batch(counted, upge.Batch(logp=zero, old_logp=zero - 1, **rows, **shown))
    assert "kl_old" not in counted.reduced()


@pytest.mark.parametrize(("rewards", "share"), [("0000", 0.0), ("1111", 0.0), ("0111", 0.5), ("0110", 1.0)])
def test_signal_is_the_share_of_prompts_whose_rollouts_differ(tmp_path: Path, rewards: str, share: float) -> None:
    grouped = {"use": "kl", "estimator": "k3", "coefficient": 0.04}
    kl = {"source": "rollouts", "denominator": "current", "advantage": grouped, "reduction": "token_mean"}
    estimator = {"terms": {"rl": tiny.HYBRID["terms"]["rl"], "kl": kl}}
    recipe = upge.load(tiny.recipe(tmp_path, estimator=estimator))
    rows = {"trajectory": torch.arange(4), "group": torch.tensor([7, 7, 9, 9])}
    reward = torch.tensor([float(each) for each in rewards], dtype=torch.float64)
    batch = upge.Batch(logp=None, reward=reward, demonstration=torch.zeros(4, dtype=torch.bool), **rows)
    credit, counted = recipe.estimator.credit(batch), tally()
    metrics.of_credit(counted, batch, credit, ["rl", "kl"])
    assert counted.reduced()["signal"] == share
