"""What the phases of an estimator settle, on the rows and tokens of a batch: credit, counts, and the final weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from upge.estimator.batch import Batch
from upge.part import State
from upge.part_checks import Scope


@dataclass(frozen=True)
class TermCredit:
    """What `credit` and `count` settle for one term, on the rows and tokens of a batch.

    Attributes:
        coefficient: (N,) weight · s, 0 outside the term's source.
        rows: (N,) bool: the term's trajectories. active: (N,) bool: those whose s is not 0.
        selected: (T,) bool: the tokens that the term's selections leave; None without any.
        advantage: (T,) Â, or None while it is live.
        share: (T,) n, or None before `count`.
        returns: (T,) what the advantage would teach a critic, or None.
        wide: (T,) by place: what parts of the scope `step` have given in `count`.
    """

    coefficient: Tensor
    rows: Tensor
    active: Tensor
    advantage: Tensor | None
    share: Tensor | None = None
    returns: Tensor | None = None
    wide: Mapping[str, Tensor] = field(default_factory=dict)
    selected: Tensor | None = None

    def tokens(self, batch: Batch) -> Tensor:
        """(T,) bool: the term's tokens that its selections leave."""
        own = self.rows[batch.trajectory]
        return own if self.selected is None else own & self.selected

    def kept(self, batch: Batch) -> Tensor:
        """(N,) bool: the rows with weight in this term, that have a selected token."""
        return self.active if self.selected is None else self.active & rows_of(self.selected, batch)

    def within(self, rows: Tensor) -> TermCredit:
        """The credit of a term whose trajectories are only those that `rows` marks."""
        return replace(self, coefficient=torch.where(rows, self.coefficient, 0), rows=rows, active=self.active & rows)

    def select(self, rows: Tensor, tokens: Tensor) -> TermCredit:
        """The credit of the trajectories that `rows` marks, whose tokens `tokens` marks."""
        return TermCredit(
            self.coefficient[rows],
            self.rows[rows],
            self.active[rows],
            None if self.advantage is None else self.advantage[tokens],
            None if self.share is None else self.share[tokens],
            None if self.returns is None else self.returns[tokens],
            {place: x[tokens] for place, x in self.wide.items()},
            None if self.selected is None else self.selected[tokens],
        )


@dataclass(frozen=True)
class Credit:
    """The factors that need no forward pass.

    Attributes:
        terms: per term. step: the rollout batch's index.
        before: what stateful parts had, by place. state: what they take along to the next rollout batch.
        reward: (N,) the score plus the sum of the shaping. shaping: (T,) what shapings add at each token.
    """

    terms: Mapping[str, TermCredit]
    step: int
    before: State
    state: State
    reward: Tensor
    shaping: Tensor

    def select(self, batch: Batch, rows: Tensor) -> Credit:
        """The credit of `batch.select(rows)`."""
        tokens = rows[batch.trajectory]
        terms = {name: term.select(rows, tokens) for name, term in self.terms.items()}
        return replace(self, terms=terms, reward=self.reward[rows], shaping=self.shaping[tokens])

    def nonzero_rows(self, batch: Batch) -> Tensor:
        """(N,) bool: trajectories with a token whose weight can differ from 0; the others need no forward pass."""
        rows = torch.zeros(batch.size, dtype=torch.bool, device=batch.reward.device)
        for term in self.terms.values():
            weighty = term.coefficient != 0
            for tokens in (None if term.advantage is None else term.advantage != 0, term.selected):
                if tokens is not None:
                    weighty = weighty & rows_of(tokens, batch)
            rows = rows | weighty
        return rows


def rows_of(tokens: Tensor, batch: Batch) -> Tensor:
    """(N,) bool: the trajectories that have one of the tokens, (T,) bool."""
    rows = torch.zeros(batch.size, dtype=torch.bool, device=tokens.device)
    rows[batch.trajectory[tokens]] = True
    return rows


def seen_with(rows: Tensor, batch: Batch, scope: Scope) -> Tensor:
    """(N,) bool: `rows`, and the trajectories that a part of this scope sees beside them, which are their prompts'."""
    if scope != "group":
        return rows
    prompts = torch.zeros(batch.prompts, dtype=torch.bool, device=rows.device)
    prompts[batch.prompt[rows]] = True
    return prompts[batch.prompt]


@dataclass(frozen=True)
class TermWeights:
    """One term's factors on a micro-batch, (T,) each and detached, for reports; `active` marks its tokens."""

    active: Tensor
    weight: Tensor
    mask: Tensor
    ratio: Tensor
    advantage: Tensor


@dataclass(frozen=True)
class Weighed:
    """The loss of a micro-batch, whose gradient is −∇J's share, and the factors it is made of."""

    loss: Tensor
    terms: Mapping[str, TermWeights]
