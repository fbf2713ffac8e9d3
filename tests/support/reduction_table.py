"""What reduces to what, as data: `test_reductions.py` checks every line, `docs/tables.py` prints them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import torch

import upge
from upge import Batch, Estimator

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Spelled:
    """A shipped recipe with overrides of its estimator, and how the table calls it."""

    name: str
    recipe: str
    overrides: tuple[str, ...] = ()

    def __str__(self) -> str:
        return self.name

    @property
    def estimator(self) -> Estimator:
        return _estimator(self.recipe, self.overrides)


@cache
def _estimator(recipe: str, overrides: tuple[str, ...]) -> Estimator:
    budget = ["rollout.max_tokens=7", *(["estimator.shaping.soft_limit=6"] if recipe == "dapo" else [])]
    return upge.load(ROOT / "recipes" / f"{recipe}.yaml", [*budget, *overrides]).estimator


@dataclass(frozen=True)
class Condition:
    """When two estimators are one: what a batch has to be made into for it to hold, and in words."""

    words: str
    make: Callable[[Batch], Batch]
    step: int = 0

    def __str__(self) -> str:
        return self.words

    @property
    def shapes_the_batch(self) -> bool:
        return self.make is not _any


@dataclass(frozen=True)
class Line:
    """`this` has the gradient of `that` under `when`."""

    this: Spelled
    that: Spelled
    when: Condition


def spelled(name: str, recipe: str, *overrides: str) -> Spelled:
    return Spelled(name, recipe, tuple(f"estimator.{each}" for each in overrides))


# Conditions.


def _any(batch: Batch) -> Batch:
    """A condition on the settings, the step, or on what all batches of these tests have in common."""
    return batch


def _on_policy(batch: Batch) -> Batch:
    return replace(batch, old_logp=None)


def _without_value(batch: Batch) -> Batch:
    return replace(batch, old_logp=None, value=torch.zeros_like(batch.reward)[batch.trajectory])


def _explored(batch: Batch) -> Batch:
    """Every prompt has rollouts, and every rollout a reward above 0."""
    explored = torch.zeros(batch.prompts, dtype=torch.bool)
    explored[batch.prompt[~batch.demonstration]] = True
    kept = batch.select(explored[batch.prompt])
    return replace(kept, reward=kept.reward.abs() + 0.125)


def _failed(batch: Batch) -> Batch:
    return replace(batch, reward=torch.where(batch.demonstration, batch.reward, 0))


def _solved_or_failed(batch: Batch) -> Batch:
    """All rollouts of every other prompt are right, those of the others wrong."""
    return replace(batch, reward=(batch.prompt % 2).to(batch.reward))


def _rollouts_only(batch: Batch) -> Batch:
    return replace(batch.select(~batch.demonstration), old_logp=None)


def _one_token(batch: Batch) -> Batch:
    """Only the first token of each trajectory."""
    first = batch.position == 0
    names = ("logp", "old_logp", "rollout_logp", "reference_logp", "entropy", "value", "trajectory")
    tensors = {name: getattr(batch, name) for name in names}
    return replace(batch, **{name: None if x is None else x[first] for name, x in tensors.items()})


def _pairs(batch: Batch) -> Batch:
    """Two rollouts for each prompt that has as many, nothing else."""
    number = torch.zeros(batch.size, dtype=torch.int64)
    for row in range(batch.size):
        earlier = (batch.prompt[:row] == batch.prompt[row]) & ~batch.demonstration[:row]
        number[row] = earlier.sum()
    first_two = batch.select(~batch.demonstration & (number < 2))
    count = torch.bincount(first_two.prompt, minlength=1)
    return first_two.select(count[first_two.prompt] == 2)


def _one_each(batch: Batch) -> Batch:
    """One rollout for each prompt."""
    seen: set[int] = set()
    rows = []
    for prompt, shown in zip(batch.prompt.tolist(), batch.demonstration.tolist(), strict=True):
        rows.append(not shown and prompt not in seen)
        seen |= set() if shown else {prompt}
    return batch.select(torch.tensor(rows, dtype=torch.bool))


def _exact_engine(batch: Batch) -> Batch:
    return replace(batch, rollout_logp=batch.logp if batch.old_logp is None else batch.old_logp)


def _signs(batch: Batch) -> Batch:
    return replace(batch, reward=torch.where(batch.reward > 0, 1.0, -1.0).to(batch.reward))


ALWAYS = Condition("always", _any)
ON_POLICY = Condition("on-policy: π_old = π_θ", _on_policy)
ONE_TOKEN = Condition("every trajectory is one token", _one_token)

RL = "terms.rl"
CLIPPED = f"{RL}.mask={{use: clip, low: 0.2, high: 0.2}}"
PLAIN = (f"{RL}.denominator=current", f"{RL}.mask=null")
GRPO = spelled("`grpo`", "grpo")
GRPO_TOKEN_MEAN = spelled("`grpo` with `token_mean`", "grpo", f"{RL}.reduction=token_mean")

REDUCTIONS = [
    Line(
        spelled("`ppo` (γ = λ = 1)", "ppo"),
        spelled(
            "`reinforce` on R, with `token_mean`", "reinforce", f"{RL}.advantage=reward", f"{RL}.reduction=token_mean"
        ),
        Condition("on-policy, and V ≡ 0", _without_value),
    ),
    Line(
        spelled("`ppo`, whitened (γ = λ = 1)", "ppo", f"{RL}.advantage.whiten=true"),
        spelled("`reinforce_pp` without its KL", "reinforce_pp", "shaping=null"),
        Condition("V ≡ 0", lambda b: replace(b, value=torch.zeros_like(b.reward)[b.trajectory])),
    ),
    Line(
        GRPO,
        spelled("the plain policy gradient with `group_norm` and `sequence_mean`", "grpo", *PLAIN),
        ON_POLICY,
    ),
    Line(spelled("`cispo`", "cispo"), GRPO_TOKEN_MEAN, ON_POLICY),
    Line(spelled("`gspo`", "gspo"), GRPO, ON_POLICY),
    Line(
        spelled("`gspo`", "gspo"),
        spelled("`grpo` with `gspo`'s bounds", "grpo", f"{RL}.mask={{use: clip, low: 3e-4, high: 4e-4}}"),
        ONE_TOKEN,
    ),
    Line(
        spelled("`dapo`", "dapo"),
        spelled(
            "`grpo` with `token_mean` and the bounds .2/.28",
            "grpo",
            f"{RL}.reduction=token_mean",
            f"{RL}.mask.high=0.28",
        ),
        Condition("no rollout is longer than the soft limit", _any),
    ),
    Line(
        spelled("`drgrpo`", "drgrpo"),
        spelled("`luffy`", "luffy"),
        Condition("on-policy, and there are no demonstrations", _rollouts_only),
    ),
    Line(
        spelled("`rloo`", "rloo"),
        spelled(
            "`reinforce` with `group_mean`, times n/(n − 1)",
            "reinforce",
            f"{RL}.advantage=group_mean",
            f"{RL}.weight=2.0",
        ),
        Condition("every group has n rollouts (here 2)", _pairs),
    ),
    Line(
        spelled("`reinforce`", "reinforce"),
        spelled("`reinforce` on R", "reinforce", f"{RL}.advantage=reward"),
        Condition("R is 1 or −1", _signs),
    ),
    Line(
        spelled("`dft`", "dft"),
        spelled(
            "`luffy`'s offline term counted by itself, without shaping, with Â = 1 and `token_mean`",
            "luffy",
            "terms.rl=null",
            "terms.off.mask=null",
            "terms.off.advantage=one",
            "terms.off.reduction=token_mean",
            "terms.off.count_with=null",
        ),
        ALWAYS,
    ),
    Line(
        spelled("`dft`", "dft"),
        spelled(
            "`srft`'s off-policy term with Â = 1", "srft", "terms.rl=null", "terms.sft=null", "terms.off.advantage=one"
        ),
        ALWAYS,
    ),
    Line(
        spelled("`hpt`", "hpt"),
        spelled("`grpo` with a `constant` reduction", "grpo", f"{RL}.reduction=constant"),
        Condition("every prompt is above the gate", _explored),
    ),
    Line(
        spelled("`hpt`", "hpt"),
        spelled("`sft` with `sequence_mean`", "sft", "terms.sft.reduction=sequence_mean"),
        Condition("no prompt is above the gate", _failed),
    ),
    Line(
        spelled("`hpt_soft`", "hpt_soft"),
        spelled("`hpt`", "hpt"),
        Condition("every prompt is all right (R = 1) or all wrong (R = 0)", _solved_or_failed),
    ),
    Line(
        spelled("`hpt_upt` without its entropy bonus", "hpt_upt", "terms.entropy=null"),
        spelled("`sft`", "sft"),
        Condition("no prompt is above the gate", _failed),
    ),
    Line(
        spelled("`sft_then_grpo`", "sft_then_grpo"),
        spelled("`sft`", "sft"),
        Condition("before its step 32", _any, step=31),
    ),
    Line(spelled("`sft_then_grpo`", "sft_then_grpo"), GRPO, Condition("from its step 32 on", _any, step=32)),
    Line(
        spelled("`grpo_kl`", "grpo_kl"),
        GRPO,
        Condition("π_θ = π_0, as at the first step", lambda b: replace(b, reference_logp=b.logp)),
    ),
    Line(spelled("`grpo_tis`", "grpo_tis"), GRPO, Condition("the engine's log-probs are the trainer's", _exact_engine)),
    Line(
        spelled("`grpo` over the denominator `rollout`", "grpo", f"{RL}.denominator=rollout"),
        GRPO,
        Condition("the engine's log-probs are the trainer's", _exact_engine),
    ),
    Line(
        spelled(
            "`grpo` without clip, with `truncated_importance` whose cap is out of reach",
            "grpo",
            f"{RL}.mask={{use: truncated_importance, cap: 1e30}}",
        ),
        spelled(
            "`grpo` without clip over the denominator `rollout`", "grpo", f"{RL}.mask=null", f"{RL}.denominator=rollout"
        ),
        Condition("log-ratios stay within ±20 nats", _any),
    ),
    Line(
        spelled(
            "`grpo` with `dual_clip`", "grpo", f"{RL}.mask={{use: dual_clip, low: 0.2, high: 0.2, ratio_max: 1e9}}"
        ),
        GRPO,
        Condition("no ratio reaches the third bound", _any),
    ),
    Line(
        spelled("`grpo` with `cis_mask`", "grpo", f"{RL}.mask={{use: cis_mask, low: 0.2, high: 1e9}}"),
        spelled("`grpo`", "grpo", f"{RL}.mask={{use: clip, low: 0.2, high: 1e9}}"),
        Condition("no ratio reaches the upper bound", _any),
    ),
    Line(
        spelled("`grpo` over `sequence` of products", "grpo", f"{RL}.denominator={{use: sequence, of: product}}"),
        GRPO,
        ONE_TOKEN,
    ),
    Line(GRPO, GRPO_TOKEN_MEAN, ONE_TOKEN),
    Line(
        spelled("`reinforce` with `prompt_mean`", "reinforce", f"{RL}.reduction=prompt_mean"),
        spelled("`reinforce` with `sequence_mean`", "reinforce", f"{RL}.reduction=sequence_mean"),
        Condition("every prompt has one rollout", _one_each),
    ),
]
