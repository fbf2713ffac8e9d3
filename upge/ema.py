"""The settings of a moving average. They are apart from the average, since a recipe is read without torch."""

from __future__ import annotations

from pydantic import Field

from upge.strict_model import StrictModel


class Ema(StrictModel):
    """An exponential moving average of the trained parameters: s ← decay·s + (1 − decay)·θ."""

    decay: float = Field(ge=0, lt=1)
    """The share of the average that stays at each update, from 0 to below 1. 0 copies the parameters."""
    every: int = Field(default=1, ge=1)
    """The number of rollout batches between two updates of the average."""
