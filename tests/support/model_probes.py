"""What the tests of the `model` block share: problems put to it, and ways to look at what a model does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers.modeling_layers import GradientCheckpointingLayer

from upge.model import ModelError, Policy, load

SEQUENCES = [((7, 8, 9), (10, 11, 12, 13)), ((20,), (21, 22)), ((30, 31), (32,))]
HOT = torch.ones(len(SEQUENCES))
SFT = {"source": "demonstrations", "denominator": "current", "advantage": "one", "reduction": "sequence_mean"}
GRPO = {"source": "rollouts", "denominator": "old", "advantage": "group_norm", "reduction": "constant"}
KL = {**GRPO, "denominator": "current", "advantage": {"use": "kl", "estimator": "k3", "coefficient": 0.04}}


def refusal(path: object = None, **given: Any) -> str:
    with pytest.raises(ModelError) as caught:
        load(None if path is None else str(path), **given)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def logits(model: Any, tokens: Any = ((5, 6, 7, 8),)) -> Tensor:
    with torch.no_grad():
        found: Tensor = model(input_ids=torch.tensor(tokens)).logits
        return found


def lines(folder: Path, phase: str = "train") -> list[dict[str, Any]]:
    logged = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line for line in logged if line["phase"] == phase]


def gradients(policy: Policy) -> dict[str, Tensor]:
    policy.model.zero_grad()
    logp, entropy = policy.log_probs(SEQUENCES, HOT, entropy=True)
    assert entropy is not None
    (logp.sum() + entropy.sum()).backward()
    return {name: x.grad.clone() for name, x in policy.model.named_parameters() if x.grad is not None}


def passes(policy: Policy) -> int:
    """How often the second half of a layer is entered for a gradient, over all layers."""
    count = 0

    def counted(*_: Any) -> None:
        nonlocal count
        count += torch.is_grad_enabled()

    layers = [module for module in policy.model.modules() if isinstance(module, GradientCheckpointingLayer)]
    handles = [layer.mlp.register_forward_pre_hook(counted) for layer in layers]
    gradients(policy)
    for handle in handles:
        handle.remove()
    return count
