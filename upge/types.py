"""The nouns of a run: problem, request, completion, trajectory, and what a session owes the trainer.

A `Problem` comes from the data, a `Request` asks an engine for one response, a `Completion` is what came back, and a
`Trajectory` is a scored response, ready to become rows of a `Batch`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

Message = dict[str, str]
"""One turn of a conversation: `{"role": ..., "content": ...}`."""


@dataclass(frozen=True)
class Problem:
    """A task with a checkable answer and, perhaps, a worked demonstration of it.

    Attributes:
        id: names the problem within its data; sampling noise is keyed by it.
        prompt: what is asked: plain text, or the messages of a conversation.
        answer: the reference answer that the reward compares with; None where the data have none.
        demonstration: a demonstrator's response (without the end-of-sequence token), or None.
        band: how hard the problem was measured to be; evaluation reports by band.
        place: where it stands in the data (`train.jsonl:17`), for messages; None where nothing is known of that.
    """

    id: str
    prompt: str | Sequence[Message]
    answer: str | None
    demonstration: str | None = None
    band: str | None = None
    place: str | None = field(default=None, compare=False, repr=False)

    @property
    def named(self) -> str:
        """How messages name it: its place, if that is known, and its id."""
        name = f"the problem '{self.id}'"
        return name if self.place is None else f"{self.place}: {name}"


@dataclass(frozen=True)
class Sampling:
    """How responses are drawn: softmax(logits / temperature), cut to the `top_k` likeliest and the `top_p` nucleus.

    `temperature` 0 means greedy; `top_p` 1 and `top_k` 0 mean no cut; `max_tokens` bounds the response, its stop token
    included. Nothing else (a model's own generation defaults, say) may touch the distribution. A response also ends
    with the token that completes one of the strings of `stop` in its text. The run cuts there whatever an engine
    returns, so an engine that knows nothing of them only samples for longer.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    max_tokens: int = 256
    stop: tuple[str, ...] = ()


@dataclass(frozen=True)
class Request:
    """One response wanted: the prompt's token ids, and the coordinates that key its sampling noise.

    `stream` keeps training and evaluation apart ("train", "eval/test"); `step` is the index of the rollout batch.
    """

    stream: str
    step: int
    problem: str
    sample: int
    prompt: tuple[int, ...]

    def key(self, seed: int) -> int:
        """A 64-bit key of (seed, stream, step, problem, sample): equal coordinates draw equal noise, in any batch."""
        text = "\x1f".join(map(str, (seed, self.stream, self.step, self.problem, self.sample)))
        return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


@dataclass(frozen=True)
class Completion:
    """An engine's answer to one request.

    Attributes:
        tokens: response token ids, the stop token included when one was drawn.
        logp: the engine's log-probability of each token under the distribution it sampled from, nats; None if unknown.
        truncated: the response was cut at `max_tokens` before a stop token or a stop string.
    """

    tokens: tuple[int, ...]
    logp: tuple[float, ...] | None
    truncated: bool


class Response(str):
    """A response's text as a reward gets it: a `str`, which also has what its prompt ends with.

    Attributes:
        opening: how the prompt begins the response itself: with `<think>` in many chat templates; mostly "".
    """

    opening: str

    def __new__(cls, text: str, opening: str = "") -> Response:
        made = super().__new__(cls, text)
        made.opening = opening
        return made

    @property
    def whole(self) -> str:
        """The text behind its opening."""
        return self.opening + str(self)


@dataclass(frozen=True)
class Trajectory:
    """A response to a problem with its score: a rollout of the policy, or a demonstration (`sample` −1).

    `text` is that of the response's tokens without end-of-sequence and padding; `opening` is as `Response` has it.
    `group` is the problem's place in its rollout batch, or among those of an evaluation.
    """

    problem: Problem
    prompt: tuple[int, ...]
    response: tuple[int, ...]
    text: str
    reward: float
    demonstration: bool
    truncated: bool = False
    sample: int = -1
    rollout_logp: tuple[float, ...] | None = field(default=None, repr=False)
    opening: str = ""
    group: int = 0


@dataclass(frozen=True)
class Context:
    """What a run hands to a part when it opens a session.

    Attributes:
        seed: the run's seed; every draw is keyed by it.
        folder: the run folder, or None outside a run.
        policy: the `upge.Policy` in training; None where none is loaded. (A model knows these nouns, not they it.)
        rank: which of the data-parallel processes this is, from 0. world: how many there are.
        stop: the strings that end responses (`Sampling.stop`), for engines that have to get ready for these.
    """

    seed: int = 0
    folder: Path | None = None
    policy: Any = None
    rank: int = 0
    world: int = 1
    stop: tuple[str, ...] = ()


class EngineSession(Protocol):
    """An open engine. `sample` answers in the order of the requests; `sync` takes over the policy's weights."""

    def sample(self, requests: Sequence[Request], sampling: Sampling) -> list[Completion]:
        """One completion a request, in the order of the requests."""

    def sync(self, policy: Any) -> None:
        """Take over the weights of a `Policy`; later samples are drawn from them."""


class DataSession(Protocol):
    """Open data: an endless, seeded stream of training problems, and named splits to evaluate on.

    `take(step, count)` gives the problems of one rollout batch and depends on nothing but its arguments and the seed.
    With `rollout.refill` a run takes them one by one: `take(position, 1)`, positions going on over the steps.
    """

    def take(self, step: int, count: int) -> list[Problem]:
        """The `count` problems of rollout batch `step`, from 0."""

    def splits(self) -> Sequence[str]:
        """The names of the splits to evaluate on."""

    def split(self, name: str) -> Sequence[Problem]:
        """The problems of a split, always the same ones in the same order."""

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps of the session, as JSON."""

    def restore(self, state: dict[str, Any]) -> None:
        """Take over the state that `state` returned before; then `take` goes on as it would have."""


class RewardSession(Protocol):
    """An open reward: scores of (problem, response text) pairs, in order.

    In a run the texts are `Response`s: whoever cares for how the prompt opened the response finds it there. Rollouts'
    and demonstrations' texts are made of their tokens in the same way, so that equal tokens get equal scores.

    A session may also have `answer(text) -> str | None`, the final answer in a response, or None where there is none:
    what `upge eval` takes majority votes over. Equal texts are equal answers; where other texts can be too, it may have
    `classes(problem, answers) -> list[int]`, of different answers, the commonest first, equal numbers for equal ones.
    """

    def score(self, pairs: Sequence[tuple[Problem, str]]) -> list[float]:
        """One finite score a pair, in the order of the pairs; above 0 is right."""
