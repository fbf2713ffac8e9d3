"""The table of law 1: for each method the estimator as a recipe writes it, and the textbook's loss of the same batch.

A new method is one function in a textbook and one entry here; a shipped recipe's has the name of its file.
"""

from __future__ import annotations

from typing import Any

import torch
from support import textbook, textbook_mixed, textbook_rl
from support.method_entries import BUDGET, CLIP, RL, SFT, Given, Method, Uncertain, method
from torch import Tensor

from upge.testing import Padded

__all__ = ["BUDGET", "CLIP", "METHODS", "RL", "SFT", "Given", "Method", "Uncertain"]


def _grpo(p: Padded, epsilon: float = 0.2) -> Tensor:
    return textbook.grpo(p.logp, p.old_logp, p.mask, p.reward, p.group, epsilon)


def _dr_grpo(p: Padded) -> Tensor:
    return textbook.dr_grpo(p.logp, p.old_logp, p.mask, p.reward, p.group, length=BUDGET)


def _hybrid(p: Padded, gate: float) -> Tensor:
    return textbook.hybrid(p.logp, p.old_logp, p.mask, p.reward, p.group, p.demonstration, gate, length=BUDGET)


def _hpt_switch(gate: float) -> dict[str, Any]:
    return {"use": "success_rate", "threshold": gate, "above": "rl", "otherwise": "sft"}


_HPT = {
    "rl": {**RL, "advantage": "group_norm", "reduction": {"use": "constant", "length": BUDGET}},
    "sft": {**SFT, "reduction": "sequence_mean"},
}

GRPO = {**RL, "advantage": "group_norm", "reduction": "sequence_mean"}
PLAIN = {"source": "rollouts", "denominator": "current"}

_LUFFY = {"advantage": {"use": "group_mean", "over": "all"}, "reduction": {"use": "constant", "length": BUDGET}}
_PHASES = {"use": "phases", "first": "sft", "then": "rl", "steps": 32}


def _penalty(estimator: str, denominator: str, reduction: str) -> dict[str, Any]:
    advantage = {"use": "kl", "estimator": estimator, "coefficient": 0.04}
    return {"source": "rollouts", "denominator": denominator, "advantage": advantage, "reduction": reduction}


