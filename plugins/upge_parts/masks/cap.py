"""CISPO's truncated weight."""

from __future__ import annotations

from pydantic import Field
from torch import Tensor

from upge import View
from upge_parts.masks.ratio import RatioMask


class Cap(RatioMask):
    """The ratio counts up to a bound and no token loses its gradient: the weight becomes min(ρ, ratio_max)·Â.

        mask_t = min(1, ratio_max/ρ_t)

    Shapes: ratio (T,) → (T,), dimensionless. Source: CISPO, arXiv 2506.13585, without its lower bound.
    """

    trust_region = True

    ratio_max: float = Field(ge=1)
    """The largest ratio that counts; bounds in use go from 5 to 10."""

    def __call__(self, b: View) -> Tensor:
        return (self.ratio_max / b.ratio_to(self.against)).clamp(max=1)
