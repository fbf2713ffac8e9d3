"""The table of metrics: every name in metrics.jsonl and timings.jsonl, with its phase, unit and meaning.

Whatever logs a metric is tested against the table; the documentation's table and the reports' labels are made from it.
"""

from __future__ import annotations

import re
from collections.abc import Container
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

Phase = Literal["check", "train", "eval", "time"]
"""The lines that have a metric: `time` stands for timings.jsonl, the others for the `phase` in metrics.jsonl."""

REWARD, TERMS, OPTIMIZATION, RESPONSES = "Reward and success", "Terms", "Optimization", "Responses"
SUBJECTS = (REWARD, TERMS, OPTIMIZATION, RESPONSES)
"""What the metrics of training are grouped by, in documentation and reports."""

SHARE, FLAG = "share", "0 or 1"
UNIT_INTERVAL = (SHARE, FLAG)
"""The units of what lies between 0 and 1."""

_PLACEHOLDERS = {
    "term": "[^/]+",
    "field": "[^/]+",
    "check": "[^/]+",
    "place": ".+",
    "split": ".+",
    "n": r"\d+",
    "k": r"\d+",
}
_PLACEHOLDER = re.compile("<(" + "|".join(_PLACEHOLDERS) + ")>")


@dataclass(frozen=True)
class Metric:
    """A row of the table.

    Attributes:
        name: as it is logged; `<term>`, `<field>`, `<check>`, `<place>`, `<split>`, `<n>` and `<k>` stand for any of
            these.
        phase, unit: of its lines, of its values. meaning: half a sentence. subject: see `SUBJECTS`.
        remark: what the documentation adds.
    """

    name: str
    phase: Phase
    unit: str
    meaning: str
    subject: str = ""
    remark: str = ""

    @property
    def note(self) -> str:
        """The meaning with its unit, where that says more than the values do."""
        return f"{self.meaning}, {self.unit}" if self.unit.startswith("nats") else self.meaning

    @cached_property
    def pattern(self) -> re.Pattern[str]:
        """Matches the logged names; a group for each placeholder."""
        pieces = _PLACEHOLDER.split(self.name)
        return re.compile(
            "".join(
                f"(?P<{piece}>{_PLACEHOLDERS[piece]})" if index % 2 else re.escape(piece)
                for index, piece in enumerate(pieces)
            )
        )


@dataclass(frozen=True)
class LoggedName:
    """A logged name as the table reads it. Attributes: metric: its row. values: of the row's placeholders."""

    metric: Metric
    values: dict[str, str]


