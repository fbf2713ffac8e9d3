"""Which metrics are drawn together, under which heading."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from upge.report.charts import Chart, curve
from upge.runs.reader import is_finite

Line = Mapping[str, Any]

BY_TERM = {
    "nll": "mean −log π_θ of the weighed tokens, nats",
    "ratio": "mean π_θ/π_ref over the weighed tokens",
    "masked": "share of the weighed tokens whose mask is 0",
    "advantage": "mean |Â| over the weighed tokens",
    "tokens": "tokens with a coefficient other than 0",
}
"""The metrics of each term, drawn together: `<term>/nll` and so on."""

NOTES = {
    "reward": "mean over rollouts",
    "prompts/solved": "share of prompts with a rollout of reward above 0",
    "length": "response tokens, mean over rollouts",
    "truncated": "share of rollouts cut at the budget",
    "entropy": "mean over response tokens, nats",
    "grad_norm": "before clipping",
    "lr": "learning rate",
    "signal": "share of prompts whose trajectories push anywhere",
    "sampled_entropy": "mean −log π over the rollouts' tokens, nats, as sampled",
    "repetition": "share of rollouts that end in a phrase said three times in a row",
    "kl_old": "KL(π_old‖π_θ), nats a token",
    "kl_reference": "KL(π_0‖π_θ), nats a token",
    "health": "1 while a check warns",
    "share": "share of prompts with a trajectory that the term weighs",
    "updates": "optimizer steps taken, and those not taken",
    "rows": "trajectories; alive: those that went through the forward pass",
    "refill": "rounds of fresh prompts, and prompts thrown away or left without weight",
    "demonstrations": "imitation that could not be had, prompts",
    "seconds": "by the clock; collect: prompts, sampling, rewards; learn: the optimizer steps",
}

DIVERGENCE = ("entropy", "sampled_entropy", "kl_old", "kl_reference")

SUBJECTS = (
    ("Reward and success", ("reward", "prompts/solved", "share", "signal")),
    ("Terms", tuple(BY_TERM)),
    ("Optimization", ("grad_norm", "lr", *DIVERGENCE, "updates", "rows", "critic", "health")),
    ("Responses", ("length", "truncated", "repetition", "demonstrations", "refill", "prompts")),
)
OTHER = "Other"

SHARES = ("share", "prompts/solved", "truncated", "masked", "signal", "repetition", "health")
"""What lies between 0 and 1."""

KEPT = ("reward", "share")
"""What is drawn even if it never changes."""


@dataclass(frozen=True)
class Group:
    """Charts under one heading."""

    title: str
    charts: list[Chart]


def groups(
    lines: Sequence[Line], timings: Sequence[Line], terms: Sequence[str]
) -> tuple[list[Group], dict[str, float]]:
    """The charts of training by subject, and the metrics that never changed with their values."""
    curves = {name: points(lines, name) for name in names(lines)}
    still = {name: line[0][1] for name, line in curves.items() if len({value for _, value in line}) == 1}
    drawn: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for name, line in curves.items():
        key, label = _place(name, terms)
        if name not in still or key in KEPT:
            drawn.setdefault(key, {})[label] = line
    for key in KEPT:
        still = {name: value for name, value in still.items() if _place(name, terms)[0] != key}
    charts = {key: _chart(key, found, terms) for key, found in drawn.items()}
    grouped = {title: [key for key in wanted if key in charts] for title, wanted in SUBJECTS}
    left = set(charts) - {key for keys in grouped.values() for key in keys}
    for key in sorted(left):
        grouped.setdefault(_subject(key), []).append(key)
    found = [Group(title, [charts[key] for key in keys]) for title, keys in grouped.items() if keys]
    return [*found, *_clocks(timings)], still


def names(lines: Sequence[Line]) -> list[str]:
    """The metrics that are numbers."""
    numbers = {key for line in lines for key, value in line.items() if is_finite(value)}
    return sorted(numbers - {"phase", "step"})


def points(lines: Sequence[Line], name: str) -> list[tuple[float, float]]:
    """(step, value) of a metric, where it is a finite number."""
    pairs = ((line["step"], line.get(name)) for line in lines)
    return [(float(step), float(value)) for step, value in pairs if value is not None and is_finite(value)]


def _place(name: str, terms: Sequence[str]) -> tuple[str, str]:
    """Which chart a metric is in, and what it is called there."""
    head, _, rest = name.partition("/")
    if head in terms and rest in BY_TERM:
        return rest, head
    if head in ("share", "updates", "refill", "demonstrations", "health"):
        return head, rest
    if name in ("rows", "rows/alive"):
        return "rows", rest or "all"
    return name, ""


def _subject(key: str) -> str:
    head = key.partition("/")[0]
    return next((title for title, wanted in SUBJECTS if head in wanted), OTHER)


def _chart(key: str, found: Mapping[str, list[tuple[float, float]]], terms: Sequence[str]) -> Chart:
    ordered = sorted(found, key=lambda label: (terms.index(label) if label in terms else len(terms), label))
    colours = {label: terms.index(label) if label in terms else index for index, label in enumerate(ordered)}
    series = [curve(label, found[label], colours[label]) for label in ordered]
    note = BY_TERM.get(key) or NOTES.get(key, "")
    title = {"share": "Terms chosen", "prompts/solved": "Prompts solved"}.get(key, key)
    return Chart(title, series, note=note, share=key in SHARES)


def _clocks(timings: Sequence[Line]) -> list[Group]:
    lines = [line for line in timings if isinstance(line, Mapping) and line.get("phase") == "train"]
    series = [curve(name, points(lines, name), index) for index, name in enumerate(names(lines))]
    return [Group("Time", [Chart("seconds a step", series, note=NOTES["seconds"])])] if series else []
