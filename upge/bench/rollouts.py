"""The `transformers` engine against one call of `model.generate(do_sample=True)`, and against another engine."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList
from transformers.utils.logging import disable_progress_bar

from upge.bench.timing import SECONDS, Table, Timing, in_turns, machine, seconds
from upge.bench.work import RECIPE, SMOLLM2
from upge.model.loading import load
from upge.model.policy import Policy
from upge.part import BuildContext, Engine, build
from upge.recipe.resolve import load as load_recipe
from upge.rollouts.preflight import require_packages
from upge.types import Completion, Context, EngineSession, Request, Sampling

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Demand:
    """The responses that are wanted.

    Attributes:
        prompts, samples: how many, and how many responses to each.
        shortest, longest: the bounds of a prompt's length, tokens, evenly spread.
        max_tokens: where a response is cut.
        seed: of prompts and stop tokens, and of the run that the engine believes it is in.
    """

    prompts: int = 8
    samples: int = 8
    shortest: int = 16
    longest: int = 128
    max_tokens: int = 128
    seed: int = 0

    def requests(self, vocabulary: int) -> list[Request]:
        """Random tokens for prompts, each with all its samples."""
        random = torch.Generator().manual_seed(self.seed)
        lengths = torch.linspace(self.shortest, self.longest, self.prompts).round().int().tolist()
        prompts = [tuple(torch.randint(0, vocabulary, (length,), generator=random).tolist()) for length in lengths]
        return [
            Request("train", 0, str(index), sample, prompt)
            for index, prompt in enumerate(prompts)
            for sample in range(self.samples)
        ]

    def stops(self, vocabulary: int) -> tuple[int, ...]:
        """Stop tokens, drawn from the whole vocabulary: one in half of `max_tokens` tokens is one."""
        random = torch.Generator().manual_seed(self.seed + 1)
        count = max(1, round(2 * vocabulary / self.max_tokens))
        return tuple(torch.randperm(vocabulary, generator=random)[:count].tolist())


def named(engine: str) -> Engine:
    """The engine that is `rollout.engine` in a recipe. Raises RecipeError, and InputError if its package is missing."""
    recipe = load_recipe(RECIPE, [f"rollout.engine={engine}"])
    require_packages(recipe)
    return recipe.rollout.engine


def measure(
    demand: Demand,
    *,
    model: str | None = None,
    config: Mapping[str, Any] | None = None,
    other: Engine | None = None,
    repeats: int = 5,
) -> Table:
    """Seconds of the engine, of `generate`, and of another engine, over the same requests.

    The engine's responses end at any of many stop tokens. As its draws are keyed, they end at the same length every
    time; `generate` is made to end each of its rows at the length that the engine's had, by a logits processor, and
    runs, as it does by itself, until its last row has ended. Another engine has draws, and so lengths, of its own.

    Args:
        demand: the numbers of prompts, samples and tokens.
        model: as `model.path` in a recipe. None: random weights.
        config: of the random weights; by default SmolLM2-135M's.
        other: another engine to time beside the engine `transformers`.

    Raises:
        ModelError: the model can't be opened, or has no room for so many tokens.
        InputError: the other engine can't be opened.
    """
    disable_progress_bar()
    policy = load(model) if model else load(tokenizer="upge_parts:data/lab/base", config=dict(config or SMOLLM2))
    vocabulary = policy.model.config.get_text_config().vocab_size
    policy.stop_ids = demand.stops(vocabulary)
    with ExitStack() as stack:
        ours = Sampler.opened(stack, build(Engine, "transformers", BuildContext()), policy, demand)
        candidates: dict[str, Callable[[], object]] = {
            "engine": ours,
            "generate": lambda: plain(policy.model, ours.requests, ours.lengths, policy.pad_id),
        }
        tokens = dict.fromkeys(candidates, sum(ours.lengths))
        if other is not None:
            name, theirs = str(other.dump()["use"]), Sampler.opened(stack, other, policy, demand)
            candidates |= {name: theirs, f"{name}, weights alone": theirs.take_over}
            tokens[name] = sum(theirs.lengths)
        timings = in_turns(candidates, repeats=repeats)
    return _table(demand, timings, tokens, ours.lengths, _shape(policy))


@dataclass(frozen=True)
class Sampler:
    """An open engine: called, it takes over the policy's weights, as after a step of training, and samples.

    Attributes: lengths: of its responses, the same every time.
    """

    session: EngineSession
    policy: Policy
    requests: Sequence[Request]
    sampling: Sampling
    lengths: list[int] = field(default_factory=list)

    @classmethod
    def opened(cls, stack: ExitStack, engine: Engine, policy: Policy, demand: Demand) -> Sampler:
        """An open session, until the stack is closed, after one warm-up call."""
        session = stack.enter_context(engine.open(Context(seed=demand.seed, policy=policy)))
        requests = demand.requests(policy.model.config.get_text_config().vocab_size)
        sampler = cls(session, policy, requests, Sampling(max_tokens=demand.max_tokens))
        sampler.lengths.extend(len(completion.tokens) for completion in sampler())
        return sampler

    def __call__(self) -> list[Completion]:
        self.take_over()
        return self.session.sample(self.requests, self.sampling)

    def take_over(self) -> None:
        """Load the policy's weights, as a run does before sampling."""
        self.session.sync(self.policy)


