"""The machine: what a run must provide, whose counts a term shares, state, and the messages when a part goes wrong."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from support.methods import CLIP, METHODS, RL, SFT
from support.part_cases import estimator
from torch import Tensor

from upge import Advantage, Batch, Estimator, Mask, Shaping, Switch, View
from upge.testing import laws
from upge.testing.batches import Case, Prompt, fresh

assert_close = partial(torch.testing.assert_close, check_dtype=False)
CASE = Case((Prompt(4, 1, "wild"), Prompt(3, 1, "wrong"), Prompt(3, 0, "mixed")), "far", 5, interleaved=True, seed=11)
BATCH = CASE.batch
PLAIN = {"source": "rollouts", "denominator": "current", "advantage": "reward", "reduction": "token_mean"}


def pushing(**changes: Any) -> dict[str, Any]:
    """A block of one plain term on the rollouts, changed."""
    return {"terms": {"rl": {**PLAIN, **changes}}}


def weights(block: dict[str, Any], step: int = 0) -> Tensor:
    """(T,) the weight of each token: the gradient of J with respect to logp."""
    return -laws.gradient(estimator(block), BATCH, step)[0]


ROLLOUTS = (~BATCH.demonstration)[BATCH.trajectory]


# Whose rows, whose counts.


def test_terms_that_count_together_share_one_count() -> None:
    shared = {"rl": PLAIN, "sft": {**SFT, "reduction": "token_mean", "count_with": "rl"}}
    weight = weights({"terms": shared})
    assert_close(weight[~ROLLOUTS], torch.full_like(weight[~ROLLOUTS], 1 / len(weight)))
    assert_close(weight[ROLLOUTS], (BATCH.reward[BATCH.trajectory] / len(weight))[ROLLOUTS])


def test_sharing_counts_is_symmetric() -> None:
    rl, sft = PLAIN, {**SFT, "reduction": "sequence_mean"}
    one = weights({"terms": {"rl": rl, "sft": {**sft, "count_with": "rl"}}})
    other = weights({"terms": {"rl": {**rl, "count_with": "sft"}, "sft": sft}})
    assert_close(one, other)


@pytest.mark.parametrize("source", ["rollouts", "demonstrations", "all"])
def test_a_term_weighs_its_source_and_nothing_else(source: str) -> None:
    weight = weights(pushing(source=source, advantage="one"))
    wanted = {"rollouts": ROLLOUTS, "demonstrations": ~ROLLOUTS, "all": ROLLOUTS | True}[source]
    assert torch.equal(weight != 0, wanted)
    assert float(weight.sum()) == pytest.approx(1.0)


def test_kept_rows_are_those_that_some_likelihood_term_weighs() -> None:
    block = METHODS["hpt_upt"].estimator
    entropy = -laws.gradient(estimator(block), BATCH)[1]
    solved = torch.tensor(
        [bool((BATCH.reward[(BATCH.group == g) & ~BATCH.demonstration]).mean() > 0) for g in BATCH.group]
    )
    kept = (solved ^ BATCH.demonstration)[BATCH.trajectory]
    assert torch.equal(entropy != 0, kept)
    assert 0 < int(kept.sum()) < len(kept)
    assert_close(entropy[kept], torch.full_like(entropy[kept], 0.001 / float(kept.sum())))


def test_a_kept_term_follows_the_other_terms_weights() -> None:
    kept = {**SFT, "source": "kept", "reduction": "token_mean"}
    laws.check_contributes_nothing(estimator({"terms": {"rl": {**PLAIN, "weight": 0.0}, "kept": kept}}), BATCH)


# The entropy's direction.


def test_an_entropy_term_pushes_on_the_entropy_alone() -> None:
    block = pushing(direction="entropy", advantage="one")
    logp, entropy = laws.gradient(estimator(block), BATCH)
    assert not logp.any()
    assert_close(-entropy, ROLLOUTS / ROLLOUTS.sum())


def test_an_entropy_term_asks_for_an_entropy() -> None:
    with pytest.raises(ValueError, match=r"the term 'rl' pushes on the entropy, which this batch does not have"):
        estimator(pushing(direction="entropy")).loss(replace(BATCH, entropy=None))


# Schedules.


def test_a_weight_may_move_with_the_step() -> None:
    schedule = {"start": 1.0, "end": 0.0, "steps": 4}
    block, plain = pushing(weight=schedule), weights(pushing())
    for step, factor in [(0, 1.0), (1, 0.75), (3, 0.25), (4, 0.0), (9, 0.0)]:
        assert_close(weights(block, step), factor * plain)
    cosine = weights(pushing(weight={**schedule, "shape": "cosine"}), 2)
    assert_close(cosine, 0.5 * plain)


def test_no_rollouts_are_wanted_once_a_schedule_ends_at_zero() -> None:
    block = estimator(pushing(weight={"start": 1.0, "end": 0.0, "steps": 2}))
    assert block.wants(1) == {"rl"}
    assert block.wants_rollouts(1)
    assert block.wants(2) == frozenset()
    assert not block.wants_rollouts(2)


# What a run must provide.


def test_demonstrations_alone_want_no_rollouts() -> None:
    sft = estimator(METHODS["sft"].estimator)
    assert sft.wants(0) == {"sft"}
    assert not sft.wants_rollouts(0)
    assert sft.wants_demonstrations(0)
    assert sft.needs() == {"logp"}


def test_rollouts_alone_want_no_demonstrations() -> None:
    grpo = estimator(METHODS["grpo"].estimator)
    assert grpo.wants_rollouts(0)
    assert not grpo.wants_demonstrations(0)
    assert grpo.needs() == {"logp", "old_logp", "reward"}


def test_a_gate_wants_rollouts_even_for_imitation() -> None:
    hpt = METHODS["hpt"].estimator
    off = {**hpt, "terms": {**hpt["terms"], "rl": {**hpt["terms"]["rl"], "weight": 0.0}}}
    assert estimator(off).wants(0) == {"sft"}
    assert estimator(off).wants_rollouts(0)
    assert estimator(hpt).wants_demonstrations(0)


def test_a_switch_that_is_always_off_wants_nothing() -> None:
    off = {**pushing(), "switch": {"use": "always", "weights": {"rl": 0.0}}}
    assert estimator(off).wants(0) == frozenset()
    assert not estimator(off).wants_rollouts(0)


def test_the_needs_are_those_of_the_parts_and_of_the_direction() -> None:
    clip = {**CLIP, "against": "rollout"}
    entropy = pushing(mask=[CLIP, clip], direction="entropy", advantage="one", denominator="one")
    assert estimator(entropy).needs() == {"logp", "entropy", "rollout_logp"}


def test_entropy_is_not_needed_unless_some_term_asks() -> None:
    bare = replace(BATCH, entropy=None, value=None, rollout_logp=None, reference_logp=None, truncated=None)
    assert torch.isfinite(estimator(METHODS["hpt"].estimator).loss(bare))


def test_parts_are_listed_by_their_place() -> None:
    places = estimator({**METHODS["hpt"].estimator}).parts()
    assert list(places) == [
        "switch.0",
        *("terms.rl.advantage", "terms.rl.denominator", "terms.rl.mask.0", "terms.rl.reduction"),
        *("terms.sft.advantage", "terms.sft.denominator", "terms.sft.reduction"),
    ]


def test_a_stale_batch_must_bring_the_old_policy() -> None:
    grpo, sft = estimator(METHODS["grpo"].estimator), estimator(METHODS["sft"].estimator)
    fresh_batch = replace(BATCH, old_logp=None)
    credit = grpo.count(fresh_batch, grpo.credit(fresh_batch))
    grpo.weigh(fresh_batch, credit)
    with pytest.raises(ValueError, match=r"π_old is not π_θ: give Batch\.old_logp"):
        grpo.weigh(fresh_batch, credit, stale=True)
    grpo.weigh(BATCH, credit, stale=True)
    sft.weigh(fresh_batch, sft.count(fresh_batch, sft.credit(fresh_batch)), stale=True)


def test_credit_needs_no_forward_pass() -> None:
    grpo = estimator(METHODS["grpo"].estimator)
    early = grpo.credit(replace(BATCH, logp=None, old_logp=None))
    late = grpo.credit(BATCH)
    assert torch.equal(early.terms["rl"].advantage, late.terms["rl"].advantage)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="weigh needs a batch with logp"):
        grpo.weigh(replace(BATCH, logp=None), grpo.count(BATCH, late))
    with pytest.raises(ValueError, match="weigh needs the credit after `count`"):
        grpo.weigh(BATCH, late)


def test_the_factors_are_there_to_be_reported() -> None:
    grpo = estimator(METHODS["grpo"].estimator)
    seen = grpo.weigh(BATCH, grpo.count(BATCH, grpo.credit(BATCH))).terms["rl"]
    assert BATCH.logp is not None
    assert BATCH.old_logp is not None
    assert torch.equal(seen.active, ROLLOUTS)
    assert_close(seen.ratio, (BATCH.logp - BATCH.old_logp).exp())
    assert set(seen.mask.tolist()) == {0.0, 1.0}
    assert not any(x.requires_grad for x in (seen.weight, seen.mask, seen.ratio, seen.advantage))
    assert_close(seen.weight, weights(METHODS["grpo"].estimator))


# Live advantages.


class Surprise(Advantage):
    """−log π of the token: an advantage that depends on θ."""

    needs = frozenset({"logp"})

    def __call__(self, b: View) -> Tensor:
        return -b.logp


def test_an_advantage_that_reads_logp_is_computed_with_every_forward_pass() -> None:
    block = estimator(pushing(advantage=Surprise()))
    assert block.terms["rl"].live
    credit = block.credit(replace(BATCH, logp=None))
    assert credit.terms["rl"].advantage is None
    assert bool(credit.nonzero_rows(BATCH)[~BATCH.demonstration].all())
    assert BATCH.logp is not None
    assert_close(weights(pushing(advantage=Surprise())), ROLLOUTS * -BATCH.logp / ROLLOUTS.sum())


def test_a_live_advantage_splits_like_any_other() -> None:
    laws.check_splitting(estimator(pushing(advantage=Surprise())), BATCH, ranks=2, pieces=3, seed=0)
    laws.check_dropping(estimator(pushing(advantage=Surprise())), BATCH)


# Shaping.


class LengthPenalty(Shaping):
    """−0.5 at every token."""

    def __call__(self, b: View) -> Tensor:
        return torch.full_like(b.to_tokens(b.length), -0.5)


class SeesShaping(Advantage):
    """What the shapings added at the token."""

    def __call__(self, b: View) -> Tensor:
        return b.shaping


def test_shaping_moves_the_reward_that_advantages_see() -> None:
    shaped = {**pushing(), "shaping": [LengthPenalty(), LengthPenalty()]}
    penalised = replace(BATCH, reward=BATCH.reward - BATCH.length)
    assert_close(weights(shaped), -laws.gradient(estimator(pushing()), penalised)[0])
    seen = weights({**pushing(advantage=SeesShaping()), "shaping": LengthPenalty()})
    assert_close(seen, ROLLOUTS * -0.5 / ROLLOUTS.sum())


def test_switches_do_not_see_the_shaping() -> None:
    gate = {"use": "success_rate", "above": "rl", "otherwise": "sft"}
    terms = {"rl": {**PLAIN, "advantage": "one"}, "sft": {**SFT, "reduction": "token_mean"}}
    plain, shaped = {"switch": gate, "terms": terms}, {"switch": gate, "terms": terms, "shaping": LengthPenalty()}
    assert_close(weights(plain), weights(shaped))


# State.


class RunningBaseline(Advantage):
    """The reward over its running mean, kept from one rollout batch to the next."""

    needs = frozenset({"reward"})

    def initial(self) -> dict[str, Tensor]:
        return {"sum": torch.zeros((), dtype=torch.float64), "count": torch.zeros((), dtype=torch.float64)}

    def advance(self, b: View) -> dict[str, Tensor]:
        return {"sum": b.state["sum"] + b.total(b.reward * b.rows), "count": b.state["count"] + b.total(b.rows)}

    def __call__(self, b: View) -> Tensor:
        return b.to_tokens(b.reward - b.state["sum"] / b.state["count"].clamp(min=1))


class Alternate(Switch):
    """On and off by turns, as its state says."""

    def terms(self) -> tuple[str, ...]:
        return ("rl",)

    def initial(self) -> dict[str, Tensor]:
        return {"turn": torch.ones(())}

    def advance(self, b: View) -> dict[str, Tensor]:
        return {"turn": 1 - b.state["turn"]}

    def __call__(self, b: View) -> dict[str, Tensor]:
        return {"rl": b.state["turn"].expand(b.per_prompt(b.rollout).shape)}


def test_state_is_taken_from_one_rollout_batch_to_the_next() -> None:
    block = estimator({**pushing(advantage=RunningBaseline()), "switch": Alternate()})
    assert set(block.initial()) >= {"terms.rl.advantage", "switch.0"}
    first = block.credit(BATCH)
    assert first.state["terms.rl.advantage"]["sum"] == BATCH.reward[~BATCH.demonstration].sum()
    assert first.state["terms.rl.advantage"]["count"] == (~BATCH.demonstration).sum()
    assert first.state["switch.0"]["turn"] == 0
    second = block.credit(BATCH, 1, state=first.state)
    mean = BATCH.reward[~BATCH.demonstration].mean()
    assert second.terms["rl"].advantage is not None
    assert_close(second.terms["rl"].advantage, (BATCH.reward - mean)[BATCH.trajectory])
    assert not second.terms["rl"].coefficient.any()
    assert second.state["switch.0"]["turn"] == 1


def test_state_is_the_same_on_every_rank() -> None:
    block = estimator({**pushing(advantage=RunningBaseline()), "switch": Alternate()})
    laws.check_splitting(block, BATCH, ranks=3, pieces=2, seed=4)


class CountedSurprise(Surprise):
    """A live advantage with state."""

    def initial(self) -> dict[str, Tensor]:
        return {"batches": torch.zeros(())}

    def advance(self, b: View) -> dict[str, Tensor]:
        return {"batches": b.state["batches"] + 1}

    def __call__(self, b: View) -> Tensor:
        return -b.logp / (1 + b.state["batches"])


def test_a_live_advantage_may_have_state() -> None:
    block = estimator(pushing(advantage=CountedSurprise()))
    first = block.credit(BATCH)
    assert first.state["terms.rl.advantage"]["batches"] == 1
    assert BATCH.logp is not None
    weight = block.weigh(BATCH, block.count(BATCH, first)).terms["rl"].weight
    assert_close(weight, ROLLOUTS * -BATCH.logp / ROLLOUTS.sum())


# How it reads.


def test_a_mask_may_be_one_or_many_or_none() -> None:
    for mask, count in [(None, 0), ([], 0), ("none", 1), (CLIP, 1), ([CLIP, "none"], 2)]:
        assert len(estimator(pushing(mask=mask)).terms["rl"].mask) == count


def test_rl_reads_like_the_paper() -> None:
    """The example of the handbook: two rollouts, one right, one wrong, strictly on-policy."""
    batch = fresh(replace(Case((Prompt(2),)).batch, reward=torch.tensor([1.0, 0.0]), old_logp=None))
    block = {"terms": {"rl": {**RL, "advantage": "group_norm", "reduction": "sequence_mean"}}}
    logp, _ = laws.gradient(estimator(block), batch)
    per_trajectory = torch.zeros(2, dtype=logp.dtype).index_add_(0, batch.trajectory, logp)
    unit = 0.5 / (0.5**0.5 + 1e-6) / 2
    assert_close(per_trajectory, torch.tensor([-unit, unit], dtype=logp.dtype))


# What needs a forward pass.


class AboveTheGroup(Mask):
    """Tokens whose log-prob is above the mean of their prompt's, over all of its trajectories."""

    needs = frozenset({"logp"})
    scope = "group"

    def __call__(self, b: View) -> Tensor:
        mean = b.per_prompt(b.per_trajectory(b.logp)) / b.per_prompt(b.length)
        return (b.logp > b.to_tokens(b.to_trajectories(mean))).to(b.dtype)


