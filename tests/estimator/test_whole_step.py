"""Parts that see the whole optimizer step: statistics over all ranks, when they are computed, and who may ask for them.

The textbook's masks are computed on padded tensors with torch's own quantile and sort, and share no code with upge.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field
from support.textbook import centred_advantage
from support.tiers import FEWER, fewer
from test_gradients import pinned
from torch import Tensor

import upge
from upge import Batch, Estimator
from upge.estimator.part_errors import PartError
from upge.testing import Padded, check_part, laws
from upge.testing.batches import EMPTY, LONG, RICH, Case, fresh, permuted
from upge.testing.lockstep import lockstep
from upge.testing.strategies import cases

TERM: dict[str, Any] = {
    "source": "rollouts",
    "mask": {"use": "clip", "low": 0.2, "high": 0.2},
    "denominator": "old",
    "advantage": "group_mean",
    "reduction": "token_mean",
}
OTHER: dict[str, Any] = {**TERM, "source": "demonstrations", "advantage": "one", "mask": (), "denominator": "current"}


class HighEntropy(upge.Mask):
    """1 for the share of the term's tokens with the largest entropy in the step.

        mask_t = 1[H_t ≥ quantile(H, 1 − share)]

    Shapes: entropy (T,), nats → (T,), dimensionless. Source: a test.
    """

    needs = frozenset({"entropy"})
    scope = "step"

    share: float = Field(default=0.2, ge=0, le=1)

    def __call__(self, b: upge.View) -> Tensor:
        return (b.entropy >= b.quantile(b.entropy, 1 - self.share)).to(b.dtype)


class DropSome(upge.Mask):
    """0 for a share of the tokens that the masks before it keep, by chance, 1 for the others.

        mask_t = 1 − 1[u_t among the ⌊share·n⌋ largest]

    Shapes: (T,), dimensionless. Source: a test.
    """

    scope = "step"

    share: float = Field(default=0.25, ge=0, le=1)

    def __call__(self, b: upge.View) -> Tensor:
        inside = (b.mask != 0) & b.to_tokens(b.rows)
        return 1 - b.top(b.noise, b.share(self.share, where=inside), where=inside).to(b.dtype)


class Whitened(upge.Advantage):
    """The log-ratio to π_old, whitened over the term's tokens of the step.

        Â_t = (x_t − mean x) / (1 + std x),   x = log π_θ − log π_old

    Shapes: (T,), nats → (T,), dimensionless. Source: a test.
    """

    needs = frozenset({"logp", "old_logp"})
    scope = "step"

    def __call__(self, b: upge.View) -> Tensor:
        x, own = b.logp - b.old_logp, b.to_tokens(b.rows).to(b.dtype)
        count = b.total(own).clamp(min=1)
        mean = b.total(x * own) / count
        return (x - mean) / (1 + (b.total(((x - mean) * own) ** 2) / count).sqrt())


class Middle(upge.Denominator):
    """The median of the step's log-probs under π_old, for every token.

        log π_ref = median(log π_old)

    Shapes: (T,), nats → (T,), nats. Source: a test.
    """

    needs = frozenset({"old_logp"})
    scope = "step"

    def __call__(self, b: upge.View) -> Tensor:
        return b.quantile(b.old_logp, 0.5).expand_as(b.old_logp)


PARTS = {
    "mask": TERM | {"mask": [TERM["mask"], HighEntropy()]},
    "masks before and after": TERM | {"mask": [HighEntropy(share=0.6), TERM["mask"], DropSome()]},
    "live advantage": TERM | {"advantage": Whitened()},
    "denominator": TERM | {"denominator": Middle(), "source": "all"},
}


def estimator(term: dict[str, Any]) -> Estimator:
    return Estimator.model_validate({"terms": {"rl": term, "other": OTHER}})


# The gradient.


def clipped(p: Padded, keep: Tensor) -> Tensor:
    """PPO's surrogate over the tokens of rollouts, token by token, where `keep` (B, L) is 1."""
    rollout = (~p.demonstration)[:, None] & (p.mask != 0)
    advantage = centred_advantage(p.reward, p.group, p.demonstration)
    old = p.logp.detach() if p.old_logp is None else p.old_logp
    ratio = (p.logp - old).clamp(-20, 20).exp()
    gain = torch.minimum(ratio * advantage[:, None], ratio.clamp(0.8, 1.2) * advantage[:, None])
    return -(gain * keep)[rollout].sum() / max(int(rollout.sum()), 1)


