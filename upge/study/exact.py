"""Problems small enough to list: every sequence and batch with its probability, the exact gradient of the objective."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations_with_replacement, product
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from upge.estimator.batch import Batch
from upge.estimator.estimator import Estimator

STOP = 0
"""The token that ends a sequence."""


@dataclass(frozen=True)
class World:
    """Prompts x, and all sequences y over `vocabulary` tokens that end with token 0 or are `length` tokens long.

    To each prompt two sequences are right, and the demonstrator shows the first of them three times out of four.

    Attributes:
        success: (G,) for each prompt the share of right answers that the policy starts with, in (0, 1).
        vocabulary, length: V tokens, the stop token among them, and the longest sequence.
        seed: of the right answers, and of the policy's start.
    """

    success: tuple[float, ...] = (0.02, 0.1, 0.3, 0.8)
    vocabulary: int = 3
    length: int = 3
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.success or not all(0 < share < 1 for share in self.success):
            raise ValueError("success rates lie between 0 and 1, both excluded")
        if self.vocabulary < 2 or self.length < 1 or self.vocabulary**self.length > 4096:
            raise ValueError("a vocabulary of 2 tokens or more, and at most 4096 sequences: V^length")

    @property
    def prompts(self) -> int:
        """G."""
        return len(self.success)

    @cached_property
    def sequences(self) -> tuple[tuple[int, ...], ...]:
        """All S sequences, the shortest first."""
        return tuple(self._sequences())

    def _sequences(self) -> Iterator[tuple[int, ...]]:
        going = range(1, self.vocabulary)
        for length in range(1, self.length):
            yield from ((*start, STOP) for start in product(going, repeat=length - 1))
        yield from ((*start, end) for start in product(going, repeat=self.length - 1) for end in range(self.vocabulary))

    @cached_property
    def lengths(self) -> Tensor:
        """(S,) tokens of each sequence."""
        return torch.tensor([len(sequence) for sequence in self.sequences])

    @cached_property
    def truncated(self) -> Tensor:
        """(S,) bool: those that don't end with the stop token."""
        return torch.tensor([sequence[-1] != STOP for sequence in self.sequences])

    @cached_property
    def right(self) -> Tensor:
        """(G, 2) the right answers, as indices of sequences; one alone where there are only two sequences."""
        count, random = len(self.sequences), torch.Generator().manual_seed(self.seed)
        if count == 2:
            return torch.ones(self.prompts, 1, dtype=torch.long)
        return torch.stack([torch.randperm(count, generator=random)[:2] for _ in range(self.prompts)])

    @cached_property
    def reward(self) -> Tensor:
        """(G, S) r(x, y): 1 for right answers, else 0."""
        zeros = torch.zeros(self.prompts, len(self.sequences), dtype=torch.float64)
        return zeros.scatter_(1, self.right, 1.0)

    @cached_property
    def demonstrator(self) -> Tensor:
        """(G, S) π_β(y | x)."""
        shares = torch.tensor([0.75, 0.25] if self.right.shape[1] == 2 else [1.0], dtype=torch.float64)
        return torch.zeros_like(self.reward).scatter_(1, self.right, shares.expand(self.right.shape))


Kind = Literal["table", "transformer"]


class Policy(Protocol):
    """Parameters, and what follows from them for every prompt x, sequence y and place in it."""

    def parameters(self) -> Any:
        """The parameters θ."""

    def __call__(self) -> Tensor:
        """(G, S, L, V) log π_θ(v | x, y_<t), float64; anything after a sequence's end."""


class Table(nn.Module):
    """A softmax of its own for every prompt and beginning of a sequence."""

    def __init__(self, world: World) -> None:
        super().__init__()
        beginnings: dict[tuple[int, ...], int] = {}
        places = [
            [beginnings.setdefault(sequence[:place], len(beginnings)) for place in range(len(sequence))]
            for sequence in world.sequences
        ]
        self.index = torch.tensor([row + [0] * (world.length - len(row)) for row in places])
        random = torch.Generator().manual_seed(world.seed)
        shape = (world.prompts, len(beginnings), world.vocabulary)
        self.logits = nn.Parameter(0.3 * torch.randn(shape, generator=random, dtype=torch.float64))

    def forward(self) -> Tensor:
        """(G, S, L, V) log-probabilities."""
        return self.logits.log_softmax(-1)[:, self.index]


