"""Tokens by the sign of their advantage."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from upge import Selection, View


class Sign(Selection):
    """The tokens whose advantage has one sign.

        positive:  select_t = [Â_t > 0]
        negative:  select_t = [Â_t < 0]
        nonzero:   select_t = [Â_t ≠ 0]

    Positives and negatives in two terms have reductions and counts of their own.
    Shapes: advantage (T,) → (T,) bool. Source: arXiv 2506.01347 (positive and negative sample reinforcement).
    """

    of: Literal["positive", "negative", "nonzero"]
    """The sign of the selected tokens' advantage."""

    def __call__(self, b: View) -> Tensor:
        if self.of == "nonzero":
            return b.advantage != 0
        return b.advantage > 0 if self.of == "positive" else b.advantage < 0
