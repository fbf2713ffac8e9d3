"""Where estimators are measured: a policy, the one that sampled, and the exact gradient of the objective."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from upge.study.policies import Kind, Listing, Policy, add, flat, listed, start
from upge.study.world import World


@dataclass(frozen=True)
class Ground:
    """What follows from a world and a policy in it.

    Attributes:
        now, old: π_θ and π_old. start: the policy before any update, for parts that read a reference model.
        score, pull: (G·S·L, P) ∇log π_θ and ∇H at every place.
        reward_gradient: (P,) ∇ E_x E_{y~π_θ}[r]. imitation_gradient: (P,) −∇ E_x KL(π_β‖π_θ).
        value: (G, S, L) E[r | x, y_<t] under π_old: what a perfect critic says before each token.
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


def ground(world: World, kind: Kind = "table", *, stale: int = 0, rate: float = 1.0) -> Ground:
    """The policy `stale` updates after the one that samples: θ ← θ + rate·∇E[r], with the exact gradient."""
    policy = start(kind, world)
    first = listed(policy, world).detached()
    parameters = list(policy.parameters())
    for _ in range(stale):
        add(parameters, rate * _exact(policy, world)[0])
    rewarded, imitated = _exact(policy, world)
    now = listed(policy, world)
    return Ground(
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
        torch.autograd.grad(each, parameters, retain_graph=True, allow_unused=True) for each in (expected, likelihood)
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
        for beginning in {each for each in beginnings if each is not None}:
            same = torch.tensor([sequence[:place] == beginning for sequence in world.sequences])
            going = torch.tensor([each == beginning for each in beginnings])
            expected = (share * world.reward)[:, same].sum(1) / share[:, same].sum(1)
            values[:, going, place] = expected[:, None]
    return values
