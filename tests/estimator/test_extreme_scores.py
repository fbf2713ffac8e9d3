"""Scores at the ends of what is allowed, 1e30 and 1e-30, give the advantages that the formulas give."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from upge import View
from upge.estimator.batch import Batch
from upge.testing.batches import seeded
from upge_parts.advantages.batch_norm import BatchNorm
from upge_parts.advantages.group_mean import GroupMean
from upge_parts.advantages.group_norm import GroupNorm
from upge_parts.advantages.leave_one_out import LeaveOneOut
from upge_parts.advantages.whitening import whitened
from upge_parts.groups import deviation, members

SHAPES = ([1.0, 0.0, 0.0, 1.0], [1.0, -1.0, 0.5, 0.0], [0.25, 0.25, 1.0, 0.0])
SIZES = (1e30, 1e15, 1.0, 1e-15, 1e-30)


def view(scores: Sequence[float], demonstration: float | None = None) -> View:
    """One prompt's rollouts, a token each, in float32; and a demonstration."""
    reward = torch.tensor([*scores, *([] if demonstration is None else [demonstration])])
    shown = torch.arange(len(reward)) >= len(scores)
    tokens = torch.arange(len(reward))
    batch = Batch(logp=None, trajectory=tokens, group=torch.zeros_like(tokens), demonstration=shown, reward=reward)
    return View(batch, frozenset({"reward"}), rows=~shown, known={"shaping": torch.zeros_like(reward)})


def exact(scores: Sequence[float]) -> tuple[Tensor, Tensor]:
    """Deviations and standard deviation, in numbers that hold the squares."""
    x = torch.tensor(scores, dtype=torch.float64)
    return x - x.mean(), x.std()


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("epsilon", [0.0, 1e-6])
def test_standard_deviations_are_those_of_the_scores(shape: list[float], size: float, epsilon: float) -> None:
    scores = [size * each for each in shape]
    centred, std = exact(scores)
    normed = GroupNorm(epsilon=epsilon)(view(scores)).double()
    torch.testing.assert_close(normed, centred / (std + epsilon), rtol=1e-5, atol=0.0)
    white = BatchNorm(epsilon=epsilon)(view(scores)).double()
    torch.testing.assert_close(white, centred / (std**2 + epsilon).sqrt(), rtol=1e-5, atol=0.0)
    torch.testing.assert_close(GroupMean()(view(scores)).double(), centred, rtol=1e-5, atol=0.0)
    torch.testing.assert_close(LeaveOneOut()(view(scores)).double(), centred * 4 / 3, rtol=1e-5, atol=0.0)


def test_one_large_score_among_small_ones_is_the_only_outlier() -> None:
    normed = GroupNorm()(view([1e30, 1.0, 0.5, 0.0]))
    torch.testing.assert_close(normed, torch.tensor([1.5, -0.5, -0.5, -0.5]))


@pytest.mark.parametrize("advantage", [GroupNorm(), BatchNorm()])
def test_a_demonstration_of_any_score_leaves_the_rollouts_advantages_alone(advantage: GroupNorm | BatchNorm) -> None:
    alone, beside = advantage(view([1.0, 0.0, 0.0, 1.0])), advantage(view([1.0, 0.0, 0.0, 1.0], demonstration=1e30))
    assert torch.equal(beside[:4], alone)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_scores_of_usual_sizes_keep_every_bit_of_the_plain_formulas(dtype: torch.dtype) -> None:
    for case in seeded(60):
        batch = case.batch
        reward = (0.37 * batch.reward).to(dtype)
        b = View(Batch(None, batch.trajectory, batch.group, batch.demonstration, reward), frozenset({"reward"}))
        for over in ("rollouts", "all"):
            group = members(b, over, batch.reward)
            centred = deviation(b, b.reward, group)
            freedom = (b.per_prompt(group) - 1).clamp(min=1)
            std = b.to_trajectories((b.per_prompt(centred**2 * group) / freedom).sqrt())
            plain = b.to_tokens(torch.where(std == 0, 0.0, centred / (std + 1e-6)))
            assert torch.equal(GroupNorm(over=over)(b), plain)
        x = b.to_tokens(b.reward)
        centred = x - b.total(x.sum()) / max(1, x.numel())
        variance = b.total((centred**2).sum()) / max(1, x.numel() - 1)
        alike = variance.sqrt() <= 64 * torch.finfo(dtype).eps * (b.total(x.sum()) / max(1, x.numel())).abs()
        assert torch.equal(whitened(b, x), torch.where(alike, 0.0, centred / (variance + 1e-8).sqrt()))
