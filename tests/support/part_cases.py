"""Every installed part that is a factor of the equation, each with a few valid parameter sets, and an estimator for it.

A new part whose parameters have defaults is covered without a line here; one that requires parameters needs an entry.
"""

from __future__ import annotations

from typing import Any

from upge import Batch, Estimator, Part, registry
from upge.part import SLOTS, BuildContext, build
from upge.testing import Case, fixtures
from upge.testing.scenes import batch_for

FACTORS = ("mask", "denominator", "advantage", "reduction", "switch", "shaping", "selection", "weight")

SETTINGS: dict[tuple[str, str], tuple[dict[str, Any], ...]] = {
    ("mask", "clip"): (
        {"low": 0.2, "high": 0.2},
        {"low": 1.0, "high": 0.0},
        {"low": 0.1, "high": 0.28, "against": "old"},
        {"low": 0.1, "high": 0.28, "against": "rollout"},
    ),
    ("mask", "dual_clip"): (
        {"low": 0.2, "high": 0.2, "ratio_max": 3.0},
        {"low": 0.2, "high": 0.28, "ratio_max": 1.0, "against": "rollout"},
    ),
    ("mask", "cap"): ({"ratio_max": 5.0}, {"ratio_max": 1.0}, {"ratio_max": 1.5, "against": "old"}),
    ("mask", "cis_mask"): ({"low": 0.2, "high": 0.28}, {"low": 0.1, "high": 0.1, "against": "rollout"}),
    ("mask", "shaping"): ({"gamma": 0.1}, {"gamma": 2.0}),
    ("mask", "entropy_weight"): (
        {"sign": -1, "scale": 0.5},
        {"sign": 1, "scale": 0.1, "where": "positive"},
        {"sign": 1, "scale": 0.1, "where": "negative", "level": "sequence"},
    ),
    ("mask", "truncated_importance"): ({"cap": 2.0}, {"cap": 1.01}, {"cap": 1.02, "level": "sequence"}),
    ("denominator", "sequence"): ({}, {"of": "product"}),
    ("denominator", "field"): ({"of": "token_a"},),
    ("advantage", "leave_one_out"): ({}, {"over": "all"}, {"of": "trajectory_a"}),
    ("advantage", "reward"): ({}, {"of": "trajectory_a"}),
    ("advantage", "batch_norm"): (
        {},
        {"baseline": "group_mean", "unbiased": False, "epsilon": 1e-4},
        {"of": "trajectory_a"},
    ),
    ("advantage", "gae"): ({}, {"gamma": 0.9, "lambda": 0.8}, {"gamma": 0.0, "lambda": 0.5, "whiten": True}),
    ("advantage", "kl"): (
        {"estimator": "k2", "coefficient": 0.1},
        {"estimator": "k3", "coefficient": 0.04},
        {"estimator": "k2", "coefficient": 0.1, "to": "token_a"},
        {"estimator": "k3", "coefficient": 0.1, "to": "rollout"},
    ),
    ("reduction", "prompt_mean"): ({}, {"count": "active"}),
    ("switch", "linear"): ({"success": "rl", "failure": "sft"},),
    ("switch", "phases"): (
        {"first": "sft", "then": "rl", "steps": 2},
        {"first": ["sft", "rl"], "then": "rl", "steps": 0},
        {"first": "sft", "then": ["sft", "rl"], "steps": 0},
    ),
    ("switch", "schedule"): (
        {"weights": {"rl": 0.5, "sft": {"start": 0.9, "end": 0.05, "steps": 200}}},
        {"weights": {"sft": 0.0}},
    ),
    ("switch", "informative"): ({"keep": "rl"}, {"keep": ["rl", "sft"], "of": "trajectory_a"}),
    ("selection", "sign"): ({"of": "positive"}, {"of": "negative"}, {"of": "nonzero"}),
    ("selection", "top_entropy"): ({"share": 0.5}, {"share": 1.0}),
    ("selection", "turn"): ({"which": "last"}, {"which": [0, -1], "others": True}),
    ("selection", "known"): ({"of": "token_a"},),
    ("selection", "correct"): ({}, {"of": "trajectory_a", "above": -2.0}),
    ("shaping", "kl_in_reward"): ({"coefficient": 0.1}, {"coefficient": 0.1, "to": "token_a"}),
    ("shaping", "overlong"): ({"soft_limit": 2, "limit": 5}, {"soft_limit": 0, "limit": 3, "scale": 0.5}),
    ("advantage", "group_norm"): ({}, {"unbiased": False, "epsilon": 1e-4}, {"over": "all"}, {"of": "trajectory_a"}),
    ("advantage", "group_mean"): ({}, {"over": "all"}, {"of": "trajectory_a"}),
    ("advantage", "signed"): ({}, {"threshold": 0.5}, {"threshold": -2.0, "of": "trajectory_a"}),
    ("reduction", "constant"): ({"length": 8}, {"length": 3, "per": "none"}, {"length": 8, "count": "active"}),
    ("reduction", "token_mean"): ({}, {"count": "active"}),
    ("reduction", "sequence_mean"): ({}, {"count": "active"}),
    ("reduction", "sequence_sum"): ({}, {"count": "active"}),
    ("switch", "always"): ({"weights": {"rl": 0.5, "sft": -2.0}}, {"weights": {"rl": 0.0}}),
    ("switch", "success_rate"): (
        {"above": "rl", "otherwise": "sft"},
        {"above": "sft", "otherwise": "rl", "threshold": 0.25},
        {"above": "sft", "otherwise": "rl", "of": "trajectory_a"},
    ),
}


def values(*slots: str) -> list[tuple[str, dict[str, Any]]]:
    """(slot, YAML value) of every installed part in these slots, with each of its parameter sets. Imports no part."""
    found = []
    for offer in registry.entries():
        if offer.slot in slots:
            for parameters in SETTINGS.get((offer.slot, offer.name), ({},)):
                found.append((offer.slot, {"use": offer.name, **parameters}))
    return found


def describe(value: object) -> str:
    """How a case is called in pytest's output."""
    if isinstance(value, dict):
        parameters = (f"{k}={v}" for k, v in value.items() if k != "use")
        return " ".join([str(value["use"]), *parameters])
    return str(value)


def made(slot: str, value: dict[str, Any]) -> Part:
    """The part of a YAML value."""
    part = build(SLOTS[slot], value, BuildContext())
    assert isinstance(part, Part)
    return part


def estimator(value: dict[str, Any]) -> Estimator:
    """An estimator from a recipe's `estimator` block."""
    return Estimator.model_validate(value)


def hosted(slot: str, value: dict[str, Any], case: Case) -> tuple[Estimator, Batch]:
    """The estimator of `host`, and the batch of a case with the fields that it reads by name."""
    whole = host(slot, value)
    return whole, batch_for(whole, case)


def host(slot: str, value: dict[str, Any]) -> Estimator:
    """An estimator in which this part has a say, among parts that distinguish tokens."""
    return fixtures.host(made(slot, value))
