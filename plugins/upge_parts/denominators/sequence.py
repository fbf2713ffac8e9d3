"""One ratio for the whole sequence."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from upge import Denominator, View


class Sequence(Denominator):
    """Every token of a trajectory gets the same ratio: the geometric mean, or the product, of its tokens' ratios.

        mean:     log π_ref = log π_θ − (1/|o|) Σ_i log(π_θ/π_old)_i   ⇒   ρ_t = s = (π_θ(o)/π_old(o))^(1/|o|)
        product:  log π_ref = log π_θ −         Σ_i log(π_θ/π_old)_i   ⇒   ρ_t = π_θ(o)/π_old(o)

    Shapes: → (T,), nats. Source: GSPO, arXiv 2507.18071; the product: RLOO in TRL, TOPR, VESPO.
    """

    needs = frozenset({"logp", "old_logp"})
    scope = "trajectory"

    of: Literal["mean", "product"] = "mean"
    """The mean of the log-ratios, or their sum."""

    def __call__(self, b: View) -> Tensor:
        log_ratio = b.per_trajectory(b.logp - b.old_logp)
        if self.of == "mean":
            log_ratio = log_ratio / b.length.clamp(min=1)
        return b.logp - b.to_tokens(log_ratio)
