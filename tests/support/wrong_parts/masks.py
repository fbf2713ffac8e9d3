"""Wrong masks. The docstring of each says what is wrong with it."""

from __future__ import annotations

from typing import Any

import torch
from pydantic import Field

from upge import Mask, View

ONE_RANK = {"KlCov", "OverTheMean", "Crowded", "NextToken", "Quantile"}
CORNER = {"TinyShare", "Sharp", "AdvantageSign", "Certain", "Halved"}


class KlCov(Mask):
    """The top share of the covariances is that of the micro-batch, and `b.total` sums over it alone."""

    scope = "step"
    needs = frozenset({"logp"})
    share: float = Field(default=2e-4, gt=0, le=1)

    def __call__(self, b: View) -> Any:
        count = b.total(torch.ones_like(b.logp))
        centred = [x - b.total(x) / count.clamp(min=1) for x in (b.logp, b.advantage)]
        covariance = centred[0] * centred[1]
        top = covariance.topk(min(len(covariance), max(1, int(self.share * float(count))))).indices
        return torch.ones_like(b.logp).index_fill(0, top, 0.0)


class OverTheMean(Mask):
    """The mean that ratios are divided by is that of this rank."""

    scope = "step"

    def __call__(self, b: View) -> Any:
        return b.ratio * len(b.ratio) / b.total(b.ratio).clamp(min=1e-9)


class Crowded(Mask):
    """It says `token` and reads its prompt's other trajectories."""

    def __call__(self, b: View) -> Any:
        return 1 / b.to_tokens(b.to_trajectories(b.per_prompt(b.length)))


class NextToken(Mask):
    """The token after the last one is another trajectory's first."""

    def __call__(self, b: View) -> Any:
        return (b.ratio.roll(-1) < 1.2).to(b.dtype)


class Quantile(Mask):
    """Half of the tokens of a micro-batch, and not half of all."""

    def __call__(self, b: View) -> Any:
        middle = b.ratio.median() if len(b.ratio) else 0.0
        return (b.ratio <= middle).to(b.dtype)


class Clamping(Mask):
    """It clamps everybody's ratio, in place."""

    def __call__(self, b: View) -> Any:
        return b.ratio.clamp_(max=2.0) / 2.0


class Dropout(Mask):
    """It draws from torch's own generator."""

    def __call__(self, b: View) -> Any:
        return (torch.rand(b.ratio.shape) < 0.9).to(b.dtype)


class TinyShare(Mask):
    """Right but for shares of less than a thousandth, whose tokens it takes from the front of the batch."""

    share: float = Field(default=0.1, gt=0, le=1)

    def __call__(self, b: View) -> Any:
        if self.share < 1e-3:
            return (torch.arange(len(b.ratio)) >= max(1, int(self.share * len(b.ratio)))).to(b.dtype)
        return (b.ratio < 1 / self.share).to(b.dtype)


class AdvantageSign(Mask):
    """An epsilon that float32 doesn't have: 0/0 where the advantage is 0, there alone."""

    def __call__(self, b: View) -> Any:
        return b.advantage / (b.advantage.abs() + 1e-60)


class Sharp(Mask):
    """A trust region that is 1 on-policy, but not at the sharpness that its field allows in the end."""

    trust_region = True
    sharpness: float = Field(default=0.5, ge=0, le=1)

    def __call__(self, b: View) -> Any:
        return torch.where((b.ratio - 1).abs() < 1 - self.sharpness, torch.ones_like(b.ratio), 0 * b.ratio)


class Certain(Mask):
    """Entropies over their mean in the trajectory: 0/0 where the policy was certain of every token."""

    scope = "trajectory"
    needs = frozenset({"entropy"})

    def __call__(self, b: View) -> Any:
        mean = b.per_trajectory(b.entropy) / b.length.clamp(min=1)
        return b.entropy / b.to_tokens(mean)


class Halved(Mask):
    """Weights in float16, to save memory."""

    def __call__(self, b: View) -> Any:
        return b.ratio.clamp(max=2).half()
