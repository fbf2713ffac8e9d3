"""What a run gives its optimizer is the gradient of `Estimator.loss` on the whole rollout batch, however it is cut."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from support import tiny

import upge
from upge.bench.work import of_learner
from upge.model.loading import load_policy
from upge.rollouts.rollout_batch import RolloutBatch
from upge.train.learner import Learner, open_learner
from upge.train.trainer import learn
from upge.types import Problem, Trajectory

TERM: dict[str, Any] = {
    "source": "rollouts",
    "denominator": "current",
    "advantage": "group_norm",
    "reduction": "sequence_mean",
}


CLIP = {"use": "clip", "low": 0.2, "high": 0.2}


class AboveTheGroup(upge.Mask):
    """Tokens whose log-prob is above the mean of their prompt's, over all of its trajectories."""

    needs = frozenset({"logp"})
    scope = "group"

    def __call__(self, b: upge.View) -> torch.Tensor:
        mean = b.per_prompt(b.per_trajectory(b.logp)) / b.per_prompt(b.length)
        return (b.logp > b.to_tokens(b.to_trajectories(mean))).to(b.dtype)


class SomeOfTheStep(upge.Mask):
    """A third of the tokens of rollouts with an advantage, by chance, and those of the largest entropy in the step."""

    needs = frozenset({"entropy"})
    scope = "step"

    def __call__(self, b: upge.View) -> torch.Tensor:
        some = b.top(b.noise, b.share(1 / 3), where=b.advantage != 0)
        return (some | (b.entropy >= b.quantile(b.entropy, 0.8))).to(b.dtype)


def trajectories() -> list[Trajectory]:
    """Three prompts: one has a rollout whose advantage is 0, one has none whose advantage isn't."""
    rewards = [(0.0, 0.5, 1.0), (1.0, 1.0, 1.0), (1.0, 0.0, 0.0)]
    draw = torch.Generator().manual_seed(0)
    return [
        Trajectory(
            Problem(f"p{group}", "?", "a"),
            (2, 3 + group),
            tuple(torch.randint(2, 7, (3 + sample,), generator=draw).tolist()),
            "",
            reward,
            demonstration=False,
            sample=sample,
            group=group,
        )
        for group, its in enumerate(rewards)
        for sample, reward in enumerate(its)
    ]


def opened(folder: Path, mask: str | dict[str, Any], budget: int) -> Learner:
    path = tiny.recipe(
        folder,
        tiny.GPT2,  # whose norms keep float64
        estimator={"terms": {"rl": TERM | {"mask": mask}}},
        model={"dtype": "float64"},
        train={"micro_batch_tokens": budget, "minibatches": 1, "epochs": 1},
        optimizer={"lr": 0.0, "clip_norm": 1e9},
    )
    recipe = upge.load(path)
    return open_learner(recipe, load_policy(**recipe.policy_arguments()), Accelerator(cpu=True))


@pytest.mark.parametrize("budget", [1, 20, 4096])
@pytest.mark.parametrize(
    "mask", ["none", {"use": "clip", "low": 0.2, "high": 0.2}, "above_the_group", "some_of_the_step"], ids=str
)
def test_a_step_has_the_gradient_of_the_whole_loss(
    tmp_path: Path, fresh_registry: None, mask: str | dict[str, Any], budget: int
) -> None:
    upge.register("above_the_group")(AboveTheGroup)
    upge.register("some_of_the_step")(SomeOfTheStep)
    learner = opened(tmp_path, mask, budget)
    seen = of_learner(learner, lambda: learn(learner, 0, trajectories()))
    policy, estimator = learner.policy, learner.recipe.estimator
    whole = RolloutBatch.of(trajectories(), torch.device("cpu"), torch.float64, seed=learner.recipe.train.seed, step=0)
    logp, entropy = policy.log_probs(whole.sequences, torch.ones(9, dtype=torch.float64), entropy=True)
    loss = estimator.loss(replace(whole.batch, logp=logp, entropy=entropy))
    named = dict(policy.model.named_parameters())
    wanted = dict(zip(named, torch.autograd.grad(loss, list(named.values()), allow_unused=True), strict=True))
    assert seen.keys() == {name for name, gradient in wanted.items() if gradient is not None}
    assert any(gradient.abs().max() > 1e-6 for gradient in seen.values())
    for name, gradient in seen.items():
        torch.testing.assert_close(gradient, wanted[name], rtol=1e-9, atol=1e-12)
