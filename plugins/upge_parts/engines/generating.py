"""A session that samples with transformers' `generate`, by noise that a request's coordinates alone determine."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessorList

from upge.flow import Completion, Request, Sampling
from upge.policy import ModelError
from upge_parts.engines.keyed import KeyedDraw, uniforms

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from upge.policy import Policy


class Generating:
    """Samples from the policy itself, so there are no weights to copy.

    Args:
        policy: whose model generates.
        seed: of the run; with a request's coordinates it keys the noise.
        batch_size: how many responses are drawn at once. Memory and speed depend on it; completions don't, but for
            floating-point rounding at the very edge between two tokens.
    """

    def __init__(self, policy: Policy, *, seed: int, batch_size: int) -> None:
        self.policy = policy
        self.seed = seed
        self.batch_size = batch_size

    def sync(self, policy: Policy) -> None:
        """Sample from `policy` from now on; its weights are shared, so nothing is copied."""
        self.policy = policy

    def sample(self, requests: Sequence[Request], sampling: Sampling) -> list[Completion]:
        """One completion for each request, in their order.

        Raises:
            ModelError: an empty prompt, or one that leaves no room for `max_tokens` in the model's context.
            FloatingPointError: the model's logits aren't finite.
        """
        self._check(requests, sampling)
        # Prompts of like length share a batch, so that little of it is padding.
        order = sorted(range(len(requests)), key=lambda index: len(requests[index].prompt))
        completions: dict[int, Completion] = {}
        for start in range(0, len(order), self.batch_size):
            indices = order[start : start + self.batch_size]
            drawn = self._draw([requests[index] for index in indices], sampling)
            completions.update(zip(indices, drawn, strict=True))
        return [completions[index] for index in range(len(requests))]

    def _check(self, requests: Sequence[Request], sampling: Sampling) -> None:
        limit = self.policy.context_length
        for request in requests:
            length = len(request.prompt)
            if not length:
                raise ModelError(f"problem {request.problem}: its prompt has no tokens; nothing to continue")
            if limit is not None and length + sampling.max_tokens > limit:
                raise ModelError(
                    f"problem {request.problem}: a prompt of {length} tokens and rollout.max_tokens "
                    f"{sampling.max_tokens} exceed the model's context of {limit}"
                )

    def _draw(self, requests: Sequence[Request], sampling: Sampling) -> list[Completion]:
        """Completions of one batch, in its order."""
        model = self.policy.model
        tokens, mask = _left_padded([request.prompt for request in requests], self.policy.pad_id, model.device)
        noise = uniforms([request.key(self.seed) for request in requests], sampling.max_tokens).to(model.device)
        draw = KeyedDraw(noise, tokens.shape[1], sampling)
        with torch.inference_mode(), _without_defaults(model):
            model.generate(  # type: ignore[operator]
                tokens,
                attention_mask=mask,
                logits_processor=LogitsProcessorList([draw]),
                generation_config=self._settings(sampling),
            )
        drawn = zip(*draw.record(), strict=True)
        return [self._completion(row, logp) for row, logp in drawn]

    def _settings(self, sampling: Sampling) -> GenerationConfig:
        """Greedy, because the logits processor has drawn already; with no setting but those that are needed."""
        return GenerationConfig(
            do_sample=False,
            max_new_tokens=sampling.max_tokens,
            eos_token_id=list(self.policy.stop_ids) or None,
            pad_token_id=self.policy.pad_id,
            use_cache=True,
            disable_compile=True,
        )

    def _completion(self, tokens: list[int], logp: list[float]) -> Completion:
        """A row up to its first stop token; what follows that is of no concern."""
        stop = next((at for at, token in enumerate(tokens) if token in self.policy.stop_ids), None)
        end = len(tokens) if stop is None else stop + 1
        if any(value != value for value in logp[:end]):
            raise FloatingPointError(
                "the model's logits aren't finite: the policy has diverged, or its dtype overflows"
            )
        return Completion(tuple(tokens[:end]), tuple(logp[:end]), truncated=stop is None)


def _left_padded(prompts: Sequence[Sequence[int]], pad_id: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """(B, L) token ids that end together, and the mask: 1 where they are not padding."""
    width = max(map(len, prompts))
    gaps = [width - len(prompt) for prompt in prompts]
    tokens = [[pad_id] * gap + list(prompt) for gap, prompt in zip(gaps, prompts, strict=True)]
    mask = [[0] * gap + [1] * (width - gap) for gap in gaps]
    return torch.tensor(tokens, device=device), torch.tensor(mask, device=device)


@contextmanager
def _without_defaults(model: PreTrainedModel) -> Iterator[None]:
    """While open, the model has no generation defaults, from which `generate` fills in every setting left at None."""
    kept = model.generation_config
    model.generation_config = GenerationConfig()
    try:
        yield
    finally:
        model.generation_config = kept
