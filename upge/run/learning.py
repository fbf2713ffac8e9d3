"""From trajectories to a changed policy: credit, then for every optimizer step count, weigh, backward, step.

Counts are taken over all micro-batches and ranks before the first backward pass, so neither packing nor the number of
processes changes the gradient. Nothing here assumes one process: all ranks run the same number of micro-batches, an
idle one on a dummy of weight 0, and the mean that data parallelism takes over ranks is undone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from upge.asking import State
from upge.batch import Batch
from upge.estimator import Credit
from upge.flow import Trajectory
from upge.policy import Policy
from upge.recipe import Recipe
from upge.run.packing import Grouped, micro_batches, portions, rollout_batch
from upge.run.tally import Tally
from upge.schedule import at

SCOPES = ("token", "trajectory", "group", "step")


class Learner:
    """Holds the optimizer and the estimator's state; `learn` makes one rollout batch's optimizer steps."""

    def __init__(self, recipe: Recipe, policy: Policy, accelerator: Accelerator) -> None:
        self.recipe, self.policy, self.accelerator = recipe, policy, accelerator
        settings = recipe.optimizer
        optimizer = torch.optim.AdamW(
            [parameter for parameter in policy.model.parameters() if parameter.requires_grad],
            lr=at(settings.lr, 0),
            betas=settings.betas,
            eps=settings.epsilon,
            weight_decay=settings.weight_decay,
        )
        self.forward, self.optimizer = accelerator.prepare(policy.model, optimizer)
        self.forward.eval()
        self.state: State = recipe.estimator.initial()
        self.needs = recipe.estimator.needs()
        self.updates = 0

    def learn(self, step: int, grouped: Grouped) -> dict[str, float]:
        """Make the optimizer steps of one rollout batch; returns its metrics, summed over ranks."""
        recipe, estimator = self.recipe, self.recipe.estimator
        tally = Tally(estimator.terms, self.sum, entropy="entropy" in self.needs)
        batch = rollout_batch(
            grouped, self.accelerator.device, self.policy.model.dtype, rollout_logp="rollout_logp" in self.needs
        )
        credit = estimator.credit(batch, step, state=self.state, reduce=self.sum)
        self.state = credit.state
        tally.credit(batch, credit)
        batch, credit, grouped = self._without_masked(batch, credit, grouped)
        several = recipe.train.minibatches * recipe.train.epochs > 1
        if several and "old_logp" in self.needs:
            batch = replace(batch, old_logp=self._old_logp(step, batch, credit, grouped))
        for update, rows in enumerate(self._updates(batch)):
            self._update(step, batch.select(rows), credit.select(batch, rows), _picked(grouped, rows), update, tally)
        return tally.metrics() | {"lr": self._rate(step)}

    def sum(self, x: Tensor) -> Tensor:
        """The sum of a tensor over all ranks."""
        return x if self.accelerator.num_processes == 1 else self.accelerator.reduce(x, "sum")

    def _without_masked(self, batch: Batch, credit: Credit, grouped: Grouped) -> tuple[Batch, Credit, Grouped]:
        """Without truncated rollouts where the recipe masks them: their group has seen them, the counts will not."""
        if self.recipe.rollout.truncated != "mask" or batch.truncated is None:
            return batch, credit, grouped
        kept = ~batch.truncated
        return batch.select(kept), credit.select(batch, kept), _picked(grouped, kept)

    def _updates(self, batch: Batch) -> Iterator[Tensor]:
        """The rows of each optimizer step."""
        for _ in range(self.recipe.train.epochs):
            yield from portions(batch.group, self.recipe.train.minibatches)

    def _update(self, step: int, batch: Batch, credit: Credit, grouped: Grouped, update: int, tally: Tally) -> None:
        """One optimizer step: count over all of it, drop what cannot matter, weigh and backward piece by piece."""
        credit = self.recipe.estimator.count(batch, credit, reduce=self.sum)
        alive = credit.matter(batch)
        batch, credit, grouped = batch.select(alive), credit.select(batch, alive), _picked(grouped, alive)
        tally.add("rows/alive", float(alive.sum()))
        pieces = micro_batches(grouped, self.recipe.train.micro_batch_tokens, scope=self._scope())
        rounds = self._most(len(pieces))
        if rounds == 0:
            tally.add("updates/without_signal", 1 / self.accelerator.num_processes)
            return
        for index in range(rounds):
            rows = pieces[index] if index < len(pieces) else None
            with self._unsynchronised() if index < rounds - 1 else nullcontext():
                loss = self._dummy() if rows is None else self._piece(step, batch, credit, grouped, rows, update, tally)
                self.accelerator.backward(loss * self.accelerator.num_processes)
        self._step(step, tally)

    def _piece(
        self, step: int, batch: Batch, credit: Credit, grouped: Grouped, rows: list[int], update: int, tally: Tally
    ) -> Tensor:
        """The loss of one micro-batch."""
        picked = torch.zeros(batch.size, dtype=torch.bool, device=batch.reward.device)
        picked[rows] = True
        micro, own = batch.select(picked), credit.select(batch, picked)
        logp, entropy = self._log_probs(step, [grouped[row][1] for row in sorted(rows)])
        micro = replace(micro, logp=logp, entropy=entropy)
        weighed = self.recipe.estimator.weigh(micro, own, stale=update > 0)
        tally.weighed(micro, weighed)
        return weighed.loss

    def _log_probs(self, step: int, trajectories: Sequence[Trajectory]) -> tuple[Tensor, Tensor | None]:
        """log π and, where a part reads them, entropies: of rollouts at the sampling temperature, else at 1."""
        hot = at(self.recipe.rollout.temperature, step)
        temperature = torch.tensor([1.0 if each.demonstration else hot for each in trajectories])
        sequences = [(each.prompt, each.response) for each in trajectories]
        return self.policy.log_probs(sequences, temperature, entropy="entropy" in self.needs, forward=self.forward)

    @torch.no_grad()
    def _old_logp(self, step: int, batch: Batch, credit: Credit, grouped: Grouped) -> Tensor:
        """(T,) log π at the start of the rollout batch, for every trajectory that can matter; 0 for the others."""
        old = torch.zeros(batch.trajectory.shape, dtype=batch.dtype, device=batch.reward.device)
        alive = credit.matter(batch).nonzero()[:, 0].tolist()
        pieces = micro_batches([grouped[row] for row in alive], self.recipe.train.micro_batch_tokens)
        for piece in pieces:
            rows = sorted(alive[index] for index in piece)
            tokens = torch.isin(batch.trajectory, torch.tensor(rows, device=old.device))
            sequences = [grouped[row][1] for row in rows]
            old[tokens] = self._unwrapped_log_probs(step, sequences).to(old)
        return old

    def _unwrapped_log_probs(self, step: int, trajectories: Sequence[Trajectory]) -> Tensor:
        """As `_log_probs`, on a number of micro-batches that may differ between ranks."""
        forward, self.forward = self.forward, self.policy.model
        try:
            return self._log_probs(step, trajectories)[0]
        finally:
            self.forward = forward

    def _dummy(self) -> Tensor:
        """A loss of 0 that still goes through every parameter, so that ranks stay in step."""
        token = self.policy.pad_id
        logp, _ = self.policy.log_probs([((token,), (token,))], torch.ones(1), forward=self.forward)
        return logp.sum() * 0

    def _step(self, step: int, tally: Tally) -> None:
        """Clip, then step, unless the gradient is not finite or its norm is above the recipe's limit."""
        settings, share = self.recipe.optimizer, 1 / self.accelerator.num_processes
        bound = math.inf if settings.clip_norm is None else settings.clip_norm
        norm = float(self.accelerator.clip_grad_norm_(self.policy.model.parameters(), bound))
        if not math.isfinite(norm):
            tally.add("updates/not_finite", share)
            if self.accelerator.scaler is not None:
                self.optimizer.step()  # float16's loss scaler makes no step either, but must learn to scale less
        elif settings.skip_above is not None and norm > settings.skip_above:
            tally.add("updates/skipped", share)
        else:
            for group in self.optimizer.param_groups:
                group["lr"] = self._rate(step)
            self.optimizer.step()
            self.updates += 1
            tally.add("updates/made", share)
            tally.mean("grad_norm", norm * share, share)
        self.optimizer.zero_grad()

    def _rate(self, step: int) -> float:
        settings = self.recipe.optimizer
        return at(settings.lr, step) * min(1.0, (step + 1) / (settings.warmup + 1))

    def _scope(self) -> str:
        """The widest scope of the parts that are computed every micro-batch."""
        parts = [
            part
            for term in self.recipe.estimator.terms.values()
            for part in (term.denominator, *term.mask, *([term.advantage] if term.live else []))
        ]
        return max((part.scope for part in parts), key=SCOPES.index)

    def _most(self, count: int) -> int:
        """The largest of the ranks' counts."""
        if self.accelerator.num_processes == 1:
            return count
        counts: Tensor = self.accelerator.gather(torch.tensor([count], device=self.accelerator.device))
        return int(counts.max())

    def _unsynchronised(self) -> Any:
        no_sync: Callable[[Any], Any] = self.accelerator.no_sync
        return no_sync(self.forward)


def _picked(grouped: Grouped, rows: Tensor) -> Grouped:
    return [pair for pair, keep in zip(grouped, rows.tolist(), strict=True) if keep]
