"""PPO's advantage."""

from __future__ import annotations

from pydantic import Field
from torch import Tensor

from upge import Advantage, View
from upge_parts.advantages.whitening import whitened


class Gae(Advantage):
    """Generalized advantage estimation: the return of a token minus the critic's value before it.

        δ_t = r_t + γ·V_{t+1} − V_t        Â_t = Σ_{l ≥ 0} (γ·λ)^l · δ_{t+l}
        with r_t the shaping, at the last token the score as well, and V 0 after that
        whiten:  then Â_t ← (Â_t − mean(Â)) / √(var(Â) + 1e-08)

    V_t is the critic's value of the state before token t. The critic learns the
    returns Â_t + V_t, computed before whitening.
    Shapes: reward (N,), shaping, value (T,) → (T,), in units of the reward, or dimensionless where whitened.
    Source: GAE, arXiv 1506.02438, eq. 16; PPO, arXiv 1707.06347, eq. 11.
    """

    needs = frozenset({"reward", "value"})
    scope = "step"

    gamma: float = Field(default=1.0, ge=0, le=1)
    """γ, the discount of a token's reward by the tokens before it."""
    lambda_: float = Field(default=1.0, ge=0, le=1, alias="lambda")
    """λ: 1 trusts the rewards (no bias), 0 the critic (little variance)."""
    whiten: bool = False
    """(Â − mean)/√(var + 1e-8) over all tokens of the term's rollout batch."""

    def __call__(self, b: View) -> Tensor:
        return whitened(b, self._advantage(b)) if self.whiten else self._advantage(b)

    def returns(self, b: View) -> Tensor:
        return self._advantage(b) + b.value

    def _advantage(self, b: View) -> Tensor:
        score = b.reward - b.per_trajectory(b.shaping)
        reward = b.shaping + b.at_last(score)
        delta = reward + self.gamma * b.following(b.value) - b.value
        return b.to_go(delta, self.gamma * self.lambda_)
