"""An open `vllm_server`: what is checked of the servers, what a request becomes there, and how weights reach them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from pydantic import BaseModel, Field

from upge import Completion, Context, InputError, Policy, Request, Sampling
from upge_parts.engines import exchange
from upge_parts.engines.vllm_http import BUSY, Done, Server, forget, side_by_side
from upge_parts.engines.vllm_session import check, settings

if TYPE_CHECKING:
    from upge_parts.engines.vllm_server import VllmServer

GENERATE = "/inference/v1/generate"
_FLOOR = -9999.0
"""What vLLM writes into JSON for a log-prob that is no number, or minus infinity."""
_ROUNDING = 1e-3
"""Nats by which a log-prob of 0 may be off."""
_ENDED = ("stop", "length")


class Said(BaseModel):
    """A token and its log-prob."""

    token_id: int
    logprob: float


class Content(BaseModel):
    """One entry for each token of a response."""

    content: list[Said]


class Choice(BaseModel):
    """A response."""

    token_ids: list[int] = Field(min_length=1)
    logprobs: Content
    finish_reason: str


class Generated(BaseModel):
    """What `/inference/v1/generate` answers."""

    choices: list[Choice] = Field(min_length=1, max_length=1)


class Model(BaseModel):
    """A model that a server has."""

    max_model_len: int


class Models(BaseModel):
    """What `/v1/models` answers."""

    data: list[Model] = Field(min_length=1)


class Courier(Protocol):
    """Brings a policy's weights to every server; all ranks call it together."""

    def deliver(self, policy: Policy) -> None: ...


class ServerSession:
    """Samples from servers that have the policy's weights.

    Args:
        servers: checked, each with the same model.
        policy: says what ends a response.
        courier: brings weights to the servers.
        seed: of the run; with a request's coordinates it keys the noise.
        rank: this process among the data-parallel ones; each begins with another server.
        concurrency: how many requests are under way at once.
    """

    def __init__(
        self,
        servers: Sequence[Server],
        policy: Policy,
        courier: Courier,
        *,
        seed: int,
        rank: int,
        concurrency: int,
    ) -> None:
        self.servers, self.courier, self.stop_ids = servers, courier, policy.stop_ids
        self.seed, self.rank, self.concurrency = seed, rank, concurrency
        self.limit = min(server.ask("/v1/models", Models).data[0].max_model_len for server in servers)

    def sync(self, policy: Policy) -> None:
        """Sample from `policy` from now on, on every server; what they had cached of the old weights is forgotten."""
        self.stop_ids = policy.stop_ids
        self.courier.deliver(policy)

    def sample(self, requests: Sequence[Request], sampling: Sampling) -> list[Completion]:
        """One completion for each request, in their order; a prompt's samples come from one server.

        Raises:
            ModelError: an empty prompt, or one that leaves no room for `max_tokens`.
            InputError: a temperature that vLLM would change.
            PartError: a server doesn't answer, or not as vLLM does.
            FloatingPointError: the model's logits aren't finite.
        """
        check(requests, sampling, self.limit)
        turns = {prompt: turn for turn, prompt in enumerate(dict.fromkeys(each.prompt for each in requests))}
        calls = [partial(self._one, request, sampling, self.rank + turns[request.prompt]) for request in requests]
        return side_by_side(calls, self.concurrency)

    def _one(self, request: Request, sampling: Sampling, turn: int) -> Completion:
        server = self.servers[turn % len(self.servers)]
        asked = settings(request, sampling, self.seed, self.stop_ids)
        body = {"token_ids": request.prompt, "sampling_params": asked}
        choice = server.ask(GENERATE, Generated, body, again=BUSY | {500}).choices[0]
        return completion(server, choice, sampling, self.stop_ids)


