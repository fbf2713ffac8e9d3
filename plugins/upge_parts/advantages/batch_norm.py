"""REINFORCE++'s advantage."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from upge import Advantage, View
from upge_parts.advantages.whitening import whitened
from upge_parts.groups import RewardName, deviation, members


class BatchNorm(Advantage):
    """The reward plus the shaping to go, in standard deviations from the mean of the whole rollout batch.

        none:        A_t = S + Σ_{i ≥ t} shaping_i
        group_mean:  A_t = S − mean_group(S) + Σ_{i ≥ t} shaping_i
        Â_t = (A_t − mean(A)) / √(var(A) + epsilon)

    S is the score without shaping; mean and variance are over all tokens of the term, on all ranks. With the shaping
    `kl_in_reward` this is the KL-to-go. (The paper prints std + epsilon; this is verl's code.) Rewards `of` another
    field have no shaping.
    Shapes: R (N,), shaping (T,) → (T,), dimensionless. Source: REINFORCE++, arXiv 2501.03262.
    """

    scope = "step"

    baseline: Literal["none", "group_mean"] = "none"
    """Whether the mean score of the prompt's rollouts is subtracted before whitening."""
    unbiased: bool = True
    """Divide the squared deviations by n − 1, not by n."""
    epsilon: float = Field(default=1e-8, ge=0)
    """Added to the variance, in squared units of the reward."""
    of: RewardName = "reward"
    """The field that holds the rewards."""

    def __call__(self, b: View) -> Tensor:
        shaping = b.shaping if self.of == "reward" else torch.zeros_like(b.shaping)
        score = b.field(self.of) - b.per_trajectory(shaping)
        if self.baseline == "group_mean":
            score = deviation(b, score, members(b, "rollouts", score))
        to_go = b.to_tokens(score) + b.to_go(shaping)
        return whitened(b, to_go, unbiased=self.unbiased, epsilon=self.epsilon)
