"""The data types of a run (problem, request, completion, trajectory), and the protocols of sessions.

A `Problem` comes from the data. A `Request` is for one response of an engine, and a `Completion` is this response. A
`Trajectory` is a scored response, ready to become rows of a `Batch`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from torch import Tensor


def key_of(*coordinates: object) -> int:
    """A 64-bit key of coordinates that their texts tell apart: equal ones have equal keys, on any machine."""
    text = "\x1f".join(map(str, coordinates))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


Message = dict[str, str]
"""One turn of a conversation: `{"role": ..., "content": ...}`."""


@dataclass(frozen=True)
class Problem:
    """A task with a checkable answer and, perhaps, a worked demonstration of it.

    Attributes:
        id: the problem's name, unique within its data; random numbers for sampling depend on it.
        prompt: plain text, or the messages of a conversation.
        answer: the reference answer that the reward compares with; None if the data have none.
        demonstration: a demonstrator's response (without the end-of-sequence token), or None.
        band: a label of the problem's difficulty; evaluation reports scores by band.
        place: the problem's line in the data (`train.jsonl:17`), for messages; None if it is unknown.
        columns: the numbers and texts that the data have of this problem, by the names of their columns.
    """

    id: str
    prompt: str | Sequence[Message]
    answer: str | None
    demonstration: str | None = None
    band: str | None = None
    place: str | None = field(default=None, compare=False, repr=False)
    columns: Mapping[str, Any] = field(default_factory=dict, compare=False, repr=False)

    @property
    def named(self) -> str:
        """The problem's name in messages: its place, if that is known, and its id."""
        name = f"the problem '{self.id}'"
        return name if self.place is None else f"{self.place}: {name}"


@dataclass(frozen=True)
class Sampling:
    """The sampling distribution: softmax(logits / temperature), limited to the `top_k` likeliest and `top_p`'s nucleus.

    `temperature` 0 means greedy; `top_p` 1 and `top_k` 0 mean no limit; `max_tokens` bounds the response, its stop
    token included. Nothing else, such as a model's generation defaults, may change the distribution. A response also
    ends with the token that completes one of the strings of `stop` in its text. The run cuts the response there in any
    case, so an engine that ignores `stop` only samples for longer.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    max_tokens: int = 256
    stop: tuple[str, ...] = ()


@dataclass(frozen=True)
class Request:
    """A request for one response: the prompt's token ids, and the coordinates that determine its random numbers.

    `stream` distinguishes training and evaluation ("train", "eval/test"); `step` is the index of the rollout batch.
    """

    stream: str
    step: int
    problem: str
    sample: int
    prompt: tuple[int, ...]

    def key(self, seed: int) -> int:
        """A 64-bit key of (seed, stream, step, problem, sample): with equal keys, samples are equal in any batch."""
        return key_of(seed, self.stream, self.step, self.problem, self.sample)


@dataclass(frozen=True)
class Completion:
    """An engine's response to one request.

    Attributes:
        tokens: response token ids, the stop token included when one was drawn.
        logp: the engine's log-probability of each token under the distribution it sampled from, nats; None if unknown.
        truncated: the response was cut at `max_tokens` before a stop token or a stop string.
    """

    tokens: tuple[int, ...]
    logp: tuple[float, ...] | None
    truncated: bool


class Response(str):
    """A response's text as a reward gets it: a `str` with the attribute `opening`.

    Attributes:
        opening: the beginning of the response that is already in the prompt: `<think>` in many chat templates, else "".
    """

    opening: str

    def __new__(cls, text: str, opening: str = "") -> Response:
        made = super().__new__(cls, text)
        made.opening = opening
        return made

    @property
    def whole(self) -> str:
        """The opening followed by the text."""
        return self.opening + str(self)


@dataclass(frozen=True)
class Trajectory:
    """A response to a problem with its score: a rollout of the policy, or a demonstration (`sample` −1).

    `text` is that of the response's tokens without end-of-sequence and padding; `opening` is that of `Response`.
    `group` is the problem's place in its rollout batch, or among those of an evaluation; `time` is how often its
    problem stood in the rollout batch before. `temperature` is that of the distribution it was drawn from, at which
    models are asked about it: 1 for demonstrations, and for what was drawn greedily.
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
    time: int = 0
    temperature: float = 1.0

    def key(self, seed: int, step: int) -> int:
        """A 64-bit key of (seed, step, problem, kind, index, time): equal coordinates draw equal noise."""
        kind = "demonstration" if self.demonstration else "rollout"
        return key_of(seed, step, self.problem.id, kind, self.sample, self.time)


