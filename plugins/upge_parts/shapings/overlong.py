"""DAPO's soft overlong punishment."""

from __future__ import annotations

import torch
from pydantic import Field, model_validator
from torch import Tensor

from upge import DefaultFrom, Shaping, View


class Overlong(Shaping):
    """A penalty on rollouts near the length limit, which grows linearly with the length.

        |o| ≤ soft_limit:  0        |o| ≤ limit:  −scale·(|o| − soft_limit)/(limit − soft_limit)        beyond:  −scale

    The penalty applies at the last token. Demonstrations get no penalty.
    Shapes: → (T,), in units of the reward. Source: DAPO, arXiv 2503.14476, eq. 13.
    """

    soft_limit: int = Field(ge=0)
    """The length at which the penalty begins, in tokens: the limit without DAPO's cache."""
    limit: int = DefaultFrom("rollout.max_tokens", gt=0)
    """The length of the full penalty, in tokens; by default the completion budget."""
    scale: float = Field(default=1.0, ge=0)
    """The largest penalty, in units of the reward."""

    @model_validator(mode="after")
    def _soft_before_hard(self) -> Overlong:
        if self.soft_limit >= self.limit:
            self.refuse(("soft_limit",), f"soft_limit {self.soft_limit} should be below the limit {self.limit}")
        return self

    def __call__(self, b: View) -> Tensor:
        excess = ((b.length - self.soft_limit) / (self.limit - self.soft_limit)).clamp(0, 1)
        return b.at_last(torch.where(b.rollout, -self.scale * excess, 0))
