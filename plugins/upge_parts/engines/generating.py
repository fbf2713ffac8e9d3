"""A session that samples with transformers' `generate`, by noise that a request's coordinates alone determine."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessorList

from upge import Completion, InputError, ModelError, Request, Sampling
from upge_parts.engines.decoding import decodable, decode
from upge_parts.engines.keyed import KeyedDraw, uniforms
from upge_parts.engines.responses import Ends, Row

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from upge import Policy


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
            InputError: the model is divided over ranks.
            ModelError: an empty prompt, or one that leaves no room for `max_tokens` in the model's context.
            FloatingPointError: the model's logits aren't finite.
        """
        self._check(requests, sampling)
        noise = uniforms([request.key(self.seed) for request in requests], sampling.max_tokens)
        rows = [Row(request.prompt, draws) for request, draws in zip(requests, noise, strict=True)]
        if decodable(self.policy.model):
            decode(self.policy, rows, sampling, batch_size=self.batch_size)
        else:
            self._generate(rows, sampling)
        return [Completion(tuple(row.tokens), tuple(row.logp), truncated=not row.stopped) for row in rows]

    def _generate(self, rows: Sequence[Row], sampling: Sampling) -> None:
        unfinished, ends = list(rows), Ends(self.policy, sampling)
        # `generate` goes on computing finished rows until its last one stops: so it is called for a few tokens, then
        # again for twice as many with the rows that are left, whose prefix it reads in one pass.
        for burst in _bursts(sampling.max_tokens):
            # Prefixes of like length share a batch, so that little of it is padding.
            unfinished = sorted((row for row in unfinished if not row.stopped), key=lambda row: len(row.prefix))
            for start in range(0, len(unfinished), self.batch_size):
                self._extend(unfinished[start : start + self.batch_size], burst, sampling, ends)

    def _check(self, requests: Sequence[Request], sampling: Sampling) -> None:
        if self.policy.sharded:
            # Each rank would call the model as often as its own responses are long, and wait for others for ever.
            raise InputError(
                "rollout.engine: transformers can't sample from a model that is divided over ranks (FSDP, ZeRO 3): "
                "use vllm or vllm_server"
            )
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

    def _extend(self, rows: Sequence[Row], count: int, sampling: Sampling, ends: Ends) -> None:
        """Draw up to `count` more tokens of each row of one batch."""
        model = self.policy.model
        tokens, mask = _left_padded([row.prefix for row in rows], self.policy.pad_id, model.device)
        done = len(rows[0].tokens)
        noise = torch.stack([row.noise[done : done + count] for row in rows]).to(model.device)
        draw = KeyedDraw(noise, tokens.shape[1], sampling)
        with torch.inference_mode(), _without_defaults(model):
            model.generate(  # type: ignore[operator]
                tokens,
                attention_mask=mask,
                logits_processor=LogitsProcessorList([draw]),
                generation_config=self._settings(count),
            )
        for row, drawn, logp in zip(rows, *draw.record(), strict=True):
            row.extend(drawn, logp, ends)

    def _settings(self, count: int) -> GenerationConfig:
        """Greedy, because the logits processor has drawn already; with no setting but those that are needed."""
        return GenerationConfig(
            do_sample=False,
            max_new_tokens=count,
            eos_token_id=list(self.policy.stop_ids) or None,
            pad_token_id=self.policy.pad_id,
            use_cache=True,
            disable_compile=True,
        )


def _bursts(length: int) -> Iterator[int]:
    """16, 32, 64, …: portions that add up to `length` and depend on nothing else, so no neighbour moves a draw."""
    done, burst = 0, 16
    while done < length:
        yield min(burst, length - done)
        done, burst = done + burst, 2 * burst


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
