"""Sampling with vLLM servers, on other machines or on this one."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Literal
from urllib.parse import urlsplit

from pydantic import Field, field_validator

from upge import Engine, InputError

if TYPE_CHECKING:
    from upge import Context, EngineSession


class VllmServer(Engine):
    """Samples from running vLLM servers, which load the policy's weights after every step.

        token t ~ softmax(logits / temperature), by vLLM's generator of seed key(seed, stream, step, problem, sample)

    Log-probs are of the sampled distribution, in nats, as the servers compute them. They differ from the policy's by
    rounding, which `truncated_importance` corrects for. With a server of quantized weights, set `eval.engine` to
    another engine. How to start a server: docs/vllm.md. Source: Kwon et al. 2023,
    arXiv 2309.06180.
    """

    samples_policy = True

    url: str | tuple[str, ...] = Field(
        min_length=1, examples=["http://gpu1:8000", ("http://gpu1:8000", "http://gpu2:8000")]
    )
    """The servers' base addresses, such as `http://gpu1:8000`; prompts go to them in turn."""
    weights: Literal["files", "nccl"] = "files"
    """How the weights are sent: by files in a folder that the servers can read, or from GPU to GPU (without LoRA)."""
    folder: str | None = None
    """For `files`: a folder with the same path here and on the servers' machines; by default this machine's TMPDIR."""
    address: str | None = None
    """For `nccl`: the name or number by which the servers reach this machine; by default its host name."""
    timeout: float = Field(default=600.0, gt=0)
    """Seconds to wait for one reply: a response, or the confirmation of loaded weights."""
    connect_timeout: float = Field(default=10.0, gt=0)
    """Seconds to wait for a connection."""
    retries: int = Field(default=5, ge=0)
    """The number of retries of a request, after a lost connection or a status of 429, 500, 502, 503 or 504."""
    backoff: float = Field(default=1.0, ge=0)
    """Seconds before the first retry; each further wait is twice as long, up to a minute."""
    concurrency: int = Field(default=256, ge=1)
    """The number of concurrent requests to all servers, from each process of the run."""
    api_key_variable: str | None = None
    """The environment variable with the servers' API key; the key itself is written nowhere."""

    @field_validator("url")
    @classmethod
    def _is_an_address(cls, url: str | tuple[str, ...]) -> str | tuple[str, ...]:
        urls = _several(url)
        for each in urls:
            parts = urlsplit(each)
            if parts.scheme not in ("http", "https") or not parts.hostname:
                raise ValueError(f"'{each}' is no address of a server, such as http://gpu1:8000")
            if "@" in parts.netloc:
                raise ValueError("the run folder keeps the address: no name or password in it; see api_key_variable")
        if len({each.rstrip("/") for each in urls}) < len(urls):
            raise ValueError("an address is there twice")
        return url

    @contextmanager
    def open(self, context: Context) -> Iterator[EngineSession]:
        """A session with every server checked and holding the policy's weights.

        Raises:
            InputError: a server doesn't answer, isn't started as it must be, or has no place for this policy; the key's
                variable isn't set.
            ValueError: there is no policy.
        """
        if context.policy is None:
            raise ValueError("engine vllm_server: there is no policy to sample from")
        from upge_parts.engines import vllm_remote
        from upge_parts.engines.vllm_http import Waiting, connected

        urls = [each.rstrip("/") for each in _several(self.url)]
        waiting = Waiting(self.timeout, self.connect_timeout, self.retries, self.backoff)
        with (
            connected(urls, waiting, self._key(), context.folder, self.concurrency) as servers,
            vllm_remote.opened(self, servers, context) as session,
        ):
            yield session

    def _key(self) -> str | None:
        if self.api_key_variable is None:
            return None
        key = os.environ.get(self.api_key_variable)
        if not key:
            variable = self.api_key_variable
            raise InputError(f"rollout.engine.api_key_variable: the environment variable {variable} isn't set")
        return key


def _several(url: str | tuple[str, ...]) -> tuple[str, ...]:
    return (url,) if isinstance(url, str) else url
