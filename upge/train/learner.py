"""What one rollout batch is learned with: the models in training and beside it, and the estimator's state.

Nothing here assumes one process. All ranks run the same number of micro-batches, and a rank without one runs a dummy of
weight 0. `upge.train.trainer.learn` is the order in which all of it is called.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import groupby

import torch
from accelerate import Accelerator
from torch import Tensor

from upge.distributed.ranks import Ranks
from upge.estimator.batch import Batch
from upge.estimator.credit import Credit
from upge.model.critic import Critic, load_critic
from upge.model.models import AskedModel, Models
from upge.model.policy import Policy
from upge.part import State
from upge.recipe.schema import Critic as Settings
from upge.recipe.schema import Recipe
from upge.rollouts.batching import balanced, micro_batches, portions, tokens_of
from upge.rollouts.fields import OpenFields
from upge.rollouts.rollout_batch import RolloutBatch
from upge.train.metrics import StepMetrics
from upge.train.optimizer import Optimization, place
from upge.train.token_log import TokenLog
from upge.types import Problem, Trajectory


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


Model = Callable[[RolloutBatch], Tensor]
"""A model's number for each response token, (T,), or several, (count, T)."""

OF_POLICY = frozenset(("logp", "old_logp", "entropy"))
"""The fields that a pass of the policy without gradient gives."""