class Transformer(nn.Module):
    """A GPT-2 of one layer, which reads the prompt as a token of its own; all prompts share its weights."""

    def __init__(self, world: World, width: int = 16) -> None:
        super().__init__()
        from transformers import GPT2Config, GPT2LMHeadModel

        config = GPT2Config(
            vocab_size=world.vocabulary + world.prompts,
            n_positions=world.length + 1,
            n_embd=width,
            n_layer=1,
            n_head=2,
            initializer_range=0.3,
            bos_token_id=None,
            eos_token_id=None,
        )
        with torch.random.fork_rng():
            torch.manual_seed(world.seed)
            self.model: Any = GPT2LMHeadModel._from_config(config, attn_implementation="eager").double().eval()
        self.vocabulary, self.shape = world.vocabulary, (world.prompts, len(world.sequences), world.length)
        rows = [[*sequence, *[0] * (world.length - len(sequence))] for sequence in world.sequences]
        fed = torch.tensor(rows)[:, :-1].repeat(world.prompts, 1)
        tokens_of_prompt = torch.arange(world.prompts).repeat_interleave(len(rows))[:, None] + world.vocabulary
        self.tokens = torch.cat([tokens_of_prompt, fed], 1)

    def forward(self) -> Tensor:
        """(G, S, L, V) log-probabilities."""
        logits = self.model(input_ids=self.tokens, use_cache=False).logits[..., : self.vocabulary]
        listed: Tensor = logits.log_softmax(-1).view(*self.shape, self.vocabulary)
        return listed


def start(kind: Kind, world: World) -> Policy:
    """A policy with the world's success rate for each prompt."""
    policy = Table(world) if kind == "table" else Transformer(world)
    _tune(policy, world)
    return policy


def _tune(policy: nn.Module, world: World) -> None:
    """Move the parameters until every prompt's share of right answers is the world's, to 1e-9.

    The share's logit is what Newton's steps, through the pseudo-inverse of its Jacobian, bring to its mark: of all
    parameters with these shares they find those nearest to the start.
    """
    parameters = list(policy.parameters())
    goal = torch.tensor(world.success, dtype=torch.float64).logit()
    for _ in range(200):
        apart = goal - (listed(policy, world).probability * world.reward).sum(1).logit()
        if float(apart.detach().abs().max()) < 1e-9:
            return
        rows = [torch.autograd.grad(-logp, parameters, retain_graph=True, allow_unused=True) for logp in apart]
        jacobian = torch.stack([flat(row, parameters) for row in rows])
        move = torch.linalg.lstsq(jacobian, apart.detach(), driver="gelsd").solution
        add(parameters, move * min(1.0, 1.0 / float(move.norm())))
    raise ValueError("no parameters found with these success rates")


@dataclass(frozen=True)
class Listing:
    """Everything there is to know of a policy.

    Attributes:
        logp, entropy: (G, S, L) log π(y_t | x, y_<t) and H(π(· | x, y_<t)), nats; 0 after a sequence's end.
        there: (S, L) bool: places within sequences.
    """

    logp: Tensor
    entropy: Tensor
    there: Tensor

    @property
    def probability(self) -> Tensor:
        """(G, S) π(y | x); adds up to 1 for each prompt."""
        return self.logp.sum(-1).exp()

    def detached(self) -> Listing:
        """The same, without gradient."""
        return Listing(self.logp.detach(), self.entropy.detach(), self.there)


def listed(policy: Policy, world: World) -> Listing:
    """The policy's listing; carries gradient."""
    distribution = policy()
    tokens = torch.tensor([[*s, *[0] * (world.length - len(s))] for s in world.sequences])
    there = torch.arange(world.length) < world.lengths[:, None]
    index = tokens.expand(distribution.shape[:-1])[..., None]
    logp = torch.where(there, distribution.gather(-1, index)[..., 0], 0.0)
    entropy = torch.where(there, -(distribution.exp() * distribution).sum(-1), 0.0)
    return Listing(logp, entropy, there)


def flat(gradients: Any, parameters: list[nn.Parameter]) -> Tensor:
    """(P,) gradients end to end; 0 where there is none."""
    pairs = zip(gradients, parameters, strict=True)
    return torch.cat([(torch.zeros_like(p) if g is None else g).flatten() for g, p in pairs])


