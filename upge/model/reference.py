"""A frozen reference model: a copy of the policy as it starts, another model, or the policy without its adapter."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from contextlib import nullcontext

import torch
from torch import Tensor

from upge.model.loading import belonging, load
from upge.model.lora import adapted, without_adapter
from upge.model.padding import Tokens
from upge.model.policy import Policy


class Reference:
    """The reference model π_0, which is never trained."""

    def __init__(self, policy: Policy, *, adapter: bool = False) -> None:
        self.policy, self.adapter = policy, adapter

    @torch.no_grad()
    def log_probs(self, sequences: Sequence[tuple[Tokens, Tokens]], temperature: Tensor) -> Tensor:
        """(T,) log π_0 of each response token, nats; see `upge.model.log_probs`."""
        with without_adapter(self.policy.model) if self.adapter else nullcontext():
            return self.policy.log_probs(sequences, temperature)[0]


def load_reference(policy: Policy, path: str | None = None) -> Reference:
    """The reference of a policy that has not been trained yet.

    Args:
        policy: the policy as it starts. path: another model, as `load` takes it, of the same vocabulary.

    With LoRA the policy without its adapter is the policy as it started, so nothing is copied.
    Raises ModelError where `path` can't be opened, or has another vocabulary.
    """
    if path is not None:
        belonging(path, policy)
        dtype = str(policy.model.dtype).removeprefix("torch.")
        return Reference(_frozen(load(path, dtype=dtype)))
    if adapted(policy.model):
        return Reference(policy, adapter=True)
    return Reference(_frozen(Policy(copy.deepcopy(policy.model), policy.tokenizer)))


def _frozen(policy: Policy) -> Policy:
    policy.model.requires_grad_(False)
    return policy
