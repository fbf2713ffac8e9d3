"""DPO on a prompt's own rollouts."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

import upge


def pair(b: upge.View) -> tuple[Tensor, Tensor]:
    """(N,) bool twice: each prompt's best and worst rollout; none where all score alike, for then they are one."""
    best, worst = (b.rank(x.where(b.rollout, -torch.inf)) == 0 for x in (b.reward, -b.reward))
    return best & ~worst & b.rollout, worst & ~best & b.rollout


class Extremes(upge.Selection):
    """The best and the worst rollout of each prompt whose rollouts don't score alike.

        select_i = [R_i is the prompt's largest, or its smallest]

    Of those that score alike one is selected, by its key. Shapes: reward (N,) → (N,) bool. Source: arXiv 2402.04792.
    """

    needs = frozenset({"reward"})
    scope = "group"

    def __call__(self, b: upge.View) -> Tensor:
        best, worst = pair(b)
        return best | worst


class Dpo(upge.Advantage):
    """The gradient of log σ(beta · (h(best) − h(worst))), h(o) = Σ_t log(π_θ/π_0)_t, over the denominator `current`.

        Â_t = ± beta · σ(−beta · (h(best) − h(worst)))   for the best (+) and the worst (−) rollout, 0 for all others

    Shapes: logp, reference_logp (T,), nats, reward (N,) → (T,), dimensionless. Source: DPO, arXiv 2305.18290, eq. 7.
    """

    needs = frozenset({"logp", "reference_logp", "reward"})
    scope = "group"

    beta: float = Field(gt=0)
    """β, per nat."""

    def __call__(self, b: upge.View) -> Tensor:
        best, worst = pair(b)
        side = best.to(b.dtype) - worst.to(b.dtype)
        margin = b.per_prompt(side * b.per_trajectory(b.logp - b.reference_logp))
        return b.to_tokens(side * self.beta * torch.sigmoid(-self.beta * b.to_trajectories(margin)))