@torch.no_grad()
def add(parameters: list[nn.Parameter], move: Tensor) -> None:
    """θ ← θ + move (P,)."""
    for parameter, piece in zip(parameters, move.split([p.numel() for p in parameters]), strict=True):
        parameter.add_(piece.view_as(parameter))


@dataclass(frozen=True)
class ExactProblem:
    """A world and a policy in it, with the exact objective and gradients.

    Attributes:
        now, old: π_θ and π_old. start: the policy before any update, for parts that read a reference model.
        score, pull: (G·S·L, P) ∇log π_θ and ∇H at every place.
        reward_gradient: (P,) ∇ E_x E_{y~π_θ}[r]. imitation_gradient: (P,) −∇ E_x KL(π_β‖π_θ).
        value: (G, S, L) E[r | x, y_<t] under π_old: a perfect critic's value before each token.
    """

    world: World
    now: Listing
    old: Listing
    start: Listing
    score: Tensor
    pull: Tensor
    reward_gradient: Tensor
    imitation_gradient: Tensor
    value: Tensor

    def gradient(self, mu: float) -> Tensor:
        """(P,) ∇J_μ, J_μ = E[r] − μ·KL(π_β‖π_θ). Source: arXiv 2509.04419, section 3."""
        return self.reward_gradient + mu * self.imitation_gradient


def exact_problem(world: World, kind: Kind = "table", *, stale: int = 0, rate: float = 1.0) -> ExactProblem:
    """The policy `stale` updates after the one that samples: θ ← θ + rate·∇E[r], with the exact gradient."""
    policy = start(kind, world)
    first = listed(policy, world).detached()
    parameters = list(policy.parameters())
    for _ in range(stale):
        add(parameters, rate * _exact(policy, world)[0])
    rewarded, imitated = _exact(policy, world)
    now = listed(policy, world)
    return ExactProblem(
        world,
        now.detached(),
        first,
        first,
        _jacobian(now.logp, policy),
        _jacobian(now.entropy, policy),
        rewarded,
        imitated,
        _value(world, first),
    )


def _exact(policy: Policy, world: World) -> tuple[Tensor, Tensor]:
    """∇E[r] and −∇KL(π_β‖π_θ), means over prompts, by going through all sequences."""
    parameters = list(policy.parameters())
    listing = listed(policy, world)
    expected = (listing.probability * world.reward).sum(1).mean()
    likelihood = (world.demonstrator * listing.logp.sum(-1)).sum(1).mean()
    gradients = [
        torch.autograd.grad(objective, parameters, retain_graph=True, allow_unused=True)
        for objective in (expected, likelihood)
    ]
    return flat(gradients[0], parameters), flat(gradients[1], parameters)


def _jacobian(numbers: Tensor, policy: Policy) -> Tensor:
    """(G·S·L, P) the derivatives of every number."""
    parameters = list(policy.parameters())
    rows = (
        torch.autograd.grad(number, parameters, retain_graph=True, allow_unused=True) for number in numbers.flatten()
    )
    return torch.stack([flat(row, parameters) for row in rows])


def _value(world: World, old: Listing) -> Tensor:
    """(G, S, L) the expected reward of what may follow each beginning."""
    values = torch.zeros_like(old.logp)
    share = old.probability
    for place in range(world.length):
        beginnings = [sequence[:place] if len(sequence) > place else None for sequence in world.sequences]
        for beginning in {prefix for prefix in beginnings if prefix is not None}:
            same = torch.tensor([sequence[:place] == beginning for sequence in world.sequences])
            going = torch.tensor([prefix == beginning for prefix in beginnings])
            expected = (share * world.reward)[:, same].sum(1) / share[:, same].sum(1)
            values[:, going, place] = expected[:, None]
    return values


MOST = 4096
"""The largest number of outcomes that are gone through one by one."""


@dataclass(frozen=True)
class Setting:
    """The settings of a batch.

    Attributes:
        prompts: B, drawn from the world's with replacement. n: rollouts of each.
        step: the rollout batch's index, which schedules and switches read.
    """

    prompts: int = 4
    n: int = 8
    step: int = 0


