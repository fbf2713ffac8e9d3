"""The work that training benchmarks share: a model of SmolLM2-135M's shape, and scored rollouts of its size."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from accelerate import Accelerator

from upge.flow import Problem, Trajectory
from upge.policy.loading import open_policy
from upge.recipe import Recipe, load
from upge.run.learning import Learner
from upge.run.packing import Grouped
from upge.run.trainer import open_learner

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
    def grouped(self) -> Grouped:
        """The trajectories, each with its prompt's number."""
        random = torch.Generator().manual_seed(self.seed)

        def text(low: int, high: int) -> tuple[int, ...]:
            length = int(torch.randint(low, high + 1, (), generator=random))
            return tuple(torch.randint(0, self.shape["vocab_size"], (length,), generator=random).tolist())

        slack, found = self.prompt_tokens // 8, []
        for group in range(self.prompts):
            problem = Problem(str(group), "?", "")
            prompt = text(self.prompt_tokens - slack, self.prompt_tokens + slack)
            informative = group < round(self.prompts * self.signal)
            for sample in range(self.samples):
                response, reward = text(self.shortest, self.longest), float(informative and sample % 2)
                found.append((group, Trajectory(problem, prompt, response, "", reward, False, sample=sample)))
        return found

    @property
    def tokens(self) -> int:
        """All tokens, each prompt counted once for every response to it."""
        return sum(len(each.prompt) + len(each.response) for _, each in self.grouped)

    def recipe(self, name: str = RECIPE) -> Recipe:
        """A shipped recipe over the model, whose optimizer steps move nothing: lr 0."""
        model = {"path": None, "config": dict(self.shape), "tokenizer": "upge_parts:data/lab/base"}
        settings = [f"model={json.dumps(model)}", "optimizer.lr=0.0", "optimizer.clip_norm=null", "train.threads=null"]
        return load(name, [*settings, f"rollout.max_tokens={self.longest}"])

    def learner(self, recipe: Recipe) -> Learner:
        """What learns from the trajectories, on this machine's processor."""
        return open_learner(recipe, open_policy(recipe), Accelerator(cpu=True))
