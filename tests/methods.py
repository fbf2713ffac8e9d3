"""The table of law 1: for each method the estimator as a recipe writes it, and the textbook's loss of the same batch.

A new method is one function in `textbook.py` and one entry here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import textbook
import torch
from torch import Tensor

from upge import Advantage, Batch, Mask, View


@dataclass(frozen=True)
class Padded:
    """A batch as papers write it: (B, L), a row a trajectory, zeros to its right."""

    logp: Tensor
    old_logp: Tensor
    entropy: Tensor
    value: Tensor
    mask: Tensor
    reward: Tensor
    group: Tensor
    demonstration: Tensor

    @classmethod
    def of(cls, batch: Batch) -> Padded:
        """Padded copies that lead gradient back to the flat `logp` and `entropy`."""
        assert batch.logp is not None
        lengths = [int((batch.trajectory == i).sum()) for i in range(len(batch.reward))]
        mask = torch.arange(max(lengths, default=0)) < torch.tensor(lengths, dtype=torch.int64)[:, None]

        def pad(flat: Tensor | None) -> Tensor:
            assert flat is not None
            return torch.zeros(mask.shape, dtype=flat.dtype).masked_scatter(mask, flat)

        old = batch.logp.detach() if batch.old_logp is None else batch.old_logp
        numbers = (pad(batch.logp), pad(old), pad(batch.entropy), pad(batch.value))
        return cls(*numbers, mask, batch.reward, batch.group, batch.demonstration)

    def rows(self, chosen: Tensor) -> Padded:
        """The rows that `chosen` (B,) marks."""
        return Padded(*(getattr(self, name)[chosen] for name in self.__dataclass_fields__))

    @property
    def rollouts(self) -> Padded:
        return self.rows(~self.demonstration)

    @property
    def demonstrations(self) -> Padded:
        return self.rows(self.demonstration)


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
    """Ratios at which the loss has a kink."""


CLIP = {"use": "clip", "low": 0.2, "high": 0.2}
RL = {"source": "rollouts", "mask": CLIP, "denominator": "old"}
SFT = {"source": "demonstrations", "denominator": "current", "advantage": "one"}


def method(loss: Callable[[Padded], Tensor], *, clipped: tuple[float, ...] = (), **estimator: Any) -> Method:
    return Method(estimator, loss, clipped)


def _grpo(p: Padded, epsilon: float = 0.2) -> Tensor:
    return textbook.grpo(p.logp, p.old_logp, p.mask, p.reward, p.group, epsilon)


def _dr_grpo(p: Padded) -> Tensor:
    return textbook.dr_grpo(p.logp, p.old_logp, p.mask, p.reward, p.group, length=7)


def _hybrid(p: Padded, gate: float) -> Tensor:
    return textbook.hybrid(p.logp, p.old_logp, p.mask, p.reward, p.group, p.demonstration, gate, length=7)


def _hpt_switch(gate: float) -> dict[str, Any]:
    return {"use": "success_rate", "threshold": gate, "above": "rl", "otherwise": "sft"}


_HPT = {
    "rl": {**RL, "advantage": "group_norm", "reduction": {"use": "constant", "length": 7}},
    "sft": {**SFT, "reduction": "sequence_mean"},
}

METHODS: dict[str, Method] = {
    "sft": method(
        lambda p: textbook.supervised(p.demonstrations.logp, p.demonstrations.mask),
        terms={"sft": {**SFT, "reduction": "token_mean"}},
    ),
    "dft": method(
        lambda p: textbook.dynamic_fine_tuning(p.demonstrations.logp, p.demonstrations.mask),
        terms={"sft": {**SFT, "denominator": "one", "reduction": "token_mean"}},
    ),
    "imitation by uncertainty": method(
        lambda p: textbook.imitation_by_uncertainty(p.demonstrations.logp, p.demonstrations.mask),
        terms={"sft": {**SFT, "mask": Uncertain(), "reduction": "token_mean"}},
    ),
    "reinforce": method(
        lambda p: textbook.reinforce(p.rollouts.logp, p.rollouts.mask, p.rollouts.reward),
        terms={
            "rl": {"source": "rollouts", "denominator": "current", "advantage": "signed", "reduction": "sequence_sum"}
        },
    ),
    "ppo": method(
        lambda p: textbook.ppo(p.rollouts.logp, p.rollouts.old_logp, p.rollouts.mask, p.rollouts.value, 0.2),
        clipped=(0.8, 1.2),
        terms={"rl": {**RL, "advantage": Given(), "reduction": "token_mean"}},
    ),
    "grpo": method(
        lambda p: _grpo(p.rollouts),
        clipped=(0.8, 1.2),
        terms={"rl": {**RL, "advantage": "group_norm", "reduction": "sequence_mean"}},
    ),
    # Without a margin the boundary itself is reachable: on-policy every ratio is exactly 1 = 1 + high = 1 − low.
    "grpo without margin": method(
        lambda p: _grpo(p.rollouts, epsilon=0.0),
        clipped=(1.0,),
        terms={
            "rl": {
                **RL,
                "mask": {"use": "clip", "low": 0.0, "high": 0.0},
                "advantage": "group_norm",
                "reduction": "sequence_mean",
            }
        },
    ),
    "dr_grpo": method(
        lambda p: _dr_grpo(p.rollouts),
        clipped=(0.8, 1.2),
        terms={"rl": {**RL, "advantage": "group_mean", "reduction": {"use": "constant", "length": 7}}},
    ),
    "hpt": method(lambda p: _hybrid(p, 0.0), clipped=(0.8, 1.2), switch=_hpt_switch(0.0), terms=_HPT),
    "hpt, gate 2/8": method(lambda p: _hybrid(p, 0.25), clipped=(0.8, 1.2), switch=_hpt_switch(0.25), terms=_HPT),
    "hpt as its code runs it": method(
        lambda p: textbook.hybrid_as_its_code_runs_it(
            p.logp, p.old_logp, p.entropy, p.mask, p.reward, p.group, p.demonstration, length=8192
        ),
        switch=_hpt_switch(0.0),
        terms={
            "rl": {
                "source": "rollouts",
                "denominator": "old",
                "advantage": "group_mean",
                "reduction": {"use": "constant", "length": 8192, "per": "none", "count": "active"},
            },
            "sft": {**SFT, "reduction": {"use": "token_mean", "count": "active"}},
            "entropy": {
                "source": "kept",
                "denominator": "current",
                "advantage": "one",
                "reduction": "token_mean",
                "direction": "entropy",
                "weight": 0.001,
            },
        },
    ),
    "grpo, biased": method(
        lambda p: textbook.grpo(
            *(getattr(p.rollouts, x) for x in ("logp", "old_logp", "mask", "reward", "group")), 0.2, False, 1e-4
        ),
        clipped=(0.8, 1.2),
        terms={
            "rl": {
                **RL,
                "advantage": {"use": "group_norm", "unbiased": False, "epsilon": 1e-4},
                "reduction": "sequence_mean",
            }
        },
    ),
    "grpo over rollouts and demonstrations": method(
        _grpo,
        clipped=(0.8, 1.2),
        terms={
            "rl": {
                **RL,
                "source": "all",
                "advantage": {"use": "group_norm", "over": "all"},
                "reduction": "sequence_mean",
            }
        },
    ),
    "grpo, masked twice": method(
        lambda p: _grpo(p.rollouts),
        clipped=(0.8, 1.2),
        terms={"rl": {**RL, "mask": [CLIP, "none"], "advantage": "group_norm", "reduction": "sequence_mean"}},
    ),
    "grpo with an entropy bonus": method(
        lambda p: _grpo(p.rollouts) + textbook.entropy_bonus(p.rollouts.entropy, p.rollouts.mask, 0.01),
        clipped=(0.8, 1.2),
        terms={
            "rl": {**RL, "advantage": "group_norm", "reduction": "sequence_mean"},
            "entropy": {
                "source": "rollouts",
                "denominator": "current",
                "advantage": "one",
                "reduction": "token_mean",
                "direction": "entropy",
                "weight": 0.01,
            },
        },
    ),
    # Both streams counted together, as LUFFY counts them: means over all rows of either source.
    "half imitation, half reinforcement": method(
        lambda p: (
            (
                0.5 * textbook.reinforce(p.rollouts.logp, p.rollouts.mask, p.rollouts.reward) * len(p.rollouts.reward)
                - 0.25 * p.demonstrations.logp[p.demonstrations.mask].sum()
            )
            / max(len(p.reward), 1)
        ),
        switch=[
            {"use": "always", "weights": {"rl": 0.25, "sft": 0.25}},
            {"use": "always", "weights": {"rl": 2.0}},
        ],
        terms={
            "rl": {"source": "rollouts", "denominator": "current", "advantage": "signed", "reduction": "sequence_sum"},
            "sft": {**SFT, "reduction": "sequence_sum", "count_with": "rl"},
        },
    ),
}
