"""DAPO's dynamic sampling, the half that is an estimator's."""

from __future__ import annotations

from torch import Tensor

from upge import Switch, View
from upge_parts.groups import RewardName, members, spread
from upge_parts.switches.naming import Terms


class Informative(Switch):
    """Keeps the prompts whose rollouts have different rewards.

        s_keep(q) = 1 where the prompt's rollouts do not all have the same unshaped reward, else 0

    With `rollout.refill` fresh prompts replace those without weight in any term.
    Only known rewards are compared.
    Shapes: R (N,) → (G,) per term, dimensionless. Source: DAPO, arXiv 2503.14476, eq. 11.
    """

    scope = "group"

    keep: Terms
    """The term, or terms, that weigh only informative prompts."""
    of: RewardName = "reward"
    """The field that holds the rewards."""

    def terms(self) -> tuple[str, ...]:
        return self.keep

    def __call__(self, b: View) -> dict[str, Tensor]:
        reward = b.field(self.of)
        informative = (spread(b, reward, members(b, "rollouts", reward)) > 0).to(b.dtype)
        return dict.fromkeys(self.keep, informative)
