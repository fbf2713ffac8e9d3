"""Health checks: one that fails for long enough warns, and ends the run where the recipe asks for it; docs/health.md.

They read a step's metrics, which are the same on all ranks, and what they count is saved with the run. A check that a
step says nothing of (the clip fraction of imitation, say) stays as it was.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from upge.errors import InputError
from upge.estimator.estimator import Estimator
from upge.files import is_count, is_number
from upge.recipe.schema import (
    ClipFraction,
    EntropyCollapse,
    Health,
    KLBlowup,
    LengthExplosion,
    NoSignal,
    Recipe,
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
class HealthCheck:
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
    said = f"{share:.3g} of the rollouts end in a phrase repeated three times; warns above {settings.above:.3g}"
    return Reading(share > settings.above, said)


SIGNS: Mapping[str, HealthCheck] = {
    "entropy_collapse": HealthCheck(
        entropy_collapse,
        "the policy hardly varies its responses any more, so there is little to learn from their differences",
        "a lower optimizer.lr, fewer train.epochs, a larger `high` of the clip, or a term that pushes on the entropy",
    ),
    "kl_blowup": HealthCheck(
        kl_blowup,
        "the policy has gone far from the one that its rollouts, or its first skills, come from",
        "a lower optimizer.lr, optimizer.clip_norm, fewer train.minibatches or train.epochs, or a heavier KL term",
    ),
    "no_signal": HealthCheck(
        no_signal,
        "no token is pushed anywhere: the rollouts of a prompt all score the same, or no term weighs it",
        "easier or harder problems, a larger rollout.n, rollout.refill; also check the rewards in completions.jsonl",
    ),
    "clip_fraction": HealthCheck(
        clip_fraction,
        "the policy leaves the trust region early in a rollout batch, and the rest of the batch teaches little",
        "a lower optimizer.lr, fewer train.epochs or train.minibatches, or a wider trust region",
    ),
    "length_explosion": HealthCheck(
        length_explosion,
        "responses no longer come to an end within the budget, and are scored unfinished",
        "a shaping that penalizes length, or a larger rollout.max_tokens; also read the ends in completions.jsonl",
    ),
    "repetition": HealthCheck(
        repetition,
        "responses end in loops: the policy has degenerated",
        "a lower optimizer.lr, an earlier checkpoint, or a rollout.temperature nearer 1",
    ),
}
"""Every check by its name."""


def clipping(estimator: Estimator) -> tuple[str, ...]:
    """The terms all of whose masks are trust regions. What another mask leaves out, it leaves out on purpose."""
    terms = estimator.terms.items()
    return tuple(name for name, term in terms if term.mask and all(mask.trust_region for mask in term.mask))


@dataclass
class HealthMonitor:
    """Looks at one rollout batch after another.

    Attributes:
        settings: the recipe's block `health`. clipping, first, teacher: see `Seen`.
        failed: for each check, how many rollout batches in a row have failed it. warned: the checks that have warned
            and are not over. last: each check's newest reading.
    """

    settings: Health
    clipping: tuple[str, ...] = ()
    failed: dict[str, int] = field(default_factory=dict)
    warned: list[str] = field(default_factory=list)
    first: dict[str, float] = field(default_factory=dict)
    last: dict[str, Reading] = field(default_factory=dict)
    teacher: bool = False

    @classmethod
    def of(cls, recipe: Recipe) -> HealthMonitor:
        """The watch that a recipe asks for."""
        teacher = recipe.reference.path not in (None, recipe.model.path)
        return cls(recipe.health, clipping(recipe.estimator), teacher=teacher)

    def look(self, step: int, metrics: Mapping[str, Any]) -> tuple[dict[str, float], list[str]]:
        """Look at the metrics of the next rollout batch.

        Returns: `health/<check>` for each check that they say something of, 1 while it warns, else 0; and what to tell.
        """
        marks, told, seen = {}, [], Seen(metrics, self.clipping, self.first, self.teacher)
        for name, sign in SIGNS.items():
            reading = None if name in self.settings.off else sign.read(getattr(self.settings, name), seen)
            if reading is not None:
                self.last[name] = reading
                self.failed[name] = self.failed.get(name, 0) + 1 if reading.failing else 0
                marks[f"health/{name}"] = float(self._ill(name))
                told += self._news(name, step)
        return marks, told

    def _ill(self, name: str) -> bool:
        patience: int = getattr(self.settings, name).patience
        return self.failed.get(name, 0) >= patience

    def _news(self, name: str, step: int) -> list[str]:
        """A warning where a check begins to, a line where that is over."""
        said = self.last[name].said
        if self._ill(name) == (name in self.warned):
            return []
        if name in self.warned:
            self.warned.remove(name)
            return [f"health: {name} is over at step {step}: {said}"]
        self.warned.append(name)
        sign, batches = SIGNS[name], self.failed[name]
        row = f", {batches} rollout batches in a row" if batches > 1 else ""
        return [f"health: {name} at step {step}{row}: {said}", f"  {sign.meaning}", f"  to try: {sign.remedy}"]

    def stops(self) -> list[str]:
        """Each check that now ends the run, with its number."""
        ending = [name for name in self.settings.stop if name in self.last and self._ill(name)]
        return [f"{name}: {self.last[name].said}" for name in ending]

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {"failed": self.failed, "warned": self.warned, "first": self.first}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take up what a checkpoint has kept, of checks that are still on; older checkpoints have kept nothing.

        Raises InputError where it is no such state.
        """
        failed, warned, first = state.get("failed", {}), state.get("warned", []), state.get("first", {})
        counted = isinstance(failed, dict) and all(map(is_count, failed.values()))
        measured = isinstance(first, dict) and all(map(is_number, first.values()))
        if not (counted and measured and isinstance(warned, list)):
            raise InputError("the checkpoint's progress.json lacks the state of the health checks")
        off = self.settings.off
        self.failed = {name: count for name, count in failed.items() if name not in off}
        self.warned = [name for name in warned if name not in off]
        self.first = dict(first)
