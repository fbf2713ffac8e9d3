"""Sampling with vLLM: paged attention, prefixes shared among a prompt's samples, and continuous batching."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from upge import Engine, InputError

if TYPE_CHECKING:
    from upge import Context, EngineSession, Policy


class Vllm(Engine):
    """Samples with vLLM, in a process beside the trainer that loads the policy's weights after every step.

        token t ~ softmax(logits / temperature), by vLLM's generator of seed key(seed, stream, step, problem, sample)

    Log-probs are of the sampled distribution, in nats, as vLLM's own kernels compute them. They differ from the
    policy's by rounding, which `truncated_importance` corrects for. Source: Kwon et al. 2023, arXiv 2309.06180.
    """

    packages: ClassVar = {"vllm": "upge[vllm]"}
    samples_policy = True

    gpu_memory_utilization: float = Field(default=0.4, gt=0, le=1)
    """The share of the device's memory that vLLM takes, weights included; on a CPU, of the main memory."""
    kv_cache: float | None = Field(default=None, gt=0)
    """GiB for the cache of keys and values; by default the rest of `gpu_memory_utilization`."""
    block_size: int | None = Field(default=None, ge=1)
    """Tokens of a block of that cache; common beginnings of prompts are computed once, in whole blocks. By default
    vLLM's own choice, but 32 on a CPU: vLLM's 128 there is more than many prompts have."""
    max_model_len: int | None = Field(default=None, ge=1)
    """The most tokens of prompt and response together; by default as many as the model has positions for."""
    max_num_seqs: int = Field(default=256, ge=1)
    """The number of responses that are drawn at once."""
    tensor_parallel_size: int = Field(default=1, ge=1)
    """The number of devices that the model is sharded over."""
    dtype: Literal["policy", "float32", "bfloat16", "float16"] = "policy"
    """The dtype of vLLM's computations; by default that of the policy's parameters."""
    enforce_eager: bool = False
    """Start at once, without compiling and capturing graphs; sampling is slower then."""
    sleep: bool = False
    """Free the device's memory during the policy's updates; GPUs only."""

    def measures(self, dtype: str) -> bool:
        """Whether vLLM computes in no coarser type than the policy's own passes."""
        return self.dtype in ("policy", dtype) or (self.dtype == "float32" and dtype in ("bfloat16", "float16"))

    @contextmanager
    def open(self, context: Context) -> Iterator[EngineSession]:
        """A session on a copy of `context.policy`, in a temporary folder that is gone afterwards.

        Raises:
            InputError: vLLM is missing or doesn't start; settings that this machine or run has no way to honour.
            ValueError: there is no policy.
        """
        if context.policy is None:
            raise ValueError("engine vllm: there is no policy to sample from")
        self._check(context)
        from upge_parts.engines import exchange
        from upge_parts.engines.vllm_session import VllmSession, started

        with (
            exchange.opened(context) as weights,
            started(context, weights, self.arguments(context.policy, strings=bool(context.stop))) as llm,
        ):
            yield VllmSession(llm, context.policy, weights, seed=context.seed, sleep=self.sleep)

    def arguments(self, policy: Policy, *, strings: bool = False) -> dict[str, Any]:
        """What vLLM's `LLM` is called with, besides the model's folder. `strings`: whether strings end responses."""
        return {
            "gpu_memory_utilization": self.gpu_memory_utilization,
            "kv_cache_memory_bytes": None if self.kv_cache is None else int(self.kv_cache * 2**30),
            "block_size": self.block_size or (32 if policy.model.device.type == "cpu" else None),
            "max_model_len": self.max_model_len,
            "max_num_seqs": self.max_num_seqs,
            "tensor_parallel_size": self.tensor_parallel_size,
            "dtype": str(policy.model.dtype).removeprefix("torch.") if self.dtype == "policy" else self.dtype,
            "enforce_eager": self.enforce_eager,
            "enable_sleep_mode": self.sleep,
            # A prompt that is taken in portions has its generator wound back, which those of a CPU can't be.
            "enable_chunked_prefill": None if policy.model.device.type == "cuda" else False,
            "logprobs_mode": "processed_logprobs",  # of the distribution drawn from: after temperature and cuts
            "generation_config": "vllm",  # no defaults of the model's own
            "skip_tokenizer_init": not strings,  # token ids in, token ids out; only stop strings are looked for in text
            "use_tqdm_on_load": False,
        }

    def _check(self, context: Context) -> None:
        import torch

        if self.sleep and not torch.cuda.is_available():
            raise InputError("rollout.engine.sleep: it gives a GPU's memory back, and there is no GPU here")
        if self.tensor_parallel_size > 1 and context.world > 1:
            raise InputError(
                f"rollout.engine.tensor_parallel_size: in a run of {context.world} processes each has an engine of its "
                "own, on its own device; set it to 1"
            )
