"""What a step tells of a run's health beside its rewards: metrics that `upge.run.health` looks at."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor

from upge.batch import LOG_RATIO_BOUND, Batch, log_ratio
from upge.credit import Credit, TermWeights
from upge.flow import Trajectory
from upge.run.packing import Grouped

MEANS = ("signal", "sampled_entropy", "repetition", "kl_old", "kl_reference")
"""The names of the metrics, all of them means."""

MOVED = 0.05
"""Of the weights that have a gradient, the share below which an update is said to be rounded away."""


class Means(Protocol):
    """What observations are told to."""

    def mean(self, name: str, total: float, count: float) -> None:
        """Add `count` observations that sum to `total` to a mean."""


def of_rollouts(tally: Means, grouped: Grouped) -> None:
    """`sampled_entropy` and `repetition` of a rollout batch.

    The entropy is the mean of −log π over tokens, as the engine reported it of those that it drew: E_{x∼π}[−log π(x)]
    = H(π), so that the estimate is unbiased, and it is known of all rollouts, also of those that no gradient takes.
    """
    rollouts = [each for _, each in grouped if not each.demonstration]
    tally.mean("repetition", float(sum(map(loops, rollouts))), len(rollouts))
    for each in rollouts:
        if each.rollout_logp is not None:
            tally.mean("sampled_entropy", sum(-logp for logp in each.rollout_logp), len(each.rollout_logp))


def rounded(metrics: Mapping[str, float]) -> dict[str, float]:
    """`sampled_entropy` to four digits, which is more than an estimate has.

    An engine's log-probs differ in their last bits with what else it samples at once, and so would the metrics.
    """
    return {name: float(f"{metrics[name]:.4g}") for name in ("sampled_entropy",) if name in metrics}


def worth(metrics: Mapping[str, float]) -> dict[str, float]:
    """The metrics without those that tell of a fault and have none to tell of."""
    return {
        name: value
        for name, value in metrics.items()
        if not (name.endswith("/clamped") and value == 0) and not (name == "weights/changed" and value >= MOVED)
    }


def clamped(term: TermWeights) -> Tensor:
    """(T,) bool: tokens whose log-ratio is at the bound of +20 nats, and whose weight no mask has bounded.

    At −20 nats the weight is too small to see; a mask that caps the ratio has made of e²⁰ what it makes of any more.
    """
    at_bound = term.ratio.log() >= LOG_RATIO_BOUND * (1 - 1e-6)
    return at_bound & (term.weight != 0) & (term.mask * term.ratio > math.exp(LOG_RATIO_BOUND / 2))


def loops(rollout: Trajectory) -> bool:
    """Whether a response, its stop token left aside, ends in a phrase of two or more tokens said three times in a row.

    Source: arXiv 1904.09751 (the likelihood of degeneration into repetition).
    """
    tokens = rollout.response if rollout.truncated else rollout.response[:-1]
    return any(_said_three_times(tokens, length) for length in range(2, len(tokens) // 3 + 1))


def _said_three_times(tokens: Sequence[int], length: int) -> bool:
    last = tokens[-length:]
    return last == tokens[-2 * length : -length] and last == tokens[-3 * length : -2 * length]


def of_credit(tally: Means, batch: Batch, credit: Credit, pushing: Iterable[str]) -> None:
    """`signal`: the share of prompts with a token of which some term has s·Â ≠ 0.

    Args: pushing: the terms that push on the likelihood; those whose Â waits for a forward pass say nothing here.
    """
    settled = [credit.terms[name] for name in pushing if credit.terms[name].advantage is not None]
    taught = torch.zeros(batch.prompts, dtype=torch.bool, device=batch.reward.device)
    for term in settled:
        assert term.advantage is not None
        rows = torch.zeros(batch.size, dtype=torch.bool, device=taught.device)
        rows[batch.trajectory[term.advantage != 0]] = True
        taught[batch.prompt[rows & (term.coefficient != 0)]] = True
    if settled:
        tally.mean("signal", float(taught.sum()), batch.prompts)


def of_micro_batch(tally: Means, batch: Batch) -> None:
    """`kl_old` and `kl_reference`: mean over the rollouts' tokens of x − 1 − log x, which is never below 0.

        KL(π_old‖π_θ): x = π_θ/π_old        KL(π_θ‖π_0): x = π_0/π_θ

    Both are unbiased where the tokens were drawn from the distribution named first.
    Source: "Approximating KL Divergence", Schulman 2020 (k3).
    """
    assert batch.logp is not None
    sampled = ~batch.demonstration[batch.trajectory]
    logp, count = batch.logp.detach()[sampled], float(sampled.sum())
    if batch.old_logp is not None:
        x = log_ratio(logp, batch.old_logp[sampled])
        tally.mean("kl_old", float((x.expm1() - x).sum()), count)
    if batch.reference_logp is not None:
        x = log_ratio(batch.reference_logp[sampled], logp)
        tally.mean("kl_reference", float((x.expm1() - x).sum()), count)
