"""The command in this process, and a part whose file it is asked about."""

from __future__ import annotations

from typer.testing import CliRunner, Result

from upge.cli.main import app

SOFT = '''
import torch
import upge
from pydantic import Field


class SoftClip(upge.Mask):
    """The weight of a token decreases as its ratio moves away from 1.

        mask_t = exp(−(ln ρ_t / width)²)

    Shapes: ratio (T,) → (T,), dimensionless. Source: an example.
    """

    trust_region = True

    width: float = BOUND
    """Where the weight is 1/e, in nats."""

    def __call__(self, b: upge.View) -> torch.Tensor:
        return torch.exp(-((b.ratio.log() / self.width) ** 2))
'''
SOUND, UNSOUND = (SOFT.replace("BOUND", bound) for bound in ("Field(default=0.2, gt=0)", "0.2"))


def call(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))
