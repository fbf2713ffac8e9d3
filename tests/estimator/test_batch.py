"""The batch refuses what doesn't fit together, and its segment sums are sums over segments."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from upge import Batch, View
from upge.estimator.view import log_ratio
from upge.testing import Padded
from upge.testing.batches import EMPTY, PER_TOKEN, PER_TRAJECTORY, Case, Prompt, fresh
from upge.testing.strategies import cases


def batch(**changes: Any) -> Batch:
    """Two trajectories, of two tokens and one, unless told otherwise."""
    fields: dict[str, Any] = {
        "logp": torch.tensor([-1.0, -2.0, -3.0]),
        "trajectory": torch.tensor([0, 0, 1]),
        "group": torch.tensor([7, -3]),
        "demonstration": torch.tensor([False, True]),
        "reward": torch.tensor([1.0, 0.5]),
    }
    return Batch(**{**fields, **changes})


@pytest.mark.parametrize(
    ("field", "value", "complaint"),
    [
        ("logp", torch.zeros(2), r"Batch\.logp has shape \(2,\); it should be \(T,\).*\(3,\)"),
        ("logp", torch.zeros(3, 1), r"Batch\.logp has shape \(3, 1\)"),
        ("old_logp", torch.zeros(4), r"Batch\.old_logp has shape"),
        ("entropy", torch.zeros(()), r"Batch\.entropy has shape \(\)"),
        ("value", torch.zeros(1), r"Batch\.value has shape"),
        ("group", torch.tensor([1, 2, 3]), r"Batch\.group has shape \(3,\); it should be \(N,\).*\(2,\)"),
        ("demonstration", torch.tensor([True]), r"Batch\.demonstration has shape"),
        ("truncated", torch.tensor([True]), r"Batch\.truncated has shape"),
        ("demonstration", torch.tensor([0, 1]), r"Batch\.demonstration is torch\.int64; it should be bool"),
        ("truncated", torch.tensor([0.0, 1.0]), r"Batch\.truncated is torch\.float32; it should be bool"),
        ("trajectory", torch.tensor([0.0, 0.0, 1.0]), r"Batch\.trajectory is torch\.float32; it should be integers"),
        ("group", torch.tensor([0.0, 1.0]), r"Batch\.group is torch\.float32; it should be integers"),
        ("trajectory", torch.tensor([0, 1, 0]), r"Batch\.trajectory decreases"),
        ("trajectory", torch.tensor([0, 1, 2]), r"Batch\.trajectory holds 0…2; there are 2 trajectories"),
        ("trajectory", torch.tensor([-1, 0, 1]), r"Batch\.trajectory holds -1…1"),
        ("trajectory", torch.tensor([[0, 0, 1]]), r"Batch\.trajectory has shape"),
        ("reward", torch.zeros(2, 1), r"Batch\.reward has shape"),
    ],
)
def test_a_field_that_does_not_fit_is_refused_by_name(field: str, value: Tensor, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        batch(**{field: value})


def test_numbers_take_the_type_of_logp_and_at_least_float32() -> None:
    for given_type, wanted in [
        (torch.float64, torch.float64),
        (torch.float32, torch.float32),
        (torch.bfloat16, torch.float32),
        (torch.float16, torch.float32),
    ]:
        made = batch(logp=torch.zeros(3, dtype=given_type), old_logp=torch.zeros(3, dtype=torch.float16))
        assert made.dtype == wanted
        for number in (made.logp, made.old_logp, made.reward):
            assert number is not None
            assert number.dtype == wanted


def test_before_the_forward_pass_the_reward_sets_the_type() -> None:
    assert batch(logp=None, reward=torch.tensor([1, 0])).dtype == torch.float32
    assert batch(logp=None, reward=torch.tensor([1.0, 0.0], dtype=torch.float64)).dtype == torch.float64


def test_promotion_keeps_the_gradient() -> None:
    leaf = torch.zeros(3, dtype=torch.bfloat16, requires_grad=True)
    logp = batch(logp=leaf).logp
    assert logp is not None
    logp.sum().backward()
    assert leaf.grad is not None


def test_prompts_are_numbered_in_the_order_of_their_ids() -> None:
    made = batch(group=torch.tensor([7, -3]))
    assert made.prompt.tolist() == [1, 0]
    assert made.prompts == 2
    assert made.length.tolist() == [2, 1]
    assert made.size == 2


def test_an_empty_batch_is_a_batch() -> None:
    empty = EMPTY.batch
    assert (empty.size, empty.prompts, empty.length.tolist()) == (0, 0, [])


def test_a_trajectory_may_have_no_tokens() -> None:
    assert batch(trajectory=torch.tensor([1, 1, 1])).length.tolist() == [0, 3]


@given(cases(), st.integers(0, 2**16))
def test_select_keeps_the_chosen_trajectories_whole_and_in_order(case: Case, seed: int) -> None:
    whole = case.batch
    rows = torch.rand(whole.size, generator=torch.Generator().manual_seed(seed)) < 0.5
    part = whole.select(rows)
    chosen = torch.nonzero(rows).flatten().tolist()
    tokens = torch.cat([torch.zeros(0, dtype=torch.int64), *(torch.where(whole.trajectory == i)[0] for i in chosen)])
    assert part.size == len(chosen)
    assert part.length.tolist() == whole.length[rows].tolist()
    for names, index in ((PER_TOKEN, tokens), (PER_TRAJECTORY, rows)):
        for name in names:
            ours, theirs = getattr(part, name), getattr(whole, name)
            assert (ours is None) == (theirs is None)
            assert ours is None or torch.equal(ours, theirs[index])


@given(cases())
def test_selecting_everything_is_the_identity(case: Case) -> None:
    whole = case.batch
    part = whole.select(torch.ones(whole.size, dtype=torch.bool))
    for name in ("trajectory", *PER_TOKEN, *PER_TRAJECTORY):
        ours, theirs = getattr(part, name), getattr(whole, name)
        assert (ours is None and theirs is None) or torch.equal(ours, theirs)


def test_select_leads_gradient_back() -> None:
    leaf = torch.zeros(3, requires_grad=True)
    part = batch(logp=leaf).select(torch.tensor([False, True])).logp
    assert part is not None
    part.sum().backward()
    assert leaf.grad is not None
    assert leaf.grad.tolist() == [0.0, 0.0, 1.0]


@given(cases())
def test_segment_sums_are_sums_over_segments(case: Case) -> None:
    made = case.batch
    view = View(made, frozenset({"value", "reward"}))
    per_trajectory = view.per_trajectory(view.value)
    per_prompt = view.per_prompt(view.reward)
    assert per_trajectory.shape == (made.size,)
    assert per_prompt.shape == (made.prompts,)
    for i in range(made.size):
        torch.testing.assert_close(per_trajectory[i], view.value[made.trajectory == i].sum())
        assert view.to_trajectories(per_prompt)[i] == view.reward[made.group == made.group[i]].sum()
    assert torch.equal(view.to_tokens(view.reward), made.reward[made.trajectory])
    assert view.total(view.reward) == made.reward.sum()
    assert torch.equal(view.per_trajectory(torch.ones_like(view.value)), view.length)


def test_totals_go_through_the_sum_over_ranks() -> None:
    view = View(batch(), frozenset(), reduce=lambda x: x * 3)
    assert view.total(view.rollout) == 3.0


def test_a_view_gives_what_was_declared_computed_or_is_structure() -> None:
    view = View(batch(), frozenset({"reward", "old_logp", "value"}), "Curious", known={"ratio": torch.ones(3)})
    assert view.reward.tolist() == [1.0, 0.5]
    assert view.ratio.tolist() == [1.0, 1.0, 1.0]
    assert view.rollout.tolist() == [True, False]
    with pytest.raises(AttributeError, match=r"Curious reads b\.logp without declaring it: needs = \{'logp'\}"):
        _ = view.logp
    with pytest.raises(AttributeError, match=r"Curious reads b\.value, which this batch does not have"):
        _ = view.value
    with pytest.raises(AttributeError, match=r"Curious reads b\.mask, which is not computed yet"):
        _ = view.mask


def test_strictly_on_policy_the_old_policy_is_the_current_one() -> None:
    made = batch(logp=torch.zeros(3, requires_grad=True))
    old = View(made, frozenset({"old_logp"})).old_logp
    assert made.logp is not None
    assert torch.equal(old, made.logp)
    assert not old.requires_grad
    kept = View(replace(made, old_logp=torch.full((3,), -9.0)), frozenset({"old_logp"})).old_logp
    assert kept.tolist() == [-9.0] * 3


def test_ratios_may_look_at_another_policy() -> None:
    made = Case((Prompt(3, 1),), "far").batch
    view = View(made, frozenset({"logp", "old_logp", "rollout_logp"}), known={"ratio": made.trajectory * 0.0 + 5})
    assert made.logp is not None
    assert made.old_logp is not None
    assert made.rollout_logp is not None
    assert torch.equal(view.ratio_to("denominator"), view.ratio)
    torch.testing.assert_close(view.ratio_to("old"), (made.logp - made.old_logp).exp())
    torch.testing.assert_close(view.ratio_to("rollout"), (made.logp - made.rollout_logp).exp())


def test_log_ratios_are_bounded() -> None:
    assert log_ratio(torch.tensor([0.0, -1e9, -1.0]), torch.tensor([-1e9, 0.0, -2.0])).tolist() == [20.0, -20.0, 1.0]


# From padded tensors.


@given(cases())
def test_a_padded_batch_is_the_flat_one_and_leads_gradient_back(case: Case) -> None:
    flat = fresh(case.batch)
    padded = Padded.of(flat)
    again = Batch.from_padded(
        padded.logp,
        padded.mask.long(),
        group=padded.group,
        reward=padded.reward,
        demonstration=padded.demonstration,
        truncated=flat.truncated,
        old_logp=None if flat.old_logp is None else padded.old_logp,
        **{name: getattr(padded, name) for name in ("rollout_logp", "reference_logp", "entropy", "value")},
    )
    for name in (*PER_TOKEN, *PER_TRAJECTORY, "trajectory"):
        ours, theirs = getattr(again, name), getattr(flat, name)
        assert (ours is None and theirs is None) or torch.equal(ours, theirs), name
    assert again.logp is not None
    if again.logp.numel():
        again.logp.sum().backward()
        assert flat.logp is not None
        assert flat.logp.grad is not None
        assert bool((flat.logp.grad == 1).all())


def test_what_stands_at_padding_is_never_read() -> None:
    logp = torch.tensor([[float("nan"), -1.0, float("nan")], [-2.0, float("inf"), -3.0]])
    mask = torch.tensor([[0, 1, 0], [1, 0, 1]])
    batch = Batch.from_padded(logp, mask, group=torch.tensor([0, 0]), reward=torch.tensor([1.0, 0.0]))
    assert batch.logp is not None
    assert batch.logp.tolist() == [-1.0, -2.0, -3.0]
    assert batch.trajectory.tolist() == [0, 1, 1]
    assert not batch.demonstration.any()


def test_a_padded_tensor_that_does_not_fit_is_named() -> None:
    rows: dict[str, Any] = {"group": torch.tensor([0, 0]), "reward": torch.tensor([1.0, 0.0])}
    logp, mask = torch.zeros(2, 3), torch.ones(2, 3)
    with pytest.raises(ValueError, match=r"old_logp has shape \(2, 2\); it should be that of mask: \(2, 3\)"):
        Batch.from_padded(logp, mask, old_logp=torch.zeros(2, 2), **rows)
    with pytest.raises(ValueError, match="no field 'oldlogp' per token"):
        Batch.from_padded(logp, mask, oldlogp=logp, **rows)
    with pytest.raises(ValueError, match=r"Batch.group has shape \(1,\)"):
        Batch.from_padded(logp, mask, group=torch.tensor([0]), reward=rows["reward"])
