"""What a line of law 1's table is made of: a method twice, and the pieces that estimators share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from upge import Advantage, Mask, View
from upge.testing import Padded


class Given(Advantage):
    """Advantages given token by token, in the batch's field `value`."""

    needs = frozenset({"value"})

    def __call__(self, b: View) -> Tensor:
        return b.value


class Uncertain(Mask):
    """π(1 − π): a mask that is a weight, and no trust region."""

    needs = frozenset({"logp"})

    def __call__(self, b: View) -> Tensor:
        return b.logp.exp() * (1 - b.logp.exp())


@dataclass(frozen=True)
class Method:
    """A method twice: as a recipe's `estimator` block, and as the textbook's loss of a padded batch."""

    estimator: dict[str, Any]
    loss: Callable[[Padded], Tensor]
    clipped: tuple[float, ...] = ()
    """Values of `ratio` at which the loss has a kink."""
    ratio: Callable[[Padded], Tensor] = lambda p: (p.logp - p.old_logp).exp()[p.mask]
    """What is compared with them: each token's ratio to the old policy, unless the method bounds another."""
    step: int = 0
    """The rollout batch at which the two are compared."""


CLIP = {"use": "clip", "low": 0.2, "high": 0.2}
RL = {"source": "rollouts", "mask": CLIP, "denominator": "old"}
SFT = {"source": "demonstrations", "denominator": "current", "advantage": "one"}
BUDGET = 7
"""The completion budget of the recipes in these tests."""


def method(
    loss: Callable[[Padded], Tensor],
    *,
    clipped: tuple[float, ...] = (),
    ratio: Callable[[Padded], Tensor] | None = None,
    step: int = 0,
    **estimator: Any,
) -> Method:
    """A method from its loss and the blocks of its estimator."""
    given = {} if ratio is None else {"ratio": ratio}
    return Method(estimator, loss, clipped, step=step, **given)