def ratio(p: Padded) -> Tensor:
    return torch.ones_like(p.logp) if p.old_logp is None else (p.logp - p.old_logp).exp()


def high_entropy(p: Padded) -> Tensor:
    """80/20: the surrogate on the fifth of the tokens with the largest entropy, divided by all of them."""
    rollout = (~p.demonstration)[:, None] & (p.mask != 0)
    entropy = p.entropy.detach()
    if not bool(rollout.any()):
        return p.logp.sum() * 0
    bound = torch.quantile(entropy[rollout], 0.8)
    return clipped(p, (entropy >= bound).to(p.logp))


@pinned
@given(cases())
def test_a_mask_by_the_steps_quantile_has_the_textbooks_gradient(case: Case) -> None:
    if laws.reaches_a_kink(
        lambda p: (p.logp - p.old_logp if p.old_logp is not None else 0 * p.logp).exp(), (0.8, 1.2), case.batch
    ):
        return
    laws.check_gradient(Estimator.model_validate({"terms": {"rl": PARTS["mask"]}}), high_entropy, case.batch)


@pytest.mark.parametrize("name", PARTS)
@fewer
@given(case=cases(), seed=st.integers(0, 2**16))
def test_ranks_and_micro_batches_do_not_matter(name: str, case: Case, seed: int) -> None:
    for ranks in (1, 2, 3):
        laws.check_splitting(estimator(PARTS[name]), case.batch, ranks=ranks, pieces=1 + seed % 4, seed=seed)


@pytest.mark.parametrize("name", PARTS)
@fewer
@given(case=cases(), seed=st.integers(0, 2**16))
def test_order_and_what_is_dropped_do_not_matter(name: str, case: Case, seed: int) -> None:
    laws.check_permutation(estimator(PARTS[name]), case.batch, seed=seed)
    laws.check_dropping(estimator(PARTS[name]), case.batch)


@pytest.mark.parametrize("kind", [HighEntropy, DropSome, Whitened, Middle])
def test_such_parts_pass_upge_check(kind: type[upge.Part]) -> None:
    check_part(kind, examples=min(10, FEWER))


def test_a_rank_without_rows_takes_part_in_every_sum() -> None:
    whole, term = fresh(RICH.batch), estimator(PARTS["masks before and after"])
    rows = [torch.ones(whole.size, dtype=torch.bool), torch.zeros(whole.size, dtype=torch.bool)]

    def counted(rank: int, reduce: Any) -> Any:
        share = whole.select(rows[rank])
        return term.count(share, term.credit(share, reduce=reduce), reduce=reduce)

    loss = term.weigh(whole, lockstep(2, counted)[0]).loss
    laws.assert_same(laws.gradient_of(loss, whole), laws.gradient(term, RICH.batch))


# When they are computed.


def test_a_micro_batch_needs_a_prompt_at_most() -> None:
    assert estimator(PARTS["mask"]).scope == "token"
    widest = [HighEntropy(), {"use": "truncated_importance", "cap": 2.0, "level": "sequence"}]
    assert estimator(TERM | {"mask": widest}).scope == "trajectory"


def test_count_names_the_fields_that_it_needs() -> None:
    assert estimator(TERM).needs_for_count() == frozenset()
    assert estimator(PARTS["mask"]).needs_for_count() == {"logp", "entropy", "old_logp"}
    batch = replace(RICH.batch, logp=None, entropy=None)
    estimator(TERM).count(batch, estimator(TERM).credit(batch))
    wide = estimator(PARTS["mask"])
    with pytest.raises(ValueError, match="count needs a batch with entropy, logp"):
        wide.count(batch, wide.credit(batch))


def test_before_count_every_trajectory_of_the_term_is_asked_about_and_after_it_those_that_matter() -> None:
    batch, wide = RICH.batch, estimator(PARTS["mask"])
    credit = wide.credit(batch)
    assert bool(wide.alive(batch, credit)[~batch.demonstration].all())
    counted = wide.count(batch, credit)
    assert torch.equal(wide.alive(batch, counted), counted.nonzero_rows(batch))
    assert not bool(wide.alive(batch, counted)[~batch.demonstration].all())


