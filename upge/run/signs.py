"""The health checks: what each reads from a step's metrics, what it means where it fails, and what to try then."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from upge.recipe.health import (
    ClipFraction,
    EntropyCollapse,
    KLBlowup,
    LengthExplosion,
    NoSignal,
    Repetition,
)


@dataclass(frozen=True)
class Reading:
    """What a check finds in a rollout batch. Attributes: failing: whether it fails. said: number and threshold."""

    failing: bool
    said: str


@dataclass(frozen=True)
class Seen:
    """What there is to read.

    Attributes:
        metrics: of a rollout batch. clipping: the terms with masks of which every one is a trust region.
        first: what was measured first, by metric; reading adds to it. A single rollout batch: a run may go wrong in its
            second one, and would be held against itself.
        teacher: whether the reference model is another one than the policy's start.
    """

    metrics: Mapping[str, Any]
    clipping: tuple[str, ...]
    first: dict[str, float]
    teacher: bool = False

    def start(self, name: str) -> float:
        """What the metric was when it was measured first, now perhaps."""
        return self.first.setdefault(name, self.metrics[name])


@dataclass(frozen=True)
class Sign:
    """A check: `read` gives None where a step says nothing of it; `meaning` and `remedy` are for whoever is warned."""

    read: Callable[[Any, Seen], Reading | None]
    meaning: str
    remedy: str


def entropy_collapse(settings: EntropyCollapse, seen: Seen) -> Reading | None:
    """The rollouts' entropy against its start; where the engine reports no log-probs, that of the gradient's tokens."""
    name = next((name for name in ("sampled_entropy", "entropy") if name in seen.metrics), None)
    if name is None:
        return None
    now, start = seen.metrics[name], seen.start(name)
    limit = settings.below * start
    return Reading(now < limit, f"entropy {now:.3g} nats a token, {start:.3g} at the start; warns below {limit:.3g}")


def kl_blowup(settings: KLBlowup, seen: Seen) -> Reading | None:
    """Either divergence against its threshold; that from a teacher, which is far at the start, against its growth."""
    found = []
    if "kl_old" in seen.metrics:
        found.append(("KL(π_old‖π_θ)", seen.metrics["kl_old"], settings.old, ""))
    if "kl_reference" in seen.metrics:
        start = seen.start("kl_reference") if seen.teacher else 0.0
        since = f", {start:.3g} at the start" if seen.teacher else ""
        found.append(("KL(π_θ‖π_0)", seen.metrics["kl_reference"], start + settings.reference, since))
    if not found:
        return None
    failing = [each for each in found if each[1] > each[2]]
    said = (
        f"{label} {now:.3g} nats a token{since}; warns above {most:.3g}" for label, now, most, since in failing or found
    )
    return Reading(bool(failing), ", ".join(said))


def no_signal(settings: NoSignal, seen: Seen) -> Reading | None:
    """The share of prompts that push on something; none where there are no prompts."""
    share = seen.metrics.get("signal", 0.0 if seen.metrics.get("prompts") == 0 else None)
    if share is None:
        return None
    said = f"{share:.3g} of the prompts have an advantage other than 0; warns at {settings.at_most:.3g}"
    if "prompts/solved" in seen.metrics:
        said += f" ({seen.metrics['prompts/solved']:.3g} of them are solved by some rollout)"
    return Reading(share <= settings.at_most, said)


def clip_fraction(settings: ClipFraction, seen: Seen) -> Reading | None:
    """The largest share of tokens that a term's trust region masks."""
    shares = {name: seen.metrics[f"{name}/masked"] for name in seen.clipping if f"{name}/masked" in seen.metrics}
    if not shares:
        return None
    worst = max(shares, key=lambda name: shares[name])
    said = f"{shares[worst]:.3g} of the tokens of '{worst}' are clipped; warns above {settings.above:.3g}"
    return Reading(shares[worst] > settings.above, said)


def length_explosion(settings: LengthExplosion, seen: Seen) -> Reading | None:
    """How many fewer rollouts come to an end than at the start: longer responses that end are no explosion."""
    if "truncated" not in seen.metrics:
        return None
    now, start = seen.metrics["truncated"], seen.start("truncated")
    limit = start + settings.above * (1 - start)
    return Reading(now > limit, f"{now:.3g} of the rollouts are cut, {start:.3g} at the start; warns above {limit:.3g}")


def repetition(settings: Repetition, seen: Seen) -> Reading | None:
    """The share of rollouts that end in a loop."""
    if "repetition" not in seen.metrics:
        return None
    share = seen.metrics["repetition"]
    said = f"{share:.3g} of the rollouts end in a phrase said three times; warns above {settings.above:.3g}"
    return Reading(share > settings.above, said)


SIGNS: Mapping[str, Sign] = {
    "entropy_collapse": Sign(
        entropy_collapse,
        "the policy hardly varies its responses any more, so there is little to learn from their differences",
        "a lower optimizer.lr, fewer train.epochs, a larger `high` of the clip, or a term that pushes on the entropy",
    ),
    "kl_blowup": Sign(
        kl_blowup,
        "the policy has gone far from the one that its rollouts, or its first skills, come from",
        "a lower optimizer.lr, optimizer.clip_norm, fewer train.minibatches or train.epochs, or a heavier KL term",
    ),
    "no_signal": Sign(
        no_signal,
        "no token is pushed anywhere: the rollouts of a prompt all score the same, or no term weighs it",
        "easier or harder problems, a larger rollout.n, rollout.refill, and a look at the reward in completions.jsonl",
    ),
    "clip_fraction": Sign(
        clip_fraction,
        "the policy leaves the trust region early in a rollout batch, and the rest of the batch teaches little",
        "a lower optimizer.lr, fewer train.epochs or train.minibatches, or a wider trust region",
    ),
    "length_explosion": Sign(
        length_explosion,
        "responses no longer come to an end within the budget, and are scored unfinished",
        "a look at the ends in completions.jsonl, a shaping that charges for length, or a larger rollout.max_tokens",
    ),
    "repetition": Sign(
        repetition,
        "responses end in loops: the policy has degenerated",
        "a lower optimizer.lr, an earlier checkpoint, or a rollout.temperature nearer 1",
    ),
}
"""Every check by its name."""
