"""A second model's opinion as a reward."""

from __future__ import annotations

from torch import Tensor

import upge


class Opinion(upge.Shaping):
    """The mean of a field over a response is added to its reward, at its last token.

        r_t = coefficient · (1/|o|) Σ_s field_s at the last token, else 0

    Shapes: the field (T,) → (T,), in units of the reward. Source: an invention.
    """

    of: upge.TokenField
    """The field that is averaged."""
    coefficient: float
    """What the mean is multiplied by, in units of the reward per unit of the field."""

    def __call__(self, b: upge.View) -> Tensor:
        field = b.field(self.of)
        mean = b.per_trajectory(field) / b.length.clamp(min=1)
        return self.coefficient * b.at_last(mean)