def plain(model: PreTrainedModel, requests: Sequence[Request], lengths: Sequence[int], pad_id: int) -> Tensor:
    """One call of `generate` for all requests, prompts padded on the left: (N, prompt and response) token ids.

    Row i ends at its `lengths[i]`-th token, and not before.
    """
    width = max(len(request.prompt) for request in requests)
    gaps = [width - len(request.prompt) for request in requests]
    tokens = [[pad_id] * gap + list(request.prompt) for gap, request in zip(gaps, requests, strict=True)]
    mask = [[0] * gap + [1] * (width - gap) for gap in gaps]
    vocabulary = model.config.get_text_config().vocab_size
    settings = GenerationConfig(
        do_sample=True, top_k=0, max_new_tokens=max(lengths), eos_token_id=vocabulary - 1, pad_token_id=pad_id
    )
    kept, model.generation_config = model.generation_config, GenerationConfig()
    try:
        drawn: Tensor = model.generate(  # type: ignore[operator]
            torch.tensor(tokens, device=model.device),
            attention_mask=torch.tensor(mask, device=model.device),
            generation_config=settings,
            logits_processor=LogitsProcessorList([EndAt(lengths, width, vocabulary - 1)]),
        )
        return drawn
    finally:
        model.generation_config = kept


class EndAt(LogitsProcessor):
    """Makes row i draw the stop token as its `lengths[i]`-th token and at no other place.

    Args: lengths: tokens, the stop token included. width: how many columns the prompts have. stop: the stop token.
    """

    def __init__(self, lengths: Sequence[int], width: int, stop: int) -> None:
        self.lengths, self.width, self.stop = torch.tensor(lengths), width, stop

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Scores (N, V), changed in place: transformers hands over a copy."""
        ends = (self.lengths == input_ids.shape[1] - self.width + 1).to(scores.device)
        scores[:, self.stop] = -torch.inf
        scores[ends] = -torch.inf
        scores[ends, self.stop] = 0.0
        return scores


def _shape(policy: Policy) -> str:
    millions = sum(parameter.numel() for parameter in policy.model.parameters()) / 1e6
    return f"{policy.model.config.model_type}, {millions:.1f} million parameters, {policy.model.dtype}"


def _table(
    demand: Demand, timings: Mapping[str, Timing], tokens: Mapping[str, int], lengths: Sequence[int], shape: str
) -> Table:
    """`tokens`: how many each candidate draws; `lengths`: of the engine's responses."""
    rates = {name: timings[name].rate(total) for name, total in tokens.items()}
    others = [name for name in rates if name != "engine"]
    ratios = {f"engine : {name}": rates["engine"].median / rates[name].median for name in others}
    rows = [
        [name, f"{timing:.2f}", str(tokens.get(name, "")), f"{rates[name].median:.0f}" if name in rates else ""]
        for name, timing in timings.items()
    ]
    return Table(
        title=f"{len(lengths)} responses of {min(lengths)} to {max(lengths)} tokens: "
        f"{demand.samples} to each of {demand.prompts} prompts of {demand.shortest} to {demand.longest}",
        columns=["", SECONDS, "tokens", "tokens a second"],
        rows=[*rows, *([name, "", "", f"{ratio:.2f}"] for name, ratio in ratios.items())],
        notes=[
            "Engines take over the weights before they sample, as after a step of training.",
            shape,
            machine(),
        ],
        facts={
            "ratio": ratios["engine : generate"],
            "ratios": ratios,
            "tokens": dict(tokens),
            "lengths": list(lengths),
            "seconds": seconds(timings),
        },
    )