@dataclass(frozen=True)
class Context:
    """The values that a run passes to a part when it opens a session.

    Attributes:
        seed: the run's seed; all random numbers depend on it.
        folder: the run folder, or None outside a run.
        policy: the `upge.Policy` in training, or None. (`Any`, because this module imports nothing of upge.)
        rank: the index of this data-parallel process, from 0.
        world: the number of data-parallel processes.
        stop: the strings that end responses (`Sampling.stop`), for engines that must prepare for them.
        place: where the part that opens stands in the recipe (`fields.teacher`).
        models: the run's models beside the policy (`upge.model.models.Models`), or None.
        tokens: a function that makes a problem's prompt ids by the run's template and system prompt, or None.
    """

    seed: int = 0
    folder: Path | None = None
    policy: Any = None
    rank: int = 0
    world: int = 1
    stop: tuple[str, ...] = ()
    place: str = ""
    models: Any = None
    tokens: Callable[[Problem], tuple[int, ...]] | None = None


class EngineSession(Protocol):
    """An open engine. `sample` returns completions in the order of the requests; `sync` loads the policy's weights."""

    def sample(self, requests: Sequence[Request], sampling: Sampling) -> list[Completion]:
        """One completion for each request, in the order of the requests."""

    def sync(self, policy: Any) -> None:
        """Load the weights of a `Policy`; later samples are drawn from them."""


class DataSession(Protocol):
    """Open data: an endless, seeded stream of training problems, and named splits to evaluate on.

    `take(step, count)` returns the problems of one rollout batch, and depends only on its arguments and the seed. With
    `rollout.refill` a run takes problems one by one: `take(position, 1)`, with positions that continue over the steps.

    A session may also have `observe(step, trajectories)`, as `FieldSession` describes it.
    """

    def take(self, step: int, count: int) -> list[Problem]:
        """The `count` problems of rollout batch `step`, from 0."""

    def splits(self) -> Sequence[str]:
        """The names of the splits to evaluate on."""

    def split(self, name: str) -> Sequence[Problem]:
        """The problems of a split, always the same ones in the same order."""

    def state(self) -> dict[str, Any]:
        """The state of the session for a checkpoint, as JSON."""

    def restore(self, state: dict[str, Any]) -> None:
        """Restore a state that `state` returned; then `take` continues from it."""


class RewardSession(Protocol):
    """An open reward: scores of (problem, response text) pairs, in order.

    In a run the texts are `Response`s, which have the prompt's opening of the response. The texts of rollouts and of
    demonstrations are decoded from their tokens in the same way, so that equal tokens get equal scores.

    A session may also have `answer(text) -> str | None`: the final answer in a response, or None if there is none.
    `upge eval` takes majority votes over these answers. Equal texts are equal answers. If different texts can be equal
    answers, the session may have `classes(problem, answers) -> list[int]`. It gets the distinct answers, the most
    frequent first, and returns equal numbers for equal answers.
    """

    def score(self, pairs: Sequence[tuple[Problem, str]]) -> list[float]:
        """One finite score for each pair, in the order of the pairs; above 0 is right."""


class FieldSession(Protocol):
    """An open field of the batch: its numbers for trajectories.

    The numbers of a trajectory depend on it and on the session's state, never on those beside it in one call. A number
    that can't be had is NaN. A session may also have these methods:

        observe(step, trajectories)   once a rollout batch, on every rank, after scoring and the last refill and before
                                      credit: the rollouts of all ranks, also of prompts that were replaced, in the
                                      order of their prompt's place, its round and their sample
        learned(step, policy)         once a rollout batch, on every rank, after its updates
        state(), restore(state)       what checkpoints keep: JSON and tensors by name, the same on every rank
    """

    def read(self, step: int, trajectories: Sequence[Trajectory]) -> Tensor:
        """The numbers, in the order of the trajectories and of their response tokens.

        Shapes: (T,) or (T, K) per token; (N,) or (N, K) per trajectory, and per prompt, a row a trajectory too.
        """
