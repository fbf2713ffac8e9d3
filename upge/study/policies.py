"""Policies whose every log-probability can be listed: a table of softmaxes, and a transformer of one layer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from upge.study.world import World

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
        asked = torch.arange(world.prompts).repeat_interleave(len(rows))[:, None] + world.vocabulary
        self.tokens = torch.cat([asked, fed], 1)

    def forward(self) -> Tensor:
        """(G, S, L, V) log-probabilities."""
        logits = self.model(input_ids=self.tokens, use_cache=False).logits[..., : self.vocabulary]
        listed: Tensor = logits.log_softmax(-1).view(*self.shape, self.vocabulary)
        return listed


def start(kind: Kind, world: World) -> Policy:
    """A policy that answers each prompt rightly as often as the world says."""
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
        rows = [torch.autograd.grad(-each, parameters, retain_graph=True, allow_unused=True) for each in apart]
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
