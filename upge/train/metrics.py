"""A step's metrics: sums and means over its micro-batches and ranks; their names stand in `upge.runs.metric_names`."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor

from upge.estimator.batch import Batch
from upge.estimator.credit import Credit, TermWeights, Weighed
from upge.estimator.estimator import Estimator
from upge.estimator.view import LOG_RATIO_BOUND, log_ratio
from upge.rollouts.rollout_batch import RolloutBatch
from upge.types import Trajectory

MEANS = ("signal", "sampled_entropy", "repetition", "kl_old", "kl_reference")
"""The names of the metrics, all of them means."""

MOVED = 0.05
"""Of the weights that have a gradient, the share below which an update is said to be rounded away."""


class Means(Protocol):
    """What observations are told to."""

    def mean(self, name: str, total: float, count: float) -> None:
        """Add `count` observations that sum to `total` to a mean."""


def of_rollouts(tally: Means, trajectories: Sequence[Trajectory]) -> None:
    """`sampled_entropy` and `repetition` of a rollout batch.

    The entropy is the mean of −log π over tokens, as the engine reported it of those that it drew: E_{x∼π}[−log π(x)]
    = H(π), so that the estimate is unbiased, and it is known of all rollouts, also of those that no gradient takes.
    """
    rollouts = [each for each in trajectories if not each.demonstration]
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
        if not (value == 0 and (name.endswith("/clamped") or name.startswith("fields/")))
        and not (name == "weights/changed" and value >= MOVED)
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


class StepMetrics:
    """Collects sums and means under metric names; `reduced` adds them up over ranks."""

    def __init__(
        self,
        terms: Iterable[str],
        reduce: Callable[[Tensor], Tensor],
        *,
        entropy: bool = False,
        critic: bool = False,
        fields: Iterable[str] = (),
    ) -> None:
        self._reduce = reduce
        self._sums: dict[str, float] = defaultdict(float)
        self._means: dict[str, tuple[float, float]] = defaultdict(lambda: (0.0, 0.0))
        # Every rank must know the same names, also one that sees no row of a term.
        for name in ("updates/without_signal", "rows/alive"):
            self._sums[name] = 0.0
        self._sums |= {f"fields/{name}/missing": 0.0 for name in fields}
        for model in ("", "critic/") if critic else ("",):
            self._sums |= {f"{model}updates/{outcome}": 0.0 for outcome in ("made", "not_finite", "skipped")}
        means = ["grad_norm", "weights/changed", *MEANS, *(["entropy"] if entropy else [])]
        if critic:
            means += [f"critic/{name}" for name in ("grad_norm", "loss", "value", "return")]
        for term in terms:
            self._sums |= {f"{term}/tokens": 0.0, f"{term}/clamped": 0.0}
            means += [f"{term}/{name}" for name in ("nll", "masked", "ratio", "advantage")]
        for name in means:
            self.mean(name, 0.0, 0.0)

    def add(self, name: str, amount: float) -> None:
        """Add to a sum."""
        self._sums[name] += amount

    def mean(self, name: str, total: float, count: float) -> None:
        """Add `count` observations that sum to `total` to a mean."""
        before, seen = self._means[name]
        self._means[name] = (before + total, seen + count)

    def rollouts(self, rollouts: RolloutBatch, estimator: Estimator) -> None:
        """What a rollout batch with its credit says before any forward pass."""
        self.credit(rollouts.batch, rollouts.settled)
        of_rollouts(self, rollouts.trajectories)
        raised = [name for name, term in estimator.terms.items() if term.direction == "likelihood"]
        of_credit(self, rollouts.batch, rollouts.settled, raised)

    def credit(self, batch: Batch, credit: Credit) -> None:
        """What a rollout batch says before any forward pass."""
        rollouts = ~batch.demonstration
        count = float(rollouts.sum())
        solved = torch.zeros(batch.prompts, dtype=torch.bool, device=batch.reward.device)
        solved[batch.prompt[rollouts & (batch.reward > 0)]] = True
        self.add("rows", batch.size)
        self.add("prompts", batch.prompts)
        self.mean("prompts/solved", float(solved.sum()), batch.prompts)
        self.mean("reward", float(batch.reward[rollouts].sum()), count)
        self.mean("length", float(batch.length[rollouts].sum()), count)
        if batch.truncated is not None:
            self.mean("truncated", float(batch.truncated[rollouts].sum()), count)
        for name, term in credit.terms.items():
            weighed = torch.zeros_like(solved)
            weighed[batch.prompt[term.active]] = True
            self.mean(f"share/{name}", float(weighed.sum()), batch.prompts)

    def weighed(self, batch: Batch, weighed: Weighed) -> None:
        """What a micro-batch says."""
        assert batch.logp is not None
        for name, term in weighed.terms.items():
            in_play = term.active
            count = float(in_play.sum())
            self.add(f"{name}/tokens", count)
            self.add(f"{name}/clamped", float(clamped(term).sum()))
            self.mean(f"{name}/nll", float(-batch.logp.detach()[in_play].sum()), count)
            self.mean(f"{name}/masked", float((term.mask[in_play] == 0).sum()), count)
            self.mean(f"{name}/ratio", float(term.ratio[in_play].sum()), count)
            self.mean(f"{name}/advantage", float(term.advantage[in_play].abs().sum()), count)
        if batch.entropy is not None:
            self.mean("entropy", float(batch.entropy.detach().sum()), batch.entropy.numel())
        of_micro_batch(self, batch)

    def reduced(self) -> dict[str, float]:
        """Every sum and mean over all ranks; a mean of nothing is left out."""
        sums, means = sorted(self._sums), sorted(self._means)
        flat = [self._sums[name] for name in sums] + [part for name in means for part in self._means[name]]
        total = self._reduce(torch.tensor(flat, dtype=torch.float64)).tolist()
        result = dict(zip(sums, total, strict=False))
        pairs = zip(means, total[len(sums) :: 2], total[len(sums) + 1 :: 2], strict=True)
        found = result | {name: value / count for name, value, count in pairs if count}
        if "reward" not in found:
            found.pop("prompts/solved", None)  # of prompts without rollouts nothing was asked
        return worth(found) | rounded(found)
