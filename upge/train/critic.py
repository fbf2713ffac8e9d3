"""The critic in a run: it fills a batch's `value` and learns from the returns that the advantage leaves behind."""

from __future__ import annotations

from collections.abc import Callable

import torch
from accelerate import Accelerator
from torch import Tensor

from upge.estimator.batch import Batch
from upge.estimator.credit import Credit
from upge.model.critic import Critic
from upge.recipe.schema import Critic as Settings
from upge.rollouts.batching import micro_batches
from upge.rollouts.rollout_batch import RolloutBatch
from upge.train.metrics import StepMetrics
from upge.train.optimizer import Optimization


class CriticLearner:
    """A critic with its optimizer."""

    def __init__(self, settings: Settings, critic: Critic, accelerator: Accelerator, *, patience: int = 0) -> None:
        self.settings, self.critic = settings, critic
        self.optimization = Optimization(critic.model, settings, accelerator, name="critic/", patience=patience)

    def values(self, rollouts: RolloutBatch) -> Tensor:
        """(T,) V before each response token."""
        return self.critic.values(rollouts.sequences)

    def learn(
        self,
        step: int,
        rollouts: RolloutBatch,
        tally: StepMetrics,
        budget: int,
        reduce: Callable[[Tensor], Tensor],
    ) -> None:
        """One optimizer step towards the returns of a portion of the rollout batch; the mean is over all its tokens."""
        rows, returns = taught(rollouts.batch, rollouts.settled)
        tokens = float(reduce(rollouts.batch.length[rows].sum().to(rollouts.batch.dtype)))
        returns = returns[rows[rollouts.batch.trajectory]]
        rollouts = rollouts.select(rows)
        pieces = micro_batches(rollouts.trajectories, budget)

        def loss(piece: list[int]) -> Tensor:
            own = rollouts.rows(piece)
            micro, target = rollouts.select(own), returns[own[rollouts.batch.trajectory]]
            old = _given(micro.batch.value)
            value = self.critic.values(micro.sequences, forward=self.optimization.forward).to(target)
            error = regression(value, old, target, self.settings.clip)
            tally.mean("critic/loss", float(error.detach().sum()), error.numel())
            tally.mean("critic/value", float(old.sum()), old.numel())
            tally.mean("critic/return", float(target.sum()), target.numel())
            return error.sum() / tokens

        if self.optimization.backward(pieces, loss, self._idle):
            self.optimization.step(step, tally)

    def _idle(self) -> Tensor:
        token = self.critic.pad_id
        return self.critic.values([((token,), (token,))], forward=self.optimization.forward).sum() * 0


def regression(value: Tensor, old: Tensor, target: Tensor, clip: float) -> Tensor:
    """(T,) ½·max((V − R)², (clamp(V, V_old ± clip) − R)²): a value that has moved by `clip` is pulled no further."""
    clamped = old + (value - old).clamp(-clip, clip)
    return torch.maximum((value - target) ** 2, (clamped - target) ** 2) / 2


def taught(batch: Batch, credit: Credit) -> tuple[Tensor, Tensor]:
    """(N,) bool: the trajectories of terms that teach the critic, and (T,) the returns they teach."""
    rows = torch.zeros(batch.size, dtype=torch.bool, device=batch.reward.device)
    returns = torch.zeros(batch.trajectory.shape, dtype=batch.dtype, device=batch.reward.device)
    for term in credit.terms.values():
        if term.returns is not None:
            rows = rows | term.rows
            returns = torch.where(term.rows[batch.trajectory], term.returns.to(returns), returns)
    return rows, returns


def _given(value: Tensor | None) -> Tensor:
    assert value is not None, "a critic learns on batches that have its values"
    return value
