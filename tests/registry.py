"""Every installed part that is a factor of the equation, each with a few valid parameter sets, and an estimator for it.

A new part whose parameters have defaults is covered without a line here; one that requires parameters needs an entry.
"""

from __future__ import annotations

from typing import Any

from methods import CLIP, RL, SFT, Given

from upge import Estimator, Part, discovery
from upge.parts import SLOTS, Workshop, build

FACTORS = ("mask", "denominator", "advantage", "reduction", "switch", "shaping")

SETTINGS: dict[tuple[str, str], tuple[dict[str, Any], ...]] = {
    ("mask", "clip"): (
        {"low": 0.2, "high": 0.2},
        {"low": 1.0, "high": 0.0},
        {"low": 0.1, "high": 0.28, "against": "old"},
        {"low": 0.1, "high": 0.28, "against": "rollout"},
    ),
    ("advantage", "group_norm"): ({}, {"unbiased": False, "epsilon": 1e-4}, {"over": "all"}),
    ("advantage", "group_mean"): ({}, {"over": "all"}),
    ("advantage", "signed"): ({}, {"threshold": 0.5}),
    ("reduction", "constant"): ({"length": 8}, {"length": 3, "per": "none"}, {"length": 8, "count": "active"}),
    ("reduction", "token_mean"): ({}, {"count": "active"}),
    ("reduction", "sequence_mean"): ({}, {"count": "active"}),
    ("reduction", "sequence_sum"): ({}, {"count": "active"}),
    ("switch", "always"): ({"weights": {"rl": 0.5, "sft": -2.0}}, {"weights": {"rl": 0.0}}),
    ("switch", "success_rate"): (
        {"above": "rl", "otherwise": "sft"},
        {"above": "sft", "otherwise": "rl", "threshold": 0.25},
    ),
}


def values(*slots: str) -> list[tuple[str, dict[str, Any]]]:
    """(slot, YAML value) of every installed part in these slots, with each of its parameter sets. Imports no part."""
    found = []
    for offer in discovery.offers():
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
    part = build(SLOTS[slot], value, Workshop())
    assert isinstance(part, Part)
    return part


def estimator(value: dict[str, Any]) -> Estimator:
    """An estimator from a recipe's `estimator` block."""
    return Estimator.model_validate(value)


def host(slot: str, value: dict[str, Any]) -> Estimator:
    """An estimator in which this part has a say, among parts that distinguish tokens."""
    rl: dict[str, Any] = {**RL, "mask": CLIP, "advantage": "group_mean", "reduction": "sequence_mean"}
    sft: dict[str, Any] = {**SFT, "reduction": "token_mean", "weight": 0.5}
    block: dict[str, Any] = {"terms": {"rl": rl, "sft": sft}, "switch": [], "shaping": []}
    if slot in ("switch", "shaping"):
        block[slot] = [value]
    else:
        rl[slot] = value
    if slot == "mask":
        rl["advantage"] = Given()
    if slot == "reduction":  # with a gate, so that some rows are inactive
        sft["reduction"] = value
        block["switch"] = [{"use": "success_rate", "above": "rl", "otherwise": "sft"}]
    return estimator(block)
