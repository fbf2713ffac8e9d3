"""Sampling with transformers: no extra to install, any device, the policy's own weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from pydantic import Field

from upge import Engine

if TYPE_CHECKING:
    from upge import Context, EngineSession


class Transformers(Engine):
    """Samples with transformers, from the policy's own weights.

    Each prompt is computed once for all its samples, and finished responses leave the batch. Models whose state is more
    than keys and values of the whole past (sliding windows, state spaces) are sampled with `generate`. Token t of a
    response is drawn by a number u(request, t) from softmax(logits / temperature), so completions don't depend on how
    requests are batched. Log-probs are of the sampled distribution, in nats.
    """

    samples_policy = True

    batch_size: int = Field(default=256, ge=1)
    """The largest number of responses that are drawn at once."""

    @contextmanager
    def open(self, context: Context) -> Iterator[EngineSession]:
        """A session that shares `context.policy`. Raises ValueError where there is none."""
        if context.policy is None:
            raise ValueError("engine transformers: there is no policy to sample from")
        from upge_parts.engines.generating import Generating  # transformers takes seconds to import

        yield Generating(context.policy, seed=context.seed, batch_size=self.batch_size)
