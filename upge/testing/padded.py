"""A batch as papers write it, for textbook losses: padded rows, a row a trajectory."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from upge.estimator.batch import Batch


@dataclass(frozen=True)
class Padded:
    """A batch as papers write it: (B, L), a row a trajectory, zeros to its right.

    Attributes:
        logp, old_logp, rollout_logp, reference_logp, entropy, value: (B, L) float, as in `upge.Batch`. Gradient goes
            back to the flat `logp` and `entropy`.
        mask: (B, L) bool: True at response tokens.
        reward: (B,) float. group: (B,) int. demonstration: (B,) bool.
    """

    logp: Tensor
    old_logp: Tensor
    rollout_logp: Tensor
    reference_logp: Tensor
    entropy: Tensor
    value: Tensor
    mask: Tensor
    reward: Tensor
    group: Tensor
    demonstration: Tensor

    @classmethod
    def of(cls, batch: Batch) -> Padded:
        """Padded copies; `old_logp` is `logp`, detached, where the batch is strictly on-policy."""
        assert batch.logp is not None
        lengths = [int((batch.trajectory == i).sum()) for i in range(len(batch.reward))]
        mask = torch.arange(max(lengths, default=0)) < torch.tensor(lengths, dtype=torch.int64)[:, None]

        def pad(flat: Tensor | None) -> Tensor:
            assert flat is not None
            return torch.zeros(mask.shape, dtype=flat.dtype).masked_scatter(mask, flat)

        old = batch.logp.detach() if batch.old_logp is None else batch.old_logp
        return cls(
            logp=pad(batch.logp),
            old_logp=pad(old),
            rollout_logp=pad(batch.rollout_logp),
            reference_logp=pad(batch.reference_logp),
            entropy=pad(batch.entropy),
            value=pad(batch.value),
            mask=mask,
            reward=batch.reward,
            group=batch.group,
            demonstration=batch.demonstration,
        )

    def rows(self, chosen: Tensor) -> Padded:
        """The rows that `chosen` (B,) marks."""
        return Padded(*(getattr(self, name)[chosen] for name in self.__dataclass_fields__))

    @property
    def rollouts(self) -> Padded:
        """The rows of the policy's own."""
        return self.rows(~self.demonstration)

    @property
    def demonstrations(self) -> Padded:
        """The rows of the demonstrator's."""
        return self.rows(self.demonstration)
