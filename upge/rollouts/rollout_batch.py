"""A rollout batch: its trajectories, the tensors of their tokens, and their credit, row by row."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from upge.estimator.batch import Batch
from upge.estimator.credit import Credit
from upge.estimator.noise import signed
from upge.types import Trajectory

Sequences = list[tuple[tuple[int, ...], tuple[int, ...]]]
"""(prompt, response) pairs of token ids, as models are fed."""


@dataclass(frozen=True)
class RolloutBatch:
    """N trajectories with what is known of them; `select` keeps some rows of all of it together.

    Attributes:
        trajectories: N of them; those of a group lie together.
        batch: their T response tokens, flat. Fields are added as models compute them.
        credit: what the estimator made of them; None before `Estimator.credit`.
    """

    trajectories: Sequence[Trajectory]
    batch: Batch
    credit: Credit | None = None

    @classmethod
    def of(
        cls,
        trajectories: Sequence[Trajectory],
        device: torch.device,
        dtype: torch.dtype,
        *,
        seed: int,
        step: int,
        needs: frozenset[str] = frozenset(),
    ) -> RolloutBatch:
        """The batch of these trajectories before any forward pass, in the model's `dtype` and at least float32.

        Noise is keyed by the run's `seed` and the rollout batch's `step`. Of what no model gives, `needs` names the
        fields that parts read beside the structure, the reward and `truncated`.
        """
        number = torch.promote_types(torch.float32, dtype)
        lengths = torch.tensor([len(trajectory.response) for trajectory in trajectories], dtype=torch.long)

        def per_row(values: Iterable[object], kind: torch.dtype) -> Tensor:
            return torch.tensor(list(values), dtype=kind, device=device)

        batch = Batch(
            logp=None,
            trajectory=torch.repeat_interleave(torch.arange(len(trajectories)), lengths).to(device),
            group=per_row((trajectory.group for trajectory in trajectories), torch.long),
            demonstration=per_row((trajectory.demonstration for trajectory in trajectories), torch.bool),
            reward=per_row((trajectory.reward for trajectory in trajectories), number),
            truncated=per_row((trajectory.truncated for trajectory in trajectories), torch.bool),
            rollout_logp=per_row(_rollout_logps(trajectories), number) if "rollout_logp" in needs else None,
            key=per_row((signed(each.key(seed, step)) for each in trajectories), torch.long),
            token_fields={
                name: per_row(numbers(trajectories), kind or number)
                for name, (kind, numbers) in _PER_TOKEN.items()
                if name in needs
            },
            trajectory_fields={
                name: per_row((0 for _ in trajectories), torch.long) for name in ("staleness",) if name in needs
            },
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
        return [(trajectory.prompt, trajectory.response) for trajectory in self.trajectories]

    @property
    def demonstration(self) -> Tensor:
        """(N,) bool: the trajectories that are demonstrations."""
        return self.batch.demonstration

    def select(self, rows: Tensor) -> RolloutBatch:
        """The trajectories that `rows`, (N,) bool, marks, in their order."""
        kept = [trajectory for trajectory, keep in zip(self.trajectories, rows.tolist(), strict=True) if keep]
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


def _tokens(trajectories: Sequence[Trajectory]) -> Iterable[int]:
    """The ids of the responses."""
    return (token for trajectory in trajectories for token in trajectory.response)


def _zeros(trajectories: Sequence[Trajectory]) -> Iterable[int]:
    return (0 for trajectory in trajectories for _ in trajectory.response)


def _turn_rewards(trajectories: Sequence[Trajectory]) -> Iterable[float]:
    """A response is one turn: its reward is that of its last token."""
    for trajectory in trajectories:
        yield from [0.0] * (len(trajectory.response) - 1)
        yield from [trajectory.reward][: len(trajectory.response)]


_PER_TOKEN: dict[str, tuple[torch.dtype | None, Callable[[Sequence[Trajectory]], Iterable[object]]]] = {
    "token": (torch.long, _tokens),
    "turn": (torch.long, _zeros),
    "turn_reward": (None, _turn_rewards),
    "forced": (torch.bool, _zeros),
}
"""The fields that the machine fills, with their types; None is the batch's."""


def _rollout_logps(trajectories: Sequence[Trajectory]) -> Iterable[float]:
    """The engine's log-probs; 0 for demonstrations, which no engine drew."""
    for trajectory in trajectories:
        if trajectory.demonstration:
            yield from [0.0] * len(trajectory.response)
        elif trajectory.rollout_logp is None:
            raise ValueError(f"the engine reported no log-probs for '{trajectory.problem.id}', which the recipe reads")
        else:
            yield from trajectory.rollout_logp