def test_a_part_of_a_group_sees_its_trajectories_without_advantage_too() -> None:
    block = estimator(pushing(mask=AboveTheGroup()))
    credit = block.count(BATCH, block.credit(BATCH))
    nonzero_rows, alive = credit.nonzero_rows(BATCH), block.alive(BATCH, credit)
    living = set(BATCH.group[nonzero_rows].tolist())
    assert alive.tolist() == [group in living for group in BATCH.group.tolist()]
    assert int(nonzero_rows.sum()) < int(alive.sum()) < BATCH.size, "a prompt whose every trajectory is dead is dropped"
    laws.check_dropping(block, BATCH)


def test_parts_of_single_trajectories_leave_the_dead_out() -> None:
    block = estimator(pushing(mask=CLIP, denominator="old"))
    credit = block.count(BATCH, block.credit(BATCH))
    assert block.alive(BATCH, credit).tolist() == credit.nonzero_rows(BATCH).tolist()


def test_idle_prompts_are_those_whose_every_coefficient_is_zero() -> None:
    batch = Batch(
        logp=None,
        trajectory=torch.tensor([0, 1, 2, 3, 4, 5, 6]),
        group=torch.tensor([5, 5, 3, 3, 9, 9, 9]),
        demonstration=torch.tensor([False, False, False, False, False, False, True]),
        reward=torch.tensor([1.0, 0.0, 1.0, 1.0, 0.0, 0.0, 1.0]),
    )
    rl = {"source": "rollouts", "denominator": "old", "advantage": "group_norm", "reduction": "token_mean"}
    sft = {"source": "demonstrations", "denominator": "current", "advantage": "one", "reduction": "token_mean"}
    gate = {"use": "success_rate", "above": "rl", "otherwise": "sft"}
    informative = {"use": "informative", "keep": "rl"}
    terms = {"rl": rl, "sft": sft}
    assert Estimator.model_validate({"switch": [gate, informative], "terms": terms}).idle(batch).tolist() == [
        True,
        False,
        False,
    ]  # groups 3 (all right), 5 (mixed), 9 (all wrong, with a demonstration)
    alone = Estimator.model_validate({"switch": informative, "terms": {"rl": rl}})
    assert alone.idle(batch).tolist() == [True, False, True]
    assert Estimator.model_validate({"terms": {"rl": rl}}).idle(batch).tolist() == [False, False, False]
