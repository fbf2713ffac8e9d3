"""Laws 2 to 6, for every installed part and every method of the table."""

from __future__ import annotations

import json
from dataclasses import replace
from math import prod
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from support.methods import CLIP, METHODS, RL, SFT, Given
from support.part_cases import FACTORS, describe, estimator, hosted, made, values

from upge import Estimator, Mask, PartError
from upge.testing import laws, part_laws
from upge.testing.batches import EMPTY, PINNED, RICH, Case, Prompt, fresh
from upge.testing.scenes import batch_for
from upge.testing.strategies import cases

every_factor = pytest.mark.parametrize(("slot", "value"), values(*FACTORS), ids=describe)
every_mask = pytest.mark.parametrize("value", [value for _, value in values("mask")], ids=describe)
every_reduction = pytest.mark.parametrize("value", [value for _, value in values("reduction")], ids=describe)
every_method = pytest.mark.parametrize("name", METHODS)
seeds = st.integers(0, 2**16)

thrifty = settings(max_examples=max(5, settings().max_examples // 10))
"""For laws that every part is put to: there are many parts. `test_every_law_has_20_examples` counts them together."""


# 2. Splitting.


@every_factor
@thrifty
@example(EMPTY, 3, 2, 0)
@example(PINNED[5], 3, 4, 1)
@given(cases(), st.integers(1, 3), st.integers(1, 4), seeds)
def test_micro_batches_and_ranks_sum_to_the_whole(
    slot: str, value: dict[str, Any], case: Case, ranks: int, pieces: int, seed: int
) -> None:
    laws.check_splitting(*hosted(slot, value, case), ranks=ranks, pieces=pieces, seed=seed)


@every_method
@thrifty
@example(PINNED[5], 3, 4, 1)
@given(cases(), st.integers(1, 3), st.integers(1, 4), seeds)
def test_splitting_a_method_changes_nothing(name: str, case: Case, ranks: int, pieces: int, seed: int) -> None:
    laws.check_splitting(estimator(METHODS[name].estimator), case.batch, ranks=ranks, pieces=pieces, seed=seed)


@every_factor
@thrifty
@example(PINNED[5], 0)
@given(cases(), seeds)
def test_optimizer_steps_of_one_rollout_batch_count_by_themselves(
    slot: str, value: dict[str, Any], case: Case, seed: int
) -> None:
    laws.check_optimizer_steps(*hosted(slot, value, case), seed=seed)


@every_factor
@thrifty
@example(PINNED[2])
@given(cases())
def test_what_does_not_matter_can_be_dropped(slot: str, value: dict[str, Any], case: Case) -> None:
    laws.check_dropping(*hosted(slot, value, case))


@every_factor
@thrifty
@example(PINNED[5], 0)
@given(cases(), seeds)
def test_the_order_of_trajectories_does_not_matter(slot: str, value: dict[str, Any], case: Case, seed: int) -> None:
    laws.check_permutation(*hosted(slot, value, case), seed=seed)


def test_a_failure_on_one_simulated_rank_is_raised_and_does_not_hang() -> None:
    def work(rank: int, reduce: Any) -> None:
        if rank == 1:
            raise ZeroDivisionError
        reduce(torch.ones(()))

    with pytest.raises(ZeroDivisionError):
        laws.lockstep(3, work)


# 3. Linearity.

TERMS: dict[str, Any] = {
    "rl": {**RL, "advantage": "group_norm", "reduction": "sequence_mean"},
    "sft": {**SFT, "reduction": "token_mean"},
    "entropy": {**SFT, "source": "all", "reduction": "sequence_sum", "direction": "entropy"},
}
coefficients = st.integers(-8, 8).map(lambda eighths: eighths / 4)


@given(cases())
def test_the_gradient_of_a_sum_of_terms_is_the_sum(case: Case) -> None:
    laws.check_sum_of_terms(TERMS, case.batch)


@every_reduction
@thrifty
@given(cases(), st.tuples(coefficients, coefficients, coefficients))
def test_the_gradient_is_linear_in_the_coefficients(
    value: dict[str, Any], case: Case, weights: tuple[float, float, float]
) -> None:
    terms = {name: {**term, "reduction": {**value, "count": "all"}} for name, term in TERMS.items()}
    laws.check_linear_in_coefficients(terms, dict(zip(terms, weights, strict=True)), case.batch)


@given(cases(), st.sampled_from(["right", "wrong"]))
def test_a_gate_that_sends_every_prompt_one_way_gives_the_pure_term(case: Case, rewards: Any) -> None:
    sent = replace(case, prompts=tuple(replace(p, rewards=rewards, rollouts=max(1, p.rollouts)) for p in case.prompts))
    hpt = METHODS["hpt"].estimator
    gated = {**hpt, "terms": {**hpt["terms"], "rl": {**hpt["terms"]["rl"], "advantage": Given()}}}
    laws.check_pure(gated, "rl" if rewards == "right" else "sft", sent.batch)


@every_mask
@thrifty
@given(cases(), st.sampled_from([0.25, 0.5, 2.0, 1e3]))
def test_scaling_given_advantages_scales_the_gradient(value: dict[str, Any], case: Case, factor: float) -> None:
    terms = {"rl": {**RL, "mask": value, "advantage": Given(), "reduction": "sequence_mean"}}
    laws.check_advantage_scales(estimator({"terms": terms}), case.batch, "value", factor)


@pytest.mark.parametrize("advantage", ["group_mean", "reward", {"use": "group_mean", "over": "all"}])
@given(cases(), st.sampled_from([0.25, 0.5, 2.0, 1e3]))
def test_scaling_rewards_scales_the_gradient(advantage: Any, case: Case, factor: float) -> None:
    terms = {"rl": {**RL, "advantage": advantage, "reduction": "sequence_mean"}}
    laws.check_advantage_scales(estimator({"terms": terms}), case.batch, "reward", factor)


@pytest.mark.parametrize("advantage", ["group_norm", "group_mean", {"use": "group_norm", "over": "all"}])
def test_a_group_whose_rewards_are_all_alike_has_exactly_no_advantage(advantage: Any) -> None:
    """Whatever its mean rounds to: (0.1 + 0.1 + 0.1)/3 is not 0.1, and epsilon would blow up the difference."""
    batch = Case((Prompt(3), Prompt(6))).batch
    alike = replace(batch, reward=torch.full_like(batch.reward, 0.1))
    terms = {"rl": {**RL, "advantage": advantage, "reduction": "sequence_mean"}}
    laws.check_contributes_nothing(estimator({"terms": terms}), alike)


def test_no_demonstration_is_pushed_a_million_times_harder_than_a_rollout() -> None:
    """`source: all` with the default `over: rollouts`: a solved demonstration beside rollouts that all failed."""
    batch = Case((Prompt(3, 1, "wrong"),)).batch
    term = {"source": "all", "denominator": "current", "advantage": "group_norm", "reduction": "token_mean"}
    advantage = estimator({"terms": {"rl": term}}).credit(batch).terms["rl"].advantage
    assert advantage is not None
    assert float(advantage.abs().max()) < 100


# 4. On-policy.


@every_mask
@thrifty
@example(PINNED[1])
@given(cases())
def test_no_trust_region_masks_on_policy_data(value: dict[str, Any], case: Case) -> None:
    mask = made("mask", value)
    if not mask.trust_region:
        return  # a weight promises nothing at 1
    batch = case.batch
    assert batch.value is not None
    for advantage in (batch.value, 0 * batch.value, -batch.value.abs(), batch.value.abs()):
        laws.check_trust_region(mask, batch, advantage)


@every_mask
@thrifty
@given(cases())
def test_on_policy_a_trust_region_changes_no_gradient(value: dict[str, Any], case: Case) -> None:
    if not made("mask", value).trust_region:
        return  # a weight promises nothing at 1
    batch = replace(case.batch, old_logp=None, rollout_logp=case.batch.logp)
    term = {**RL, "advantage": "group_norm", "reduction": "sequence_mean"}
    masked = estimator({"terms": {"rl": {**term, "mask": value}}})
    laws.assert_same(
        laws.gradient(masked, batch), laws.gradient(estimator({"terms": {"rl": {**term, "mask": None}}}), batch)
    )


@given(cases())
def test_on_policy_importance_sampling_is_the_plain_policy_gradient(case: Case) -> None:
    batch = replace(case.batch, old_logp=None)
    term = {"source": "rollouts", "advantage": "group_norm", "reduction": "sequence_mean"}
    clipped = estimator({"terms": {"rl": {**term, "denominator": "old", "mask": CLIP}}})
    plain = estimator({"terms": {"rl": {**term, "denominator": "current"}}})
    laws.assert_same(laws.gradient(clipped, batch), laws.gradient(plain, batch))


# 5. Detachment.


@every_factor
@thrifty
@example(EMPTY)
@example(PINNED[5])
@given(cases())
def test_every_factor_is_detached_numbers(slot: str, value: dict[str, Any], case: Case) -> None:
    part = made(slot, value)
    laws.check_detached(part, batch_for(part, case))


@every_factor
@thrifty
@given(cases())
def test_gradient_flows_to_logp_only(slot: str, value: dict[str, Any], case: Case) -> None:
    laws.check_gradient_flows_only_to_logp(*hosted(slot, value, case))


@every_method
@thrifty
@given(cases())
def test_gradient_flows_to_what_the_terms_push_on_only(name: str, case: Case) -> None:
    laws.check_gradient_flows_only_to_logp(estimator(METHODS[name].estimator), case.batch)


@every_factor
def test_parts_read_what_they_declare_and_nothing_else(slot: str, value: dict[str, Any]) -> None:
    part_laws.check_reads(made(slot, value), RICH, 0)


def test_a_part_that_reads_what_it_did_not_declare_is_told_so() -> None:
    class Sly(Mask):
        """Reads what it doesn't declare."""

        def __call__(self, b: Any) -> Any:
            return b.old_logp

    terms = {"rl": {**RL, "mask": Sly(), "advantage": "one", "reduction": "token_mean"}}
    with pytest.raises(PartError, match=r"Sly .*terms\.rl\.mask\.0.* reads b\.old_logp without declaring it"):
        estimator({"terms": terms}).loss(RICH.batch)


# 6. Empty streams.

NO_DEMONSTRATIONS = Case((Prompt(3), Prompt(1)))
NO_ROLLOUTS = Case((Prompt(0, 2), Prompt(0, 1)))


@every_factor
def test_an_empty_batch_contributes_exactly_nothing(slot: str, value: dict[str, Any]) -> None:
    laws.check_contributes_nothing(*hosted(slot, value, EMPTY))


@every_reduction
@pytest.mark.parametrize(
    ("source", "case"), [("demonstrations", NO_DEMONSTRATIONS), ("rollouts", NO_ROLLOUTS), ("all", EMPTY)]
)
def test_a_term_without_rows_contributes_exactly_nothing(value: dict[str, Any], source: str, case: Case) -> None:
    for advantage in ("one", "reward", "group_norm"):
        term = {"source": source, "denominator": "old", "mask": CLIP, "advantage": advantage, "reduction": value}
        laws.check_contributes_nothing(estimator({"terms": {"only": term}}), case.batch)


@every_reduction
@thrifty
@given(cases())
def test_coefficients_of_zero_contribute_exactly_nothing(value: dict[str, Any], case: Case) -> None:
    terms = {name: {**term, "reduction": value} for name, term in TERMS.items()}
    off = {"use": "always", "weights": dict.fromkeys(terms, 0.0)}
    laws.check_contributes_nothing(estimator({"terms": terms, "switch": off}), case.batch)
    unweighed = {name: {**term, "weight": 0.0} for name, term in terms.items()}
    laws.check_contributes_nothing(estimator({"terms": unweighed}), case.batch)


@every_method
@thrifty
@example(NO_DEMONSTRATIONS)
@example(NO_ROLLOUTS)
@example(EMPTY)
@given(cases())
def test_no_method_is_ever_infinite_or_nan(name: str, case: Case) -> None:
    laws.check_finite(estimator(METHODS[name].estimator), case.batch)


@every_factor
@thrifty
@given(cases())
def test_no_part_is_ever_infinite_or_nan(slot: str, value: dict[str, Any], case: Case) -> None:
    laws.check_finite(*hosted(slot, value, case))


@pytest.mark.parametrize("denominator", ["old", "current", "one"])
@pytest.mark.parametrize("old", ["near", "none"])
def test_an_impossible_token_without_weight_costs_nothing(denominator: str, old: Any) -> None:
    """log π = −∞ where the term has no rows, or a row's advantage is 0: still 0, never 0·∞."""
    batch = replace(RICH, old=old).batch
    idle = batch.demonstration | (batch.group == batch.group[batch.reward == 0][0])
    assert batch.logp is not None
    logp = torch.where(idle[batch.trajectory], -torch.inf, batch.logp)
    term = {**RL, "denominator": denominator, "advantage": "group_norm", "reduction": "sequence_mean"}
    impossible, possible = fresh(replace(batch, logp=logp)), fresh(batch)
    loss = estimator({"terms": {"rl": term}}).loss(impossible)
    wanted = estimator({"terms": {"rl": term}}).loss(possible)
    assert torch.isfinite(loss)
    laws.assert_same(laws.gradient_of(loss, impossible), laws.gradient_of(wanted, possible))


@pytest.mark.parametrize("denominator", ["old", "current", "one"])
def test_a_log_probability_that_is_not_a_number_never_reaches_the_gradient_silently(denominator: str) -> None:
    """On tokens without weight it is 0 or refused."""
    batch = RICH.batch
    assert batch.logp is not None
    logp = torch.where(batch.demonstration[batch.trajectory], torch.nan, batch.logp)
    term = {**RL, "denominator": denominator, "advantage": "group_norm", "reduction": "sequence_mean"}
    try:
        laws.check_finite(estimator({"terms": {"rl": term}}), replace(batch, logp=logp))
    except PartError as error:
        assert "NaN" in str(error)  # noqa: PT017


def test_a_masked_token_with_a_huge_ratio_has_no_weight() -> None:
    """The ratio is clamped to e^20 and the mask chosen with `where`."""
    batch = NO_DEMONSTRATIONS.batch
    assert batch.logp is not None
    far = replace(batch, old_logp=torch.full_like(batch.logp, -1e4))
    right = replace(far, reward=torch.ones_like(far.reward))
    terms = {"rl": {**RL, "advantage": "reward", "reduction": "sequence_sum"}}
    laws.check_contributes_nothing(estimator({"terms": terms}), right)
    unmasked = estimator({"terms": {"rl": {**terms["rl"], "mask": None}}})
    laws.check_finite(unmasked, right)


# Parameters that move.

MOVING: dict[str, tuple[dict[str, Any], float, float]] = {
    "switch.0.threshold": (METHODS["hpt"].estimator, 0.0, 1.0),
    "terms.kl.advantage.coefficient": (
        {"terms": {"kl": {**METHODS["sft"].estimator["terms"]["sft"], "advantage": {"use": "kl", "estimator": "k2"}}}},
        0.1,
        0.9,
    ),
    "shaping.0.coefficient": ({**METHODS["rloo"].estimator, "shaping": [{"use": "kl_in_reward"}]}, 0.1, 0.9),
}


def with_value(block: dict[str, Any], place: str, value: object) -> Estimator:
    """The estimator with a value at a dotted place."""
    made: Any = json.loads(json.dumps(block))
    if isinstance(made.get("switch"), dict):
        made["switch"] = [made["switch"]]
    *way, last = place.split(".")
    inner = made
    for key in way:
        inner = inner[int(key) if key.isdigit() else key]
    inner[last] = value
    return estimator(made)


@pytest.mark.parametrize("place", MOVING)
@pytest.mark.parametrize("step", [0, 3, 8, 20])
def test_a_parameter_that_moves_is_the_number_that_it_is_at_the_step(place: str, step: int) -> None:
    block, start, end = MOVING[place]
    moving = with_value(block, place, {"start": start, "end": end, "steps": 8})
    still = with_value(block, place, start + (end - start) * min(step / 8, 1))
    case = Case((Prompt(4, 1, "mixed"), Prompt(4, 1), Prompt(3, 1, "right"), Prompt(4, 1, "wrong")), seed=2)
    laws.assert_same(laws.gradient(moving, case.batch, step), laws.gradient(still, case.batch, step))
    ends = [laws.gradient(moving, case.batch, end)[0] for end in (0, 8)]
    assert not torch.equal(*ends), "it does move"


# How often.


def examples(law: Any) -> int:
    """How many examples a law of this file draws in all, without what is pinned and what is heavy."""
    counts = [
        sum(not any(mark.name == "heavy" for mark in getattr(case, "marks", ())) for case in mark.args[1])
        for mark in getattr(law, "pytestmark", [])
        if mark.name == "parametrize"
    ]
    return prod(counts) * law._hypothesis_internal_use_settings.max_examples


def test_every_law_has_20_examples() -> None:
    laws_here = {
        name: each for name, each in globals().items() if name.startswith("test_") and hasattr(each, "hypothesis")
    }
    assert len(laws_here) > 15
    assert {name: count for name, each in laws_here.items() if (count := examples(each)) < 20} == {}