def completion(server: Server, choice: Choice, sampling: Sampling, stop_ids: Sequence[int]) -> Completion:
    """What the server says of one response; greedy decoding draws from one token, whose log-prob is 0."""
    tokens, said = tuple(choice.token_ids), choice.logprobs.content
    if choice.finish_reason not in _ENDED:
        raise server.wrong(f"a response ended with '{choice.finish_reason}', and not by itself")
    if len(tokens) > sampling.max_tokens:
        raise server.wrong(f"a response has {len(tokens)} tokens, where {sampling.max_tokens} were asked for")
    if tuple(each.token_id for each in said) != tokens:
        raise server.wrong("the log-probs of a response aren't of its tokens")
    logp = tuple(each.logprob for each in said)
    if not all(_FLOOR < value < float("inf") for value in logp):
        raise FloatingPointError("the model's logits aren't finite: the policy has diverged, or vLLM's dtype overflows")
    greedy = sampling.temperature == 0
    return Completion(tokens, (0.0,) * len(tokens) if greedy else logp, truncated=tokens[-1] not in stop_ids)


class Files:
    """Writes the policy into a folder, and has every server's workers load it in place of what they have."""

    def __init__(self, servers: Sequence[Server], through: exchange.Exchange) -> None:
        self.servers, self.through = servers, through

    def deliver(self, policy: Policy) -> None:
        """As `exchange`: the first rank writes and tells the servers, the others wait.

        Raises InputError or PartError: a server can't load it; it may not see the folder.
        """
        with self.through.copy(policy) as place:
            if self.through.rank == 0:
                side_by_side([partial(self._load, server, place) for server in self.servers], len(self.servers))

    def _load(self, server: Server, place: Path) -> None:
        server.ask("/collective_rpc", Done, {"method": "take_over", "args": [str(place)]})
        forget(server)


def check_server(server: Server, policy: Policy) -> None:
    """Raise InputError unless the server has a model of the policy's vocabulary, and reports what it draws from."""
    rows = policy.size
    # An id that it doesn't know is refused as a stop token, while it would break a server as a prompt's.
    if server.refuses(GENERATE, _certain(rows - 1)):
        raise server.wrong(f"its model's vocabulary is smaller than the policy's of {rows}: start it on that model")
    if not server.refuses(GENERATE, _certain(rows)):
        raise server.wrong(f"its model's vocabulary is larger than the policy's of {rows}: start it on that model")
    said = server.ask(GENERATE, Generated, _certain(rows - 1), again=BUSY | {500}).choices[0].logprobs.content
    if any(_FLOOR < each.logprob < -_ROUNDING for each in said):
        asked = "start it with --logprobs-mode processed_logprobs"
        raise server.wrong(f"its log-probs aren't of the distribution that it draws from: {asked}")


def _certain(stop: int) -> dict[str, Any]:
    """A request for tokens that are drawn from one alone, so that each has log-prob 0."""
    drawn = {"temperature": 1.0, "top_k": 1, "max_tokens": 4, "logprobs": 0}
    return {"token_ids": [0], "sampling_params": drawn | {"stop_token_ids": [stop], "detokenize": False}}


@contextmanager
def opened(engine: VllmServer, servers: Sequence[Server], context: Context) -> Iterator[ServerSession]:
    """A session of `engine`: servers checked, weights delivered."""
    policy = context.policy
    assert policy is not None
    for server in servers:
        check_server(server, policy)
    with _courier(engine, servers, context) as courier:
        session = ServerSession(
            servers, policy, courier, seed=context.seed, rank=context.rank, concurrency=engine.concurrency
        )
        session.sync(policy)
        for server in servers:
            server.opened = True
        yield session


@contextmanager
def _courier(engine: VllmServer, servers: Sequence[Server], context: Context) -> Iterator[Courier]:
    if engine.weights == "nccl":
        from upge_parts.engines.vllm_nccl import opened as broadcast

        with broadcast(servers, context, engine.address) as courier:
            yield courier
        return
    if engine.folder is not None and not Path(engine.folder).is_dir():
        raise InputError(f"rollout.engine.folder: there is no folder '{engine.folder}'")
    with exchange.opened(context, parent=engine.folder) as through:
        yield Files(servers, through)
