"""An open vLLM: starting it, what a request becomes there, and how it takes over the policy's weights."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from textwrap import shorten
from typing import Any

import torch

from upge import Completion, Context, InputError, ModelError, Policy, Request, Sampling
from upge_parts.engines.exchange import Exchange
from upge_parts.engines.vllm_worker import EXTENSION

_LAUNCHER = (
    *("RANK", "LOCAL_RANK", "GROUP_RANK", "ROLE_RANK", "MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_USE_AGENT_STORE"),
    *("WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_WORLD_SIZE", "ROLE_WORLD_SIZE"),
)
"""What torchrun tells its processes by."""
_FIRST = Request("start", 0, "start", 0, (0,))


@contextmanager
def started(context: Context, exchange: Exchange, arguments: Mapping[str, Any]) -> Iterator[Any]:
    """A vLLM `LLM` on a copy of `context.policy`; its processes end with the block.

    Raises InputError where vLLM is missing, or refuses the model or the settings.
    """
    assert context.policy is not None
    kind = _llm()
    with ExitStack() as stack:
        try:
            with exchange.copy(context.policy) as place, _environment(_changes(context)):
                llm = kind(model=str(place), worker_extension_cls=EXTENSION, **arguments)
            stack.callback(llm.llm_engine.engine_core.shutdown)
            # Some models only turn out at the first token to be none for its kernels.
            _generate(llm, [_FIRST], Sampling(temperature=0, max_tokens=1), 0, ())
        except Exception as error:
            said = shorten(str(error), 300) or type(error).__name__
            message = "vLLM doesn't run this model with these settings; its messages above may say more than this one"
            raise InputError(f"rollout.engine: {message}: {said}") from error
        yield llm


class VllmSession:
    """Samples from vLLM's copy of the policy.

    Args:
        llm: vLLM's `LLM`, opened on the policy as it is.
        policy: says what ends a response.
        exchange: how weights get to vLLM.
        seed: of the run; with a request's coordinates it keys the noise.
        sleep: whether vLLM gives its memory back between calls.
    """

    def __init__(self, llm: Any, policy: Policy, exchange: Exchange, *, seed: int, sleep: bool) -> None:
        self.llm, self.stop_ids, self.exchange, self.seed = llm, policy.stop_ids, exchange, seed
        self.sleep, self.asleep = sleep, False
        self.limit = int(llm.model_config.max_model_len)

    def sync(self, policy: Policy) -> None:
        """Sample from `policy` from now on: its weights go through files, and what was cached of the old is forgotten.

        The copy is in the Hub's format, so vLLM reads it as it reads any model, whatever it makes of the weights then.
        """
        self._wake()
        self.stop_ids = policy.stop_ids
        with self.exchange.copy(policy) as place:
            self.llm.collective_rpc("take_over", args=(str(place),))
        if not self.llm.reset_prefix_cache():
            raise RuntimeError("vLLM kept what it had cached of the old weights")

    def sample(self, requests: Sequence[Request], sampling: Sampling) -> list[Completion]:
        """One completion for each request, in their order.

        Raises:
            ModelError: an empty prompt, or one that leaves no room for `max_tokens`.
            InputError: a temperature that vLLM would change.
            FloatingPointError: the model's logits aren't finite.
        """
        check(requests, sampling, self.limit)
        if not requests:
            return []
        self._wake()
        outputs = _generate(self.llm, requests, sampling, self.seed, self.stop_ids)
        if self.sleep:
            self.llm.sleep(level=1)
            self.asleep = True
        return [completion(output, sampling, self.stop_ids) for output in outputs]

    def _wake(self) -> None:
        if self.asleep:
            self.llm.wake_up()
            self.asleep = False


def _generate(llm: Any, requests: Sequence[Request], sampling: Sampling, seed: int, stop_ids: Sequence[int]) -> Any:
    prompts = [{"prompt_token_ids": list(request.prompt)} for request in requests]
    settings = [parameters(request, sampling, seed, stop_ids) for request in requests]
    return [answer.outputs[0] for answer in llm.generate(prompts, settings, use_tqdm=False)]


def check(requests: Sequence[Request], sampling: Sampling, limit: int) -> None:
    """Raise ModelError or InputError for what vLLM can't sample, or not as it is asked to."""
    if sampling.temperature != 0 and not 0.01 <= sampling.temperature <= 2:
        raise InputError(f"temperature {sampling.temperature}: vLLM samples at 0, which is greedy, or at 0.01 to 2")
    for request in requests:
        length = len(request.prompt)
        if not length:
            raise ModelError(f"problem {request.problem}: its prompt has no tokens; nothing to continue")
        if length + sampling.max_tokens > limit:
            raise ModelError(
                f"problem {request.problem}: a prompt of {length} tokens and rollout.max_tokens {sampling.max_tokens} "
                f"exceed vLLM's context of {limit}"
            )