@dataclass(frozen=True)
class Draw:
    """Indices into the world: (B,) prompts, (B, n) rollouts' sequences, (B,) demonstrations' sequences."""

    prompts: Tensor
    rollouts: Tensor
    demonstrations: Tensor


def draws(problem: ExactProblem, setting: Setting, count: int, seed: int) -> Iterator[Draw]:
    """`count` draws."""
    random, world = torch.Generator().manual_seed(seed), problem.world
    for _ in range(count):
        prompts = torch.randint(0, world.prompts, (setting.prompts,), generator=random)
        rollouts = torch.multinomial(problem.old.probability[prompts], setting.n, replacement=True, generator=random)
        shown = torch.multinomial(world.demonstrator[prompts], 1, generator=random)[:, 0]
        yield Draw(prompts, rollouts, shown)


def outcomes(problem: ExactProblem, setting: Setting) -> list[tuple[float, Draw]] | None:
    """Every draw with its probability, or None where there are too many.

    Rollouts of a prompt are exchangeable, so each multiset is listed once, with the probability of all its orders.
    """
    world = problem.world
    size = len(world.sequences)
    shown = [torch.nonzero(row)[:, 0].tolist() for row in world.demonstrator]
    per_prompt = math.comb(size + setting.n - 1, setting.n) * sum(map(len, shown))
    if per_prompt**setting.prompts > MOST:
        return None
    single = [
        (_chance(problem, x, picked) * float(world.demonstrator[x, show]) / world.prompts, x, picked, show)
        for x in range(world.prompts)
        for picked in combinations_with_replacement(range(size), setting.n)
        for show in shown[x]
    ]
    batches = []
    for combination in product(single, repeat=setting.prompts):
        chance = math.prod(outcome[0] for outcome in combination)
        prompts, rollouts, demonstrations = (torch.tensor([outcome[i] for outcome in combination]) for i in (1, 2, 3))
        batches.append((chance, Draw(prompts, rollouts, demonstrations)))
    return batches


def _chance(problem: ExactProblem, x: int, picked: tuple[int, ...]) -> float:
    """The probability that the rollouts of a prompt are these, in any order."""
    orders = math.factorial(len(picked))
    for times in Counter(picked).values():
        orders //= math.factorial(times)
    return orders * math.prod(float(problem.old.probability[x, sequence]) for sequence in picked)


@dataclass(frozen=True)
class Sampled:
    """A batch, and the index of each token in the world's list: (T,) x·S·L + y·L + t."""

    batch: Batch
    place: Tensor


def sampled(problem: ExactProblem, setting: Setting, estimator: Estimator, draw: Draw, *, stale: bool) -> Sampled:
    """The batch of a draw, as a run would make it for this estimator: with what its terms want, and no more."""
    world, terms = problem.world, estimator.wants(setting.step)
    rollouts = draw.rollouts if not terms or estimator.wants_rollouts(setting.step) else draw.rollouts[:, :0]
    shown = draw.demonstrations[:, None]
    shown = shown if not terms or estimator.wants_demonstrations(setting.step) else shown[:, :0]
    columns = rollouts.shape[1] + shown.shape[1]
    sequence = torch.cat([rollouts, shown], 1).flatten()
    prompt = draw.prompts.repeat_interleave(columns)
    demonstration = torch.tensor([False] * rollouts.shape[1] + [True] * shown.shape[1]).repeat(len(draw.prompts))
    length = world.lengths[sequence]
    trajectory = torch.arange(len(sequence)).repeat_interleave(length)
    position = torch.arange(len(trajectory)) - (length.cumsum(0) - length)[trajectory]
    place = (prompt * len(world.sequences) + sequence)[trajectory] * world.length + position
    batch = Batch(
        logp=problem.now.logp.flatten()[place],
        trajectory=trajectory,
        group=torch.arange(len(draw.prompts)).repeat_interleave(columns),
        demonstration=demonstration,
        reward=world.reward[prompt, sequence],
        old_logp=problem.old.logp.flatten()[place] if stale else None,
        rollout_logp=problem.old.logp.flatten()[place],
        reference_logp=problem.start.logp.flatten()[place],
        entropy=problem.now.entropy.flatten()[place],
        value=problem.value.flatten()[place],
        truncated=world.truncated[sequence],
    )
    return Sampled(batch, place)
