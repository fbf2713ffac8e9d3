"""A critic: a token classifier with one output, the expected reward before each response token."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForTokenClassification

from upge.errors import ModelError
from upge.model import lora, shards
from upge.model.loading import belonging, explained, find
from upge.model.lora import plain_weights
from upge.model.padding import Tokens, collate, understood

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from upge.model.policy import Policy


class Critic:
    """A transformers token classifier with one label. Dropout stays off, as in the policy.

    Attributes: model: unwrapped. pad_id: what padding is made of.
    """

    def __init__(self, model: PreTrainedModel, pad_id: int = 0) -> None:
        self.model: PreTrainedModel = model.eval()
        self.pad_id = pad_id

    def values(
        self, sequences: Sequence[tuple[Tokens, Tokens]], *, forward: Callable[..., Any] | None = None
    ) -> Tensor:
        """(T,) V of the state before each response token, in units of the reward; the gradient flows.

        Args:
            sequences: N pairs (prompt ids, response ids).
            forward: what to call in place of `model` where it is wrapped.
        """
        batch = collate(sequences, self.pad_id, self.model.device)
        if batch.rows.numel() == 0:
            return torch.zeros(0, device=self.model.device)
        logits: Tensor = (forward or self.model)(input_ids=batch.tokens, **understood(self.model, batch)).logits
        values = logits.flatten()[batch.rows]
        return values if values.dtype == torch.float64 else values.float()

    def save(self, folder: str | Path, *, writes: bool = True) -> None:
        """Write the model in the Hub's format; `critic.path` opens it. See `Policy.save`."""
        weights = shards.weights(self.model, keep=writes) if shards.sharded(self.model) else None
        if writes:
            self.model.save_pretrained(folder, state_dict=weights)

    def try_saving(self, folder: str | Path, *, writes: bool = True) -> None:
        """Test `save` at a bounded cost: of a large model only the smallest tensor is written."""
        if sum(math.prod(shards.shape(x)) * x.itemsize for x in self.model.parameters()) <= shards.SMALL:
            self.save(folder, writes=writes)
            return
        smallest = min(self.model.named_parameters(), key=lambda item: math.prod(shards.shape(item[1])))
        weights = shards.whole([smallest], keep=writes)
        if writes:
            self.model.save_pretrained(folder, state_dict=weights)


def load_critic(policy: Policy, path: str | None = None) -> Critic:
    """A critic for a policy's tokens.

    Args:
        policy: whose vocabulary and type it shares. path: a token classifier or any model with a body, as `load` takes
            it (without it, the policy's own body is copied). What has no head yet gets one of zeros: V ≡ 0.

    Raises:
        ModelError: it can't be opened, its architecture has no token classifier, or its vocabulary is another.
    """
    return Critic(_copied(policy) if path is None else _opened(policy, path), policy.pad_id)


def _copied(policy: Policy) -> PreTrainedModel:
    """The policy's body under a head of zeros."""
    if getattr(policy.model, "is_quantized", False):
        raise ModelError("critic: the policy's weights are quantized and can't be copied into one: set critic.path")
    config = copy.deepcopy(policy.model.config)
    config.num_labels = 1
    with explained("critic"), torch.random.fork_rng(devices=[]):
        model: PreTrainedModel = AutoModelForTokenClassification.from_config(config, dtype=policy.model.dtype)
    body = model.base_model.load_state_dict(plain_weights(policy.model.base_model), strict=False)
    if body.missing_keys:
        raise ModelError(f"critic: {type(model).__name__} has no place for the policy's weights {body.missing_keys[0]}")
    _silence_head(model)
    return model


def _opened(policy: Policy, path: str) -> PreTrainedModel:
    belonging(path, policy)
    place, file = find(path)
    if (Path(place) / lora.CONFIG).is_file():
        raise ModelError(f"{path}: an adapter; a critic starts from a whole model, or from the policy (no critic.path)")
    weights: dict[str, Any] = dict(file) or {"use_safetensors": True}
    with explained(path):
        opened: Any = AutoModelForTokenClassification.from_pretrained(
            place,
            num_labels=1,
            dtype=policy.model.dtype,
            trust_remote_code=False,
            output_loading_info=True,
            **weights,
        )
    model, report = opened
    body = [name for name in report["missing_keys"] if name.startswith(model.base_model_prefix)]
    if body:
        raise ModelError(f"{path}: it lacks weights of {type(model).__name__} ({', '.join(sorted(body)[:3])})")
    if report["missing_keys"]:
        _silence_head(model)
    loaded: PreTrainedModel = model
    return loaded


def _silence_head(model: PreTrainedModel) -> None:
    """Set the layers outside the body to zero, so that the first values don't depend on random weights."""
    body = set(model.base_model.modules())
    for module in model.modules():
        if isinstance(module, nn.Linear) and module not in body:
            nn.init.zeros_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
