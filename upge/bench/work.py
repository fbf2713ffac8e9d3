"""The work that training benchmarks share: a model of SmolLM2-135M's shape, and scored rollouts of its size."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from accelerate import Accelerator
from torch import Tensor

from upge.model.loading import load_policy
from upge.recipe.resolve import load
from upge.recipe.schema import Recipe
from upge.train.learner import Learner, open_learner
from upge.types import Problem, Trajectory

if TYPE_CHECKING:
    from upge.train.learner import Learner

Gradients = dict[str, Tensor]
"""By the parameter's name."""


def of_learner(learner: Learner, step: Callable[[], None]) -> Gradients:
    """The gradients that `step`, one of this learner's, leaves to its optimizer."""
    optimization = learner.optimization
    return of_step(step, optimization.strategy.adamw, optimization.model)


def of_step(step: Callable[[], None], optimizer: torch.optim.Optimizer, model: torch.nn.Module) -> Gradients:
    """The gradients of the model that `step` leaves to the optimizer."""
    seen: Gradients = {}

    def look(*_: object) -> None:
        seen.update((name, p.grad.clone()) for name, p in model.named_parameters() if p.grad is not None)

    hook = optimizer.register_step_pre_hook(look)
    try:
        step()
    finally:
        hook.remove()
    return seen


def distance(ours: Gradients, theirs: Gradients) -> float:
    """‖ours − theirs‖ / ‖theirs‖ over all parameters. Raises ValueError where they aren't of the same ones."""
    if ours.keys() != theirs.keys():
        raise ValueError(f"gradients of different parameters: {sorted(ours.keys() ^ theirs.keys())}")
    apart = sum(float((ours[name].double() - theirs[name].double()).square().sum()) for name in theirs)
    return float((apart / sum(float(x.double().square().sum()) for x in theirs.values())) ** 0.5)


SMOLLM2: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "vocab_size": 49152,
    "max_position_embeddings": 8192,
    "rope_parameters": {"rope_type": "default", "rope_theta": 100000.0},
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": True,
    "initializer_range": 0.04,
}
"""SmolLM2-135M, with random weights: time and memory don't depend on them."""

RECIPE = "bench/step"
"""What is trained unless a benchmark has a recipe of its own."""


@dataclass(frozen=True)
class Work:
    """One rollout batch, drawn from `seed`.

    Attributes:
        prompts, samples: how many, and how many responses to each.
        prompt_tokens: the length of every prompt, give or take an eighth.
        shortest, longest: the bounds of a response's length, tokens.
        signal: the share of the prompts whose responses don't all have the same reward.
        shape: the model's configuration.
    """

    prompts: int = 4
    samples: int = 8
    prompt_tokens: int = 128
    shortest: int = 16
    longest: int = 128
    signal: float = 0.5
    seed: int = 0
    shape: Mapping[str, Any] = field(default_factory=lambda: SMOLLM2)

    @cached_property
    def trajectories(self) -> list[Trajectory]:
        """The scored rollouts, those of a prompt together."""
        random = torch.Generator().manual_seed(self.seed)

        def text(low: int, high: int) -> tuple[int, ...]:
            length = int(torch.randint(low, high + 1, (), generator=random))
            return tuple(torch.randint(0, self.shape["vocab_size"], (length,), generator=random).tolist())

        slack, rows = self.prompt_tokens // 8, []
        for group in range(self.prompts):
            problem = Problem(str(group), "?", "")
            prompt = text(self.prompt_tokens - slack, self.prompt_tokens + slack)
            informative = group < round(self.prompts * self.signal)
            for sample in range(self.samples):
                response, reward = text(self.shortest, self.longest), float(informative and sample % 2)
                rows.append(Trajectory(problem, prompt, response, "", reward, False, sample=sample, group=group))
        return rows

    @property
    def tokens(self) -> int:
        """All tokens, each prompt counted once for every response to it."""
        return sum(len(trajectory.prompt) + len(trajectory.response) for trajectory in self.trajectories)

    def recipe(self, name: str = RECIPE) -> Recipe:
        """A shipped recipe over the model, whose optimizer steps move nothing: lr 0."""
        model = {"path": None, "config": dict(self.shape), "tokenizer": "upge_parts:data/lab/base"}
        settings = [f"model={json.dumps(model)}", "optimizer.lr=0.0", "optimizer.clip_norm=null", "train.threads=null"]
        return load(name, [*settings, f"rollout.max_tokens={self.longest}"])

    def learner(self, recipe: Recipe) -> Learner:
        """A learner for the trajectories, on the CPU."""
        return open_learner(recipe, load_policy(**recipe.policy_arguments()), Accelerator(cpu=True))