def _sequence_ratio(p: Padded, product: bool = False) -> Tensor:
    """(B,) the ratio of each row."""
    log_ratio = ((p.logp - p.old_logp) * p.mask).sum(1)
    return torch.exp(log_ratio if product else log_ratio / p.mask.sum(1))


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
    "ppo, advantages given": method(
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
    "drgrpo": method(
        lambda p: _dr_grpo(p.rollouts),
        clipped=(0.8, 1.2),
        terms={"rl": {**RL, "advantage": "group_mean", "reduction": {"use": "constant", "length": BUDGET}}},
    ),
    "hpt": method(lambda p: _hybrid(p, 0.0), clipped=(0.8, 1.2), switch=_hpt_switch(0.0), terms=_HPT),
    "hpt, gate 2/8": method(lambda p: _hybrid(p, 0.25), clipped=(0.8, 1.2), switch=_hpt_switch(0.25), terms=_HPT),
    "hpt_upt": method(
        lambda p: textbook.hybrid_as_its_code_runs_it(
            p.logp, p.old_logp, p.entropy, p.mask, p.reward, p.group, p.demonstration, length=BUDGET
        ),
        switch=_hpt_switch(0.0),
        terms={
            "rl": {
                "source": "rollouts",
                "denominator": "old",
                "advantage": "group_mean",
                "reduction": {"use": "constant", "length": BUDGET, "per": "none", "count": "active"},
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
    "rloo": method(
        lambda p: textbook_rl.leave_one_out(p.rollouts),
        terms={"rl": {**PLAIN, "advantage": "leave_one_out", "reduction": "sequence_sum"}},
    ),
    "rloo, demonstrations held against rollouts": method(
        textbook_rl.leave_one_out,
        terms={"rl": {**PLAIN, "source": "all", "advantage": "leave_one_out", "reduction": "sequence_sum"}},
    ),
    "rollouts pay for length and divergence": method(
        lambda p: textbook_rl.priced(p, 2, 4, 0.1),
        shaping=[
            {"use": "overlong", "soft_limit": 2, "limit": 4},
            {"use": "kl_in_reward", "coefficient": 0.1},
        ],
        terms={
            "rl": {
                **PLAIN,
                "source": "all",
                "advantage": {"use": "group_mean", "over": "all"},
                "reduction": "sequence_sum",
            }
        },
    ),
    "ppo": method(
        lambda p: textbook_rl.ppo(p.rollouts),
        clipped=(0.8, 1.2),
        terms={"rl": {**RL, "advantage": {"use": "gae", "gamma": 1.0, "lambda": 1.0}, "reduction": "token_mean"}},
    ),
    "ppo, discounted": method(
        lambda p: textbook_rl.ppo(p.rollouts, 0.9, 0.7),
        clipped=(0.8, 1.2),
        terms={"rl": {**RL, "advantage": {"use": "gae", "gamma": 0.9, "lambda": 0.7}, "reduction": "token_mean"}},
    ),
    "ppo, whitened": method(
        lambda p: textbook_rl.ppo(p.rollouts, 1.0, 0.95, whiten=True),
        clipped=(0.8, 1.2),
        terms={"rl": {**RL, "advantage": {"use": "gae", "lambda": 0.95, "whiten": True}, "reduction": "token_mean"}},
    ),
    "ppo, dual clip": method(
        lambda p: textbook_rl.dual_clipped(p.rollouts, p.rollouts.value, 0.2, 3.0),
        clipped=(0.8, 1.2, 3.0),
        terms={
            "rl": {
                **RL,
                "mask": {"use": "dual_clip", "low": 0.2, "high": 0.2, "ratio_max": 3.0},
                "advantage": Given(),
                "reduction": "token_mean",
            }
        },
    ),
    "grpo_kl": method(
        lambda p: textbook_rl.grpo_with_penalty(p.rollouts, 0.04),
        clipped=(0.8, 1.2),
        terms={"rl": GRPO, "kl": _penalty("k3", "current", "sequence_mean")},
    ),
    "grpo_kl, k2": method(
        lambda p: textbook_rl.grpo_with_penalty(p.rollouts, 0.04, "k2"),
        clipped=(0.8, 1.2),
        terms={"rl": GRPO, "kl": _penalty("k2", "current", "sequence_mean")},
    ),
    "corrected penalty": method(
        lambda p: textbook_rl.corrected_penalty(p.rollouts, 0.04),
        terms={"kl": _penalty("k2", "old", "token_mean")},
    ),
    "dapo": method(
        lambda p: textbook_rl.dapo(p.rollouts, soft=3, limit=BUDGET),
        clipped=(0.8, 1.28),
        switch={"use": "informative", "keep": "rl"},
        shaping={"use": "overlong", "soft_limit": 3, "limit": BUDGET},
        terms={"rl": {**GRPO, "mask": {**CLIP, "high": 0.28}, "reduction": "token_mean"}},
    ),
    "a mean over prompts": method(
        lambda p: textbook_rl.mean_over_prompts(p.rollouts),
        clipped=(0.8, 1.28),
        terms={"rl": {**GRPO, "mask": {**CLIP, "high": 0.28}, "reduction": "prompt_mean"}},
    ),
    "reinforce_pp": method(
        lambda p: textbook_rl.reinforce_plus_plus(p.rollouts, 0.01),
        clipped=(0.8, 1.2),
        shaping={"use": "kl_in_reward", "coefficient": 0.01},
        terms={"rl": {**RL, "advantage": "batch_norm", "reduction": "token_mean"}},
    ),
    "reinforce_pp, with a baseline": method(
        lambda p: textbook_rl.reinforce_plus_plus(p.rollouts, 0.5, baseline=True),
        clipped=(0.8, 1.2),
        shaping={"use": "kl_in_reward", "coefficient": 0.5},
        terms={"rl": {**RL, "advantage": {"use": "batch_norm", "baseline": "group_mean"}, "reduction": "token_mean"}},
    ),
    "cispo": method(
        lambda p: textbook_rl.cispo(p.rollouts, 5.0),
        clipped=(5.0,),
        terms={"rl": {**GRPO, "mask": {"use": "cap", "ratio_max": 5.0}, "reduction": "token_mean"}},
    ),
    "cispo, masked": method(
        lambda p: textbook_rl.masked_cis(p.rollouts, 0.2, 0.28),
        clipped=(0.8, 1.28),
        terms={"rl": {**GRPO, "mask": {"use": "cis_mask", "low": 0.2, "high": 0.28}, "reduction": "token_mean"}},
    ),
    "gspo": method(
        lambda p: textbook_rl.gspo(p.rollouts),
        clipped=(1 - 3e-4, 1 + 4e-4),
        ratio=_sequence_ratio,
        terms={"rl": {**GRPO, "mask": {"use": "clip", "low": 3e-4, "high": 4e-4}, "denominator": "sequence"}},
    ),
    "gspo, products": method(
        lambda p: textbook_rl.gspo(p.rollouts, 0.5, 1.0, product=True),
        clipped=(0.5, 2.0),
        ratio=lambda p: _sequence_ratio(p, product=True),
        terms={
            "rl": {
                **GRPO,
                "mask": {"use": "clip", "low": 0.5, "high": 1.0},
                "denominator": {"use": "sequence", "of": "product"},
                "reduction": "sequence_sum",
            }
        },
    ),
    "grpo_tis": method(
        lambda p: textbook_rl.corrected_grpo(p.rollouts, 2.0),
        clipped=(0.8, 1.2),
        terms={"rl": {**GRPO, "mask": [CLIP, {"use": "truncated_importance", "cap": 2.0}]}},
    ),
    "grpo_tis, a tight cap": method(
        lambda p: textbook_rl.corrected_grpo(p.rollouts, 1.01),
        clipped=(0.8, 1.2),
        terms={"rl": {**GRPO, "mask": [CLIP, {"use": "truncated_importance", "cap": 1.01}]}},
    ),
    "grpo_tis, sequences": method(
        lambda p: textbook_rl.corrected_grpo(p.rollouts, 1.02, sequence=True),
        clipped=(0.8, 1.2),
        terms={"rl": {**GRPO, "mask": [CLIP, {"use": "truncated_importance", "cap": 1.02, "level": "sequence"}]}},
    ),
    "grpo over the engine's probabilities": method(
        lambda p: textbook.grpo(
            p.rollouts.logp, p.rollouts.rollout_logp, p.rollouts.mask, p.rollouts.reward, p.rollouts.group
        ),
        clipped=(0.8, 1.2),
        ratio=lambda p: (p.logp - p.rollout_logp).exp()[p.mask],
        terms={"rl": {**GRPO, "denominator": "rollout"}},
    ),
    "luffy": method(
        lambda p: textbook_mixed.luffy(p, BUDGET, 0.1),
        terms={
            "rl": {"source": "rollouts", "denominator": "old", **_LUFFY},
            "off": {
                "source": "demonstrations",
                "mask": {"use": "shaping", "gamma": 0.1},
                "denominator": "one",
                **_LUFFY,
                "count_with": "rl",
            },
        },
    ),
    "srft": method(
        textbook_mixed.srft,
        terms={
            "sft": {
                **SFT,
                "mask": {"use": "entropy_weight", "sign": -1, "scale": 0.5},
                "reduction": "token_mean",
            },
            "off": {
                "source": "demonstrations",
                "denominator": "one",
                "advantage": {"use": "group_norm", "over": "all"},
                "reduction": "token_mean",
            },
            "rl": {
                **PLAIN,
                "mask": {"use": "entropy_weight", "sign": 1, "scale": 0.1, "where": "positive"},
                "advantage": "signed",
                "reduction": "token_mean",
            },
        },
    ),
    "hpt_soft": method(
        lambda p: textbook_mixed.soft_hybrid(p, BUDGET),
        clipped=(0.8, 1.2),
        switch={"use": "linear", "success": "rl", "failure": "sft"},
        terms=_HPT,
    ),
    "sft_then_grpo": method(
        lambda p: textbook.supervised(p.demonstrations.logp, p.demonstrations.mask),
        step=31,
        switch=_PHASES,
        terms={"rl": GRPO, "sft": {**SFT, "reduction": "token_mean"}},
    ),
    "sft_then_grpo, later": method(
        lambda p: _grpo(p.rollouts),
        clipped=(0.8, 1.2),
        step=32,
        switch=_PHASES,
        terms={"rl": GRPO, "sft": {**SFT, "reduction": "token_mean"}},
    ),
    "a weight that moves": method(
        lambda p: 0.75 * _grpo(p.rollouts) + 0.25 * textbook.supervised(p.demonstrations.logp, p.demonstrations.mask),
        clipped=(0.8, 1.2),
        step=5,
        switch={
            "use": "schedule",
            "weights": {"rl": {"start": 0.5, "end": 1.0, "steps": 10}, "sft": {"start": 0.5, "end": 0.0, "steps": 10}},
        },
        terms={"rl": GRPO, "sft": {**SFT, "reduction": "token_mean"}},
    ),
}
