"""What the masks share that bound a ratio."""

from __future__ import annotations

from typing import Literal

from upge import Mask


class RatioMask(Mask):
    """A mask that depends on a ratio (abstract)."""

    against: Literal["denominator", "old", "rollout"] = "denominator"
    """The bounded ratio: the term's own, or that to the old policy or to the rollout engine's."""

    def reads(self) -> frozenset[str]:
        return frozenset() if self.against == "denominator" else frozenset({"logp", f"{self.against}_logp"})