# Who may ask.


@pytest.mark.parametrize("function", ["total(b.ratio)", "quantile(b.ratio, 0.5)", "top(b.ratio, 1)", "share(0.5)"])
@pytest.mark.parametrize("scope", ["token", "trajectory", "group"])
def test_a_part_that_sees_a_micro_batch_is_refused_sums_over_ranks(function: str, scope: str) -> None:
    mask = type("Narrow", (upge.Mask,), {"scope": scope, "__call__": lambda self, b: eval(f"b.{function}") * b.ratio})
    block = estimator(TERM | {"mask": mask()})
    with pytest.raises(PartError, match=r"Narrow \(estimator.terms.rl.mask.0\) raised .* say scope = \"step\""):
        block.loss(fresh(RICH.batch))


def test_credit_and_reductions_sum_over_ranks_whatever_their_scope() -> None:
    class Rate(upge.Switch):
        needs = frozenset({"reward"})

        def terms(self) -> tuple[str, ...]:
            return ("rl",)

        def __call__(self, b: upge.View) -> dict[str, Tensor]:
            bound = b.quantile(b.reward, 0.5, where=b.rollout)
            return {"rl": (b.per_prompt(b.reward, how="max") > bound).to(b.dtype)}

    block = Estimator.model_validate({"terms": {"rl": TERM}, "switch": Rate()})
    laws.check_splitting(block, RICH.batch, ranks=3, pieces=2, seed=4)


# The statistics.


def view(batch: Batch, **different: Any) -> upge.View:
    return upge.View(batch, frozenset({"logp", "reward", "entropy"}), **different)


@given(case=cases(), q=st.floats(0, 1))
def test_a_quantile_is_torchs(case: Case, q: float) -> None:
    batch = case.batch
    x = batch.entropy
    assert x is not None
    found = view(batch).quantile(x, q)
    torch.testing.assert_close(found, torch.quantile(x, q) if x.numel() else x.new_zeros(()), rtol=1e-12, atol=1e-12)
    where = batch.demonstration
    of_rows = batch.reward[where]
    found = view(batch).quantile(batch.reward, q, where=where)
    torch.testing.assert_close(found, torch.quantile(of_rows, q) if len(of_rows) else of_rows.new_zeros(()))


@given(case=cases(), count=st.integers(0, 12), seed=st.integers(0, 99))
def test_the_top_is_what_sorting_gives_and_ties_follow_the_trajectories(case: Case, count: int, seed: int) -> None:
    batch = case.batch
    x = batch.reward[batch.trajectory] if seed % 2 else batch.entropy  # rewards tie
    assert x is not None
    found = view(batch).top(x, count)
    assert int(found.sum()) == min(count, len(x))
    assert torch.equal(x[found].sort().values, x.sort(descending=True).values[:count].sort().values)
    order = torch.randperm(batch.size, generator=torch.Generator().manual_seed(seed))
    moved, tokens = permuted(batch, order)
    assert torch.equal(view(moved).top(x[tokens], count), found[tokens])


def test_a_share_is_at_least_one_of_some_and_none_of_none() -> None:
    batch = LONG.batch
    marked = torch.zeros(batch.trajectory.shape, dtype=torch.bool)
    marked[:1000] = True
    seen = view(batch)
    assert [float(seen.share(p, where=marked)) for p in (0.0, 2e-4, 0.0029, 0.003, 0.3, 1.0)] == [1, 1, 2, 3, 300, 1000]
    assert float(view(EMPTY.batch).share(0.5)) == 0


@given(cases())
def test_ranks_within_a_prompt_order_its_trajectories(case: Case) -> None:
    batch = case.batch
    seen = view(batch)
    ranks = seen.rank(batch.reward)
    for prompt in range(batch.prompts):
        own = batch.prompt == prompt
        assert ranks[own].sort().values.tolist() == list(range(int(own.sum())))
        assert batch.reward[own][ranks[own].argsort()].tolist() == sorted(batch.reward[own].tolist(), reverse=True)
        assert float(seen.per_prompt(batch.reward, how="max")[prompt]) == float(batch.reward[own].max())
        assert float(seen.per_prompt(batch.reward, how="min")[prompt]) == float(batch.reward[own].min())