METRICS: tuple[Metric, ...] = (
    Metric("reward", "train", "score", "mean over rollouts", REWARD),
    Metric("prompts/solved", "train", SHARE, "share of prompts with a rollout of reward above 0", REWARD),
    Metric("share/<term>", "train", SHARE, "share of prompts with a trajectory that the term weighs", REWARD),
    Metric(
        "signal", "train", SHARE, "share of prompts with s·Â ≠ 0 on some token", REWARD,
        "Only terms with the direction `likelihood` count, whose advantage is known before the update.",
    ),
    Metric("<term>/nll", "train", "nats", "mean −log π_θ of the weighed tokens", TERMS),
    Metric("<term>/ratio", "train", "ratio", "mean π_θ/π_ref over the weighed tokens", TERMS),
    Metric("<term>/masked", "train", SHARE, "share of the weighed tokens whose mask is 0", TERMS),
    Metric("<term>/advantage", "train", "advantage", "mean |Â| over the weighed tokens", TERMS),
    Metric("<term>/tokens", "train", "tokens", "tokens with a coefficient other than 0: the weighed tokens", TERMS),
    Metric(
        "<term>/clamped", "train", "tokens", "weighed tokens whose log-ratio is clamped to +20 nats", TERMS,
        "Logged only above 0. Such a token's weight is e²⁰·Â (verl gives it no gradient). Tokens whose ratio a mask "
        "bounds don't count. The run prints what to try.",
    ),
    Metric("grad_norm", "train", "norm", "norm of the gradient before clipping, mean over updates", OPTIMIZATION),
    Metric("lr", "train", "rate", "learning rate of the step", OPTIMIZATION),
    Metric("entropy", "train", "nats", "mean over response tokens", OPTIMIZATION, "Logged where a part reads it."),
    Metric(
        "sampled_entropy", "train", "nats", "mean −log π over the rollouts' tokens, as the engine reported it",
        OPTIMIZATION, "Logged where the engine reports log-probs; four digits.",
    ),
    Metric(
        "kl_old", "train", "nats a token", "KL(π_old‖π_θ)", OPTIMIZATION, "Logged where a part reads π_old.",
    ),
    Metric(
        "kl_reference", "train", "nats a token", "KL(π_θ‖π_0)", OPTIMIZATION, "Logged where a part reads π_0.",
    ),
    Metric("updates/made", "train", "updates", "optimizer steps taken", OPTIMIZATION),
    Metric("updates/without_signal", "train", "updates", "optimizer steps without any row to learn from", OPTIMIZATION),
    Metric("updates/not_finite", "train", "updates", "optimizer steps not taken: the gradient is not finite",
           OPTIMIZATION),
    Metric("updates/skipped", "train", "updates", "optimizer steps not taken: the norm is above `optimizer.skip_above`",
           OPTIMIZATION),
    Metric("rows", "train", "trajectories", "trajectories of the rollout batch", OPTIMIZATION),
    Metric("rows/alive", "train", "trajectories", "trajectories that went through the forward pass", OPTIMIZATION,
           "They can have a gradient. Each pass over the rollout batch (`train.epochs`) counts them again."),
    Metric(
        "weights/changed", "train", SHARE, "share of the weights with a gradient that an update changed", OPTIMIZATION,
        "Of a sample of each tensor, in the first updates after the warm-up; logged only below .05. Rounding lost the "
        "other updates, and the run prints what to try.",
    ),
    Metric("critic/loss", "train", "score²", "half the critic's squared error, mean over its tokens", OPTIMIZATION),
    Metric("critic/value", "train", "score", "V before the update, mean over the critic's tokens", OPTIMIZATION),
    Metric("critic/return", "train", "score", "the return that the critic learns, mean over its tokens", OPTIMIZATION),
    Metric("critic/grad_norm", "train", "norm", "norm of the critic's gradient before clipping", OPTIMIZATION),
    Metric("critic/updates/made", "train", "updates", "the critic's optimizer steps taken", OPTIMIZATION),
    Metric("critic/updates/not_finite", "train", "updates", "the critic's steps not taken: gradient not finite",
           OPTIMIZATION),
    Metric("critic/updates/skipped", "train", "updates", "the critic's steps not taken: norm above `skip_above`",
           OPTIMIZATION),
    Metric("health/<check>", "train", FLAG, "1 while a check warns", OPTIMIZATION,
           "See [the health checks](../health.md). Missing where the step lacks the metric that the check reads."),
    Metric("length", "train", "tokens", "response tokens, mean over rollouts", RESPONSES),
    Metric("truncated", "train", SHARE, "share of rollouts cut at the budget", RESPONSES),
    Metric("repetition", "train", SHARE, "share of rollouts that end in a phrase three times in a row", RESPONSES),
    Metric("demonstrations/missing", "train", "prompts", "prompts without a demonstration", RESPONSES),
    Metric("demonstrations/too_long", "train", "prompts", "prompts whose demonstration exceeds the budget", RESPONSES,
           "The token budget or the model's context. The demonstration is left out."),
    Metric("fields/<field>/missing", "train", "rows", "trajectories that the field has no number for", RESPONSES,
           "Logged only above 0. A part that weighs such a number ends the run."),
    Metric("refill/rounds", "train", "rounds", "rounds of fresh prompts", RESPONSES, "Logged with `rollout.refill`."),
    Metric("refill/discarded", "train", "prompts", "prompts that fresh ones have replaced", RESPONSES),
    Metric("refill/left", "train", "prompts", "prompts without weight after the last round", RESPONSES),
    Metric("prompts", "train", "prompts", "prompts of the rollout batch", RESPONSES),
    Metric("prompts/too_long", "train", "prompts", "prompts that leave no room for a response", RESPONSES,
           "With `rollout.max_tokens` they exceed the model's context, and get no rollouts."),
    Metric("data/problems", "check", "problems", "problems looked at"),
    Metric("data/prompts/too_long", "check", "problems", "prompts that leave no room for a response"),
    Metric("data/demonstrations/missing", "check", "problems", "problems without a demonstration"),
    Metric("data/demonstrations/too_long", "check", "problems", "demonstrations that exceed the budget"),
    Metric("data/demonstrations/wrong", "check", "problems", "demonstrations that the reward scores at most 0"),
    Metric("data/demonstrations/repeated", "check", "problems",
           "demonstrations that repeat what the prompt's template has opened", remark="Logged only above 0."),
    Metric("data/overlap/<split>", "check", "problems", "problems whose prompt is in the split too"),
    Metric("<place>/avg@<n>", "eval", "score", "mean score of n samples a problem"),
    Metric("<place>/pass@<k>", "eval", SHARE, "chance that one of k samples is right, unbiased"),
    Metric("<place>/maj@<n>", "eval", SHARE, "share of problems whose most frequent answer is right",
           remark="Only in [evaluations](../evaluation.md) of a trained model, where the reward reads answers."),
    Metric("<place>/truncated", "eval", SHARE, "share of responses cut at the budget"),
    Metric("<place>/length", "eval", "tokens", "response tokens, mean over problems"),
    Metric("collect", "time", "s", "prompts, sampling, rewards", remark="In the lines of training."),
    Metric("learn", "time", "s", "the optimizer steps, and handing the weights to the engine",
           remark="In the lines of training."),
    Metric("seconds", "time", "s", "a whole measurement", remark="In the lines of measurements."),
)  # fmt: skip
"""Every metric, in the order in which documentation and reports show them."""


def lookup(name: str, phase: Phase, terms: Container[str] | None = None) -> LoggedName | None:
    """The row of a logged name; None where no row matches.

    Args: terms: of the estimator, if they are known: they tell `share/<term>` from a term that is called `share`.
    """
    for metric in METRICS:
        match = metric.pattern.fullmatch(name) if metric.phase == phase else None
        if match is not None:
            values = match.groupdict()
            if terms is None or "term" not in values or values["term"] in terms:
                return LoggedName(metric, values)
    return None