def parameters(request: Request, sampling: Sampling, seed: int, stop_ids: Sequence[int]) -> Any:
    """vLLM's `SamplingParams` of one request."""
    from vllm import SamplingParams

    return SamplingParams(**settings(request, sampling, seed, stop_ids, strings=True))


def settings(
    request: Request, sampling: Sampling, seed: int, stop_ids: Sequence[int], *, strings: bool = False
) -> dict[str, Any]:
    """The fields of `SamplingParams`: nothing but what `sampling` says, and noise of the request's own.

    `strings`: whether to ask for stop strings. That takes a tokenizer at vLLM's; without it the run alone cuts there.
    """
    return {
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": sampling.top_k,
        "max_tokens": sampling.max_tokens,
        "seed": request.key(seed) >> 1,  # it has room for 63 bits
        "stop_token_ids": list(stop_ids),
        "ignore_eos": True,  # only the policy's own stop tokens end a response, and they are all named above
        "logprobs": 0,  # of the token drawn, and no other
        "detokenize": False,
    } | (_stopping(sampling.stop) if strings else {})


def _stopping(stop: Sequence[str]) -> dict[str, Any]:
    """The fields of `SamplingParams` for stop strings, which are looked for in the text that the run reads."""
    if not stop:
        return {}
    return {
        "stop": list(stop),
        "include_stop_str_in_output": True,
        "detokenize": True,
        "skip_special_tokens": False,
        "spaces_between_special_tokens": False,
    }


def completion(output: Any, sampling: Sampling, stop_ids: Sequence[int]) -> Completion:
    """What vLLM says of one response; greedy decoding draws from a distribution of one token, whose log-prob is 0."""
    tokens = tuple(output.token_ids)
    logp = tuple(float(said[token].logprob) for token, said in zip(tokens, output.logprobs, strict=True))
    if any(value != value for value in logp):
        raise FloatingPointError("the model's logits aren't finite: the policy has diverged, or vLLM's dtype overflows")
    greedy = sampling.temperature == 0
    stopped = tokens[-1] in stop_ids or isinstance(getattr(output, "stop_reason", None), str)  # the stop string
    return Completion(tokens, (0.0,) * len(tokens) if greedy else logp, truncated=not stopped)


def _llm() -> Any:
    # To standard error and only what matters: standard output is for data. vLLM reads these as it is imported.
    for name, value in {"VLLM_LOGGING_LEVEL": "ERROR", "VLLM_LOGGING_STREAM": "ext://sys.stderr"}.items():
        os.environ.setdefault(name, value)
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    try:
        from vllm import LLM
    except ImportError as error:
        raise InputError(f"rollout.engine: vllm can't be imported ({error}): pip install 'upge[vllm]'") from error
    return LLM


def _changes(context: Context) -> dict[str, str | None]:
    """The environment that vLLM's processes start in, where it differs from this one's.

    They are no part of the trainer's process group, so they mustn't see who launched it; and of several GPUs each
    rank's engine sees the one its policy is on.
    """
    changes: dict[str, str | None] = dict.fromkeys(_LAUNCHER)
    assert context.policy is not None
    device = context.policy.model.device
    if context.world > 1 and device.type == "cuda":
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        names = visible.split(",") if visible else [str(index) for index in range(torch.cuda.device_count())]
        changes["CUDA_VISIBLE_DEVICES"] = names[device.index or 0]
    return changes


@contextmanager
def _environment(changes: Mapping[str, str | None]) -> Iterator[None]:
    """While open, variables have these values; None: they are not set."""
    kept = {name: os.environ.get(name) for name in changes}
    try:
        _set(changes)
        yield
    finally:
        _set(kept)


def _set(variables: Mapping[str, str | None]) -> None:
    for name, value in variables.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
