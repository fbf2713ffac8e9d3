"""A rollout batch: its trajectories, the tensors of their tokens, and their credit, row by row."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from upge.estimator.batch import Batch
from upge.estimator.credit import Credit
from upge.types import Trajectory

Sequences = list[tuple[tuple[int, ...], tuple[int, ...]]]
"""(prompt, response) pairs of token ids, as models are fed."""


@dataclass(frozen=True)
class RolloutBatch:
    """N trajectories with what is known of them; `select` keeps some rows of all of it together.

    Attributes:
        trajectories: N of them; those of a group lie together.
        batch: their T response tokens, flat. Fields are added as models are asked for them.
        credit: what the estimator made of them; None before `Estimator.credit`.
    """

    trajectories: Sequence[Trajectory]
    batch: Batch
    credit: Credit | None = None

    @classmethod
    def of(
        cls, trajectories: Sequence[Trajectory], device: torch.device, dtype: torch.dtype, *, rollout_logp: bool = False
    ) -> RolloutBatch:
        """The batch of these trajectories before any forward pass, in the model's `dtype` and at least float32."""
        number = torch.promote_types(torch.float32, dtype)
        lengths = torch.tensor([len(each.response) for each in trajectories], dtype=torch.long)

        def per_row(values: Iterable[object], kind: torch.dtype) -> Tensor:
            return torch.tensor(list(values), dtype=kind, device=device)

        batch = Batch(
            logp=None,
            trajectory=torch.repeat_interleave(torch.arange(len(trajectories)), lengths).to(device),
            group=per_row((each.group for each in trajectories), torch.long),
            demonstration=per_row((each.demonstration for each in trajectories), torch.bool),
            reward=per_row((each.reward for each in trajectories), number),
            truncated=per_row((each.truncated for each in trajectories), torch.bool),
            rollout_logp=per_row(_rollout_logps(trajectories), number) if rollout_logp else None,
        )
        return cls(trajectories, batch)

    @property
    def settled(self) -> Credit:
        """The credit, which is there from `Estimator.credit` on."""
        assert self.credit is not None, "no estimator has given this rollout batch its credit"
        return self.credit

    @property
    def sequences(self) -> Sequences:
        """The (prompt, response) pairs of token ids."""
        return [(each.prompt, each.response) for each in self.trajectories]

    @property
    def demonstration(self) -> Tensor:
        """(N,) bool: the trajectories that are demonstrations."""
        return self.batch.demonstration

    def select(self, rows: Tensor) -> RolloutBatch:
        """The trajectories that `rows`, (N,) bool, marks, in their order."""
        kept = [each for each, keep in zip(self.trajectories, rows.tolist(), strict=True) if keep]
        credit = None if self.credit is None else self.credit.select(self.batch, rows)
        return RolloutBatch(kept, self.batch.select(rows), credit)

    def rows(self, indices: Sequence[int]) -> Tensor:
        """(N,) bool: the rows of these numbers."""
        marked = torch.zeros(len(self.trajectories), dtype=torch.bool, device=self.batch.reward.device)
        marked[list(indices)] = True
        return marked

    def with_fields(self, **fields: Any) -> RolloutBatch:
        """The same with other fields of the batch."""
        return replace(self, batch=replace(self.batch, **fields))


def _rollout_logps(trajectories: Sequence[Trajectory]) -> Iterable[float]:
    """The engine's log-probs; 0 for demonstrations, which no engine drew."""
    for each in trajectories:
        if each.demonstration:
            yield from [0.0] * len(each.response)
        elif each.rollout_logp is None:
            raise ValueError(f"the engine reported no log-probs for '{each.problem.id}', which the recipe reads")
        else:
            yield from each.rollout_logp
