"""An estimator around one part, so that the laws of estimators can be asked of it."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from upge.batch import View
from upge.estimator import Estimator
from upge.parts import Advantage, Mask, Part, Reduction, Shaping, Switch


class Given(Advantage):
    """Advantages of both signs, given token by token in the batch's field `value`."""

    needs = frozenset({"value"})

    def __call__(self, b: View) -> Tensor:
        """(T,) the field."""
        return b.value


CLIP = {"use": "clip", "low": 0.2, "high": 0.2}
EXPLORE = {
    "source": "rollouts",
    "mask": CLIP,
    "denominator": "old",
    "advantage": "group_mean",
    "reduction": "sequence_mean",
}
IMITATE = {
    "source": "demonstrations",
    "denominator": "current",
    "advantage": "one",
    "reduction": "token_mean",
    "weight": 0.5,
}
GATE = {"use": "success_rate", "above": "explore", "otherwise": "imitate"}


def host(part: Part) -> Estimator:
    """An estimator in which this part has a say, among parts that distinguish tokens."""
    names = part.terms() if isinstance(part, Switch) else ("explore", "imitate")
    terms: dict[str, dict[str, Any]] = {
        name: dict(IMITATE if index % 2 else EXPLORE) for index, name in enumerate(sorted(names))
    }
    block: dict[str, Any] = {"terms": terms}
    if isinstance(part, Switch | Shaping):
        block[part.slot] = [part]
        return Estimator.model_validate(block)
    terms["explore"][part.slot] = part
    if isinstance(part, Mask):
        terms["explore"]["advantage"] = Given()
    if isinstance(part, Reduction):  # with a gate, so that some rows are inactive
        terms["imitate"]["reduction"] = part
        block["switch"] = [GATE]
    return Estimator.model_validate(block)
