"""From trajectories to a changed policy: credit, then for every optimizer step count, weigh, backward, step.

Counts are taken over all micro-batches and ranks before the first backward pass, so neither packing nor the number of
processes changes the gradient. Nothing here assumes one process: all ranks run the same number of micro-batches, an
idle one on a dummy of weight 0, and the mean that data parallelism takes over ranks is undone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import groupby

import torch
from accelerate import Accelerator
from torch import Tensor

from upge.distributed.ranks import Ranks
from upge.estimator.batch import Batch
from upge.estimator.credit import Credit
from upge.estimator.part_calls import State
from upge.model import Policy, Reference
from upge.recipe import Recipe
from upge.rollouts.batching import Grouped, balanced, micro_batches, portions, rollout_batch, tokens_of
from upge.schedule import at
from upge.train import metrics
from upge.train.critic import CriticLearner
from upge.train.metrics import StepMetrics
from upge.train.optimizer import Optimization
from upge.train.token_log import TokenLog
from upge.types import Problem, Trajectory


class Learner:
    """Holds the optimizer and the estimator's state; `learn` makes one rollout batch's optimizer steps.

    Attributes:
        reference, critic: providers of `reference_logp` and `value`, None where no part reads these.
        ledger: keeps what a few trajectories were weighed with; None where that isn't kept.
    """

    def __init__(
        self,
        recipe: Recipe,
        policy: Policy,
        accelerator: Accelerator,
        *,
        reference: Reference | None = None,
        critic: CriticLearner | None = None,
    ) -> None:
        self.recipe, self.policy, self.accelerator = recipe, policy, accelerator
        self.reference, self.critic = reference, critic
        self.optimization = Optimization(
            policy.model, recipe.optimizer, accelerator, patience=recipe.train.not_finite_limit
        )
        self.state: State = recipe.estimator.initial()
        self.needs = recipe.estimator.needs()
        terms = recipe.estimator.terms.items()
        self.token_log: TokenLog | None = None
        self._pushing = [name for name, term in terms if term.direction == "likelihood"]

    def learn(self, step: int, grouped: Grouped) -> dict[str, float]:
        """Make the optimizer steps of one rollout batch; returns its metrics, summed over ranks."""
        estimator = self.recipe.estimator
        tally = StepMetrics(estimator.terms, self.sum, entropy="entropy" in self.needs, critic=self.critic is not None)
        grouped = self._balanced(step, grouped)
        batch = self._batch(grouped)
        batch = self._with_fields_for_credit(step, batch, grouped)
        credit = estimator.credit(batch, step, state=self.state, reduce=self.sum)
        self.state = credit.state
        tally.credit(batch, credit)
        if self.token_log is not None:
            self.token_log.begin(batch, credit, grouped)
        metrics.of_rollouts(tally, grouped)
        metrics.of_credit(tally, batch, credit, self._pushing)
        batch, credit, grouped = self._without_masked(batch, credit, grouped)
        batch = self._with_fields_for_updates(step, batch, credit, grouped)
        for update, rows in enumerate(self._updates(batch)):
            self._update(step, batch.select(rows), credit.select(batch, rows), _picked(grouped, rows), update, tally)
        return tally.metrics() | {"lr": self.optimization.rate(step)}

    def sum(self, x: Tensor) -> Tensor:
        """The sum of a tensor over all ranks."""
        if self.accelerator.num_processes == 1:
            return x
        total: Tensor = self.accelerator.reduce(x.to(self.accelerator.device), "sum")
        return total.to(x.device)

    def optimizations(self) -> dict[str, Optimization]:
        """Every model in training by its folder in a checkpoint."""
        critic = {} if self.critic is None else {"critic": self.critic.optimization}
        return {"model": self.optimization, **critic}

    # Who holds what.

    def _balanced(self, step: int, grouped: Grouped) -> Grouped:
        """The rollout batch, dealt among ranks so that each has about as much to compute."""
        team = Ranks(self.accelerator)
        if team.world == 1:
            return grouped
        batch = self._batch(grouped)
        rows = torch.ones_like(batch.demonstration)
        if self.critic is None and not self.recipe.estimator.needs_for_credit() & {"old_logp", "reference_logp"}:
            # No model is asked about trajectories that can't matter, and which these are can be told already.
            credit = self.recipe.estimator.credit(batch, step, state=self.state, reduce=self.sum)
            rows = self.recipe.estimator.alive(batch, credit)
            if self.recipe.rollout.truncated == "mask" and batch.truncated is not None:
                rows &= ~batch.truncated
        costs = {group: 0 for group, _ in grouped}
        for group, pairs in groupby(_picked(grouped, rows), key=lambda pair: pair[0]):
            costs[group] = tokens_of(list(pairs), self.policy.reach)
        return balanced(team, grouped, costs, self.recipe.train.minibatches)

    def _batch(self, grouped: Grouped) -> Batch:
        kind, reported = self.policy.model.dtype, "rollout_logp" in self.needs
        return rollout_batch(grouped, self.accelerator.device, kind, rollout_logp=reported)

    # What other models say of the trajectories.

    def _with_fields_for_credit(self, step: int, batch: Batch, grouped: Grouped) -> Batch:
        """With what switches, shapings and settled advantages read of models, for every trajectory."""
        early, rows = self.recipe.estimator.needs_for_credit(), torch.ones_like(batch.demonstration)
        if self.critic is not None:
            batch = replace(batch, value=self._asked(batch, grouped, rows, self.critic.values))
        if "old_logp" in early:
            batch = replace(batch, old_logp=self._asked(batch, grouped, rows, self._policy_of(step)))
        if "reference_logp" in early:
            batch = replace(batch, reference_logp=self._asked(batch, grouped, rows, self._reference_of(step)))
        return batch

    def _with_fields_for_updates(self, step: int, batch: Batch, credit: Credit, grouped: Grouped) -> Batch:
        """With what is read beside π_θ, for the trajectories that can matter; π_old only if π_θ will move away."""
        several = self.recipe.train.minibatches * self.recipe.train.epochs > 1
        rows = self.recipe.estimator.alive(batch, credit)
        if not several:
            batch = replace(batch, old_logp=None)
        elif "old_logp" in self.needs and batch.old_logp is None:
            batch = replace(batch, old_logp=self._asked(batch, grouped, rows, self._policy_of(step)))
        if "reference_logp" in self.needs and batch.reference_logp is None:
            batch = replace(batch, reference_logp=self._asked(batch, grouped, rows, self._reference_of(step)))
        return batch

    @torch.no_grad()
    def _asked(
        self, batch: Batch, grouped: Grouped, rows: Tensor, model: Callable[[Sequence[Trajectory]], Tensor]
    ) -> Tensor:
        """(T,) what a model says of the trajectories that `rows` marks, micro-batch by micro-batch; else 0."""
        answers = torch.zeros(batch.trajectory.shape, dtype=batch.dtype, device=batch.reward.device)
        chosen = rows.nonzero()[:, 0].tolist()
        pieces = self._packed([grouped[row] for row in chosen])
        # Each pass through a model that is divided over ranks takes all of them.
        idle = self.optimization.most(len(pieces)) - len(pieces) if self.optimization.sharded else 0
        for piece in pieces:
            own = sorted(chosen[index] for index in piece)
            tokens = torch.isin(batch.trajectory, torch.tensor(own, device=answers.device))
            answers[tokens] = model([grouped[row][1] for row in own]).to(answers)
        for _ in range(idle):
            model([self._nothing])
        return answers

    def _packed(self, grouped: Grouped, scope: str = "token") -> list[list[int]]:
        """The rows of each micro-batch."""
        return micro_batches(grouped, self.recipe.train.micro_batch_tokens, scope=scope, reach=self.policy.reach)

    def _policy_of(self, step: int) -> Callable[[Sequence[Trajectory]], Tensor]:
        """log π_θ as it is now, unwrapped: ranks may ask for different numbers of micro-batches."""

        def log_probs(trajectories: Sequence[Trajectory]) -> Tensor:
            return self.policy.log_probs(_sequences(trajectories), self._temperature(step, trajectories))[0]

        return log_probs

    def _reference_of(self, step: int) -> Callable[[Sequence[Trajectory]], Tensor]:
        """log π_0."""

        def log_probs(trajectories: Sequence[Trajectory]) -> Tensor:
            assert self.reference is not None, "a reference model is open wherever a part reads reference_logp"
            with self.accelerator.autocast():  # the numerics of the policy, or their gap would pass for divergence
                return self.reference.log_probs(_sequences(trajectories), self._temperature(step, trajectories))

        return log_probs

    def _temperature(self, step: int, trajectories: Sequence[Trajectory]) -> Tensor:
        """(N,) the sampling temperature for rollouts, 1 for demonstrations; in float64 where the model is."""
        hot = at(self.recipe.rollout.temperature, step)
        dtype = torch.promote_types(torch.float32, self.policy.model.dtype)
        return torch.tensor([1.0 if each.demonstration else hot for each in trajectories], dtype=dtype)

    # What an optimizer step takes.

    def _without_masked(self, batch: Batch, credit: Credit, grouped: Grouped) -> tuple[Batch, Credit, Grouped]:
        """Without truncated rollouts where the recipe masks them: their group has seen them, the counts will not."""
        if self.recipe.rollout.truncated != "mask" or batch.truncated is None:
            return batch, credit, grouped
        kept = ~batch.truncated
        return batch.select(kept), credit.select(batch, kept), _picked(grouped, kept)

    def _updates(self, batch: Batch) -> Iterator[Tensor]:
        """The rows of each optimizer step: its prompts don't depend on how prompts are divided over ranks."""
        present = self._present(batch.group)
        for _ in range(self.recipe.train.epochs):
            yield from portions(batch.group, self.recipe.train.minibatches, among=present)

    def _present(self, groups: Tensor) -> Tensor:
        """The groups of which some rank has a row, in order; groups are places in the rollout batch."""
        if self.accelerator.num_processes == 1:
            own: Tensor = torch.unique_consecutive(groups)
            return own
        places = torch.zeros(self.recipe.train.prompts, device=groups.device)
        places[groups] = 1
        return self.sum(places).nonzero()[:, 0]

    def _update(
        self, step: int, batch: Batch, credit: Credit, grouped: Grouped, update: int, tally: StepMetrics
    ) -> None:
        """One optimizer step: count over all of it, drop what cannot matter, weigh and backward piece by piece."""
        budget = self.recipe.train.micro_batch_tokens
        if self.critic is not None:
            self.critic.learn(step, batch, credit, grouped, tally, budget=budget, reduce=self.sum)
        credit = self.recipe.estimator.count(batch, credit, reduce=self.sum)
        alive = self.recipe.estimator.alive(batch, credit)
        batch, credit, grouped = batch.select(alive), credit.select(batch, alive), _picked(grouped, alive)
        tally.add("rows/alive", float(alive.sum()))

        def loss(rows: list[int]) -> Tensor:
            return self._loss(step, batch, credit, grouped, rows, update, tally)

        pieces = self._packed(grouped, scope=self.recipe.estimator.scope)
        if self.optimization.backward(pieces, loss, self._idle):
            self.optimization.step(step, tally)
        else:
            tally.add("updates/without_signal", 1 / self.accelerator.num_processes)

    def _loss(
        self,
        step: int,
        batch: Batch,
        credit: Credit,
        grouped: Grouped,
        rows: list[int],
        update: int,
        tally: StepMetrics,
    ) -> Tensor:
        """The loss of one micro-batch."""
        picked = torch.zeros(batch.size, dtype=torch.bool, device=batch.reward.device)
        picked[rows] = True
        micro, own = batch.select(picked), credit.select(batch, picked)
        trajectories = [grouped[row][1] for row in sorted(rows)]
        logp, entropy = self.policy.log_probs(
            _sequences(trajectories),
            self._temperature(step, trajectories),
            entropy="entropy" in self.needs,
            forward=self.optimization.forward,
        )
        micro = replace(micro, logp=logp, entropy=entropy)
        weighed = self.recipe.estimator.weigh(micro, own, stale=update > 0)
        tally.weighed(micro, weighed)
        if self.token_log is not None:
            self.token_log.weighed(trajectories, micro, weighed)
        return weighed.loss

    @property
    def _nothing(self) -> Trajectory:
        """What is asked of a model only so that this rank takes part."""
        token = (self.policy.pad_id,)
        return Trajectory(Problem("", "", ""), token, token, "", 0.0, demonstration=True)

    def _idle(self) -> Tensor:
        """A loss of 0 that still goes through every parameter, so that ranks stay in step."""
        token = self.policy.pad_id
        logp, _ = self.policy.log_probs([((token,), (token,))], torch.ones(1), forward=self.optimization.forward)
        return logp.sum() * 0


def _sequences(trajectories: Sequence[Trajectory]) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    return [(each.prompt, each.response) for each in trajectories]


def _picked(grouped: Grouped, rows: Tensor) -> Grouped:
    return [pair for pair, keep in zip(grouped, rows.tolist(), strict=True) if keep]