class Learner:
    """The policy with its optimizer, the reference and the critic, and the estimator's state.

    Attributes:
        models: the models beside the policy. reference: that of `reference_logp`; None where no part reads it.
        critic: the provider of `value`; None where no part reads it.
        token_log: keeps what a few trajectories were weighed with; None where that isn't kept.
        fields: the recipe's own, open.
    """

    def __init__(
        self,
        recipe: Recipe,
        policy: Policy,
        accelerator: Accelerator,
        models: Models,
        *,
        reference: AskedModel | None = None,
        critic: CriticLearner | None = None,
    ) -> None:
        self.recipe, self.policy, self.accelerator, self.ranks = recipe, policy, accelerator, Ranks(accelerator)
        self.models, self.reference, self.critic = models, reference, critic
        self.optimization = Optimization(
            policy.model, recipe.optimizer, accelerator, patience=recipe.train.not_finite_limit
        )
        self.state: State = recipe.estimator.initial()
        self.needs = recipe.estimator.needs()
        self.token_log: TokenLog | None = None
        self.fields = OpenFields()

    def sum(self, x: Tensor) -> Tensor:
        """The sum of a tensor over all ranks."""
        return self.ranks.sum(x)

    def optimizations(self) -> dict[str, Optimization]:
        """Every model in training by its folder in a checkpoint."""
        critic = {} if self.critic is None else {"critic": self.critic.optimization}
        return {"model": self.optimization, **critic}

    def critic_model(self) -> Critic | None:
        """The critic, where there is one."""
        return None if self.critic is None else self.critic.critic

    def metrics(self) -> StepMetrics:
        """The metrics of a rollout batch, of which nothing is known yet."""
        terms = self.recipe.estimator.terms
        critic = self.critic is not None
        return StepMetrics(terms, self.sum, entropy="entropy" in self.needs, critic=critic, fields=self.fields.names)

    def learned(self, step: int) -> None:
        """Tell those who keep something of the policy that a rollout batch's updates are made."""
        self.models.learned(step)
        self.fields.learned(step, self.policy)

    # The rollout batch.

    def balanced(self, step: int, trajectories: Sequence[Trajectory]) -> RolloutBatch:
        """The rollout batch, dealt among ranks so that each has about as much to compute."""
        rollouts = self._of(step, trajectories)
        if self.ranks.world == 1:
            return rollouts
        costs = {each.group: 0 for each in trajectories}
        weighed = rollouts.select(self._to_be_computed(step, rollouts)).trajectories
        for group, members in groupby(weighed, key=lambda each: each.group):
            costs[group] = tokens_of(list(members), self.policy.reach)
        return self._of(step, balanced(self.ranks, trajectories, costs, self.recipe.train.minibatches))

    def _of(self, step: int, trajectories: Sequence[Trajectory]) -> RolloutBatch:
        device, dtype, seed = self.accelerator.device, self.policy.model.dtype, self.recipe.train.seed
        return RolloutBatch.of(trajectories, device, dtype, seed=seed, step=step, needs=self.needs)

    def _to_be_computed(self, step: int, rollouts: RolloutBatch) -> Tensor:
        """(N,) bool: the trajectories that a model may be asked about."""
        estimator, batch = self.recipe.estimator, rollouts.batch
        if self.critic is not None or estimator.needs_for_credit() & {*OF_POLICY, "reference_logp", *self.fields.names}:
            return torch.ones_like(rollouts.demonstration)
        # No model is asked about trajectories that can't matter, and which these are can be told already.
        rows = estimator.alive(batch, estimator.credit(batch, step, state=self.state, reduce=self.sum))
        if self.recipe.rollout.truncated == "mask" and batch.truncated is not None:
            rows &= ~batch.truncated
        return rows

    def without_truncated(self, rollouts: RolloutBatch) -> RolloutBatch:
        """Without truncated rollouts where the recipe masks them: their group has seen them, the counts will not."""
        if self.recipe.rollout.truncated != "mask" or rollouts.batch.truncated is None:
            return rollouts
        return rollouts.select(~rollouts.batch.truncated)

    def updates(self, rollouts: RolloutBatch) -> Iterator[RolloutBatch]:
        """The rollouts of each optimizer step: its prompts don't depend on how prompts are divided over ranks."""
        present = self._present(rollouts.batch.group)
        for _ in range(self.recipe.train.epochs):
            for rows in portions(rollouts.batch.group, self.recipe.train.minibatches, among=present):
                yield rollouts.select(rows)

    def _present(self, groups: Tensor) -> Tensor:
        """The groups of which some rank has a row, in order; groups are places in the rollout batch."""
        if self.accelerator.num_processes == 1:
            own: Tensor = torch.unique_consecutive(groups)
            return own
        places = torch.zeros(self.recipe.train.prompts, device=groups.device)
        places[groups] = 1
        return self.sum(places).nonzero()[:, 0]

    def micro_batches(self, trajectories: Sequence[Trajectory], scope: str = "token") -> list[list[int]]:
        """The rows of each micro-batch."""
        return micro_batches(trajectories, self.recipe.train.micro_batch_tokens, scope=scope, reach=self.policy.reach)

    # The fields that models fill.

    def with_fields_for_credit(self, step: int, rollouts: RolloutBatch) -> RolloutBatch:
        """With what switches, shapings and settled advantages read of models, for every trajectory."""
        early, rows = self.recipe.estimator.needs_for_credit(), torch.ones_like(rollouts.demonstration)
        if self.critic is not None:
            rollouts = rollouts.with_fields(value=self._asked(rollouts, rows, self.critic.values)[0])
        if early & OF_POLICY:
            rollouts = self._with_policy(rollouts, rows, early)
        if "reference_logp" in early:
            rollouts = rollouts.with_fields(reference_logp=self._asked(rollouts, rows, self._reference_of())[0])
        return self._with_own(step, rollouts, rows, early)

    def with_fields_for_updates(self, step: int, rollouts: RolloutBatch) -> RolloutBatch:
        """With what is read beside π_θ, for the trajectories that can matter; π_old only if π_θ will move away."""
        several = self.recipe.train.minibatches * self.recipe.train.epochs > 1
        estimator = self.recipe.estimator
        rows, counted = estimator.alive(rollouts.batch, rollouts.settled), estimator.needs_for_count()
        if rollouts.batch.logp is None and (counted or (several and "old_logp" in self.needs)):
            rollouts = self._with_policy(rollouts, rows, counted)
        rollouts = rollouts.with_fields(old_logp=rollouts.batch.logp if several else None)
        if "reference_logp" in self.needs and rollouts.batch.reference_logp is None:
            rollouts = rollouts.with_fields(reference_logp=self._asked(rollouts, rows, self._reference_of())[0])
        return self._with_own(step, rollouts, rows, self.needs)

    def _with_own(self, step: int, rollouts: RolloutBatch, rows: Tensor, needs: frozenset[str]) -> RolloutBatch:
        """With those of the recipe's fields that are needed and not there, for the trajectories that `rows` marks."""
        names = [name for name in self.fields.names & needs if rollouts.batch.field(name) is None]
        if not names:
            return rollouts
        pieces, idle = self._pieces(rollouts, rows)
        return self.fields.read(names, step, rollouts, pieces, [self._nothing] * idle)

    def with_fields_for_count(self, update: int, portion: RolloutBatch) -> RolloutBatch:
        """The rollouts of an optimizer step with what parts that see all of it read of π_θ as it is now."""
        estimator = self.recipe.estimator
        if update == 0 or not estimator.needs_for_count():  # before the first update π_θ is π_old
            return portion
        rows = estimator.alive(portion.batch, portion.settled)
        return self._with_policy(portion, rows, estimator.needs_for_count())

    def with_log_probs(self, micro: RolloutBatch) -> RolloutBatch:
        """A micro-batch with log π_θ, and H where a part reads it; both carry the gradient."""
        logp, entropy = self.policy.log_probs(
            micro.sequences,
            self._temperature(micro),
            entropy="entropy" in self.needs,
            forward=self.optimization.forward,
        )
        return micro.with_fields(logp=logp, entropy=entropy)

    @torch.no_grad()
    def _asked(self, rollouts: RolloutBatch, rows: Tensor, model: Model, count: int = 1) -> Tensor:
        """(count, T) a model's numbers for the trajectories that `rows` marks, micro-batch by micro-batch; else 0."""
        batch = rollouts.batch
        answers = torch.zeros((count, *batch.trajectory.shape), dtype=batch.dtype, device=batch.reward.device)
        pieces, idle = self._pieces(rollouts, rows)
        for own in pieces:
            answers[:, own[batch.trajectory]] = model(rollouts.select(own)).to(answers)
        for _ in range(idle):
            model(self._of(0, [self._nothing]))
        return answers

    def _pieces(self, rollouts: RolloutBatch, rows: Tensor) -> tuple[list[Tensor], int]:
        """(N,) bool for each micro-batch of the trajectories that `rows` marks, and how many more others have.

        Each pass through a model that is divided over ranks takes all of them.
        """
        chosen = rows.nonzero()[:, 0].tolist()
        pieces = self.micro_batches([rollouts.trajectories[row] for row in chosen])
        idle = self.optimization.most(len(pieces)) - len(pieces) if self.optimization.sharded else 0
        return [rollouts.rows([chosen[index] for index in piece]) for piece in pieces], idle

    def _with_policy(self, rollouts: RolloutBatch, rows: Tensor, fields: frozenset[str]) -> RolloutBatch:
        """With log π_θ as it is now, without gradient, and H where `fields` or `count` read it: one pass for all."""
        entropy = "entropy" in fields | self.recipe.estimator.needs_for_count()

        def numbers(some: RolloutBatch) -> Tensor:  # unwrapped: ranks may ask for different numbers of micro-batches
            logp, entropies = self.policy.log_probs(some.sequences, self._temperature(some), entropy=entropy)
            return logp if entropies is None else torch.stack([logp, entropies])

        answers = self._asked(rollouts, rows, numbers, 2 if entropy else 1)
        return rollouts.with_fields(logp=answers[0], entropy=answers[1] if entropy else None)

    def _reference_of(self) -> Model:
        """log π_0."""

        def log_probs(rollouts: RolloutBatch) -> Tensor:
            assert self.reference is not None, "a reference model is open wherever a part reads reference_logp"
            return self.reference.log_probs(rollouts.sequences, self._temperature(rollouts))

        return log_probs

    def _temperature(self, rollouts: RolloutBatch) -> Tensor:
        """(N,) the temperature that each trajectory was drawn at; in float64 where the model is."""
        dtype = torch.promote_types(torch.float32, self.policy.model.dtype)
        return torch.tensor([each.temperature for each in rollouts.trajectories], dtype=dtype)

    @property
    def _nothing(self) -> Trajectory:
        """What is asked of a model only so that this rank takes part."""
        token = (self.policy.pad_id,)
        return Trajectory(Problem("", "", ""), token, token, "", 0.0, demonstration=True)

    def idle(self) -> Tensor:
        """A loss of 0 that still goes through every parameter, so that ranks stay in step."""
        token = self.policy.pad_id
        logp, _ = self.policy.log_probs([((token,), (token,))], torch.ones(1), forward=self.optimization.forward)
        return logp.sum() * 0


def open_learner(recipe: Recipe, policy: Policy, accelerator: Accelerator, *, log_tokens: bool = False) -> Learner:
    """The learner with the providers that the recipe's parts need, and no others. Raises ModelError.

    Args: log_tokens: whether it keeps what a few trajectories were weighed with.
    """
    needs, critic = recipe.estimator.needs(), None
    models = Models(policy, accelerator, partial(place, accelerator=accelerator))
    reference = models.open(recipe.reference.path) if "reference_logp" in needs else None
    if "value" in needs and recipe.critic is not None:
        critic = CriticLearner(
            recipe.critic,
            load_critic(policy, recipe.critic.path),
            accelerator,
            patience=recipe.train.not_finite_limit,
        )
    learner = Learner(recipe, policy, accelerator, models, reference=reference, critic=critic)
    learner.token_log = TokenLog(policy.tokenizer) if log_tokens else None
    return learner
