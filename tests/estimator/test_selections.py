"""Selections, the tokens of a term that count: what they change and what not. Weights that are parts."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from support.textbook import centred_advantage
from support.tiers import fewer
from test_gradients import pinned
from torch import Tensor

import upge
from upge import Batch, Estimator
from upge.estimator.credit import rows_of
from upge.estimator.part_errors import PartError
from upge.testing import Padded, check_part, laws
from upge.testing.batches import EMPTY, RICH, WORDLESS, Case, fresh
from upge.testing.strategies import cases

TERM: dict[str, Any] = {
    "source": "rollouts",
    "denominator": "old",
    "advantage": "group_mean",
    "reduction": "token_mean",
}
REDUCTIONS = ("token_mean", "sequence_mean", "sequence_sum", "prompt_mean", {"use": "constant", "length": 8})


class Chosen(upge.Selection):
    """Tokens by chance, a share of them.

        select_t = [u_t < share]

    Shapes: (T,) bool. Source: a test.
    """

    share: float = 0.5

    def __call__(self, b: upge.View) -> Tensor:
        return b.noise < self.share


class Near(upge.Selection):
    """Tokens whose ratio is near 1, which no declaration says.

        select_t = [|log ρ_t| < 0.2]

    Shapes: (T,) bool. Source: a test.
    """

    def __call__(self, b: upge.View) -> Tensor:
        return b.ratio.log().abs() < 0.2


class Rows(upge.Selection):
    """Whole trajectories: those of an even length.

        select_i = [|o_i| even]

    Shapes: (N,) bool. Source: a test.
    """

    scope = "trajectory"

    def __call__(self, b: upge.View) -> Tensor:
        return b.length % 2 == 0


SELECTIONS: dict[str, list[Any]] = {
    "sign": [{"use": "sign", "of": "positive"}],
    "correct": ["correct"],
    "top entropy": [{"use": "top_entropy", "share": 0.4}],
    "by chance": [Chosen()],
    "of a ratio": [Near()],
    "rows": [Rows()],
    "several": [{"use": "sign", "of": "nonzero"}, Chosen(share=0.8), {"use": "top_entropy", "share": 0.5}],
}


def estimator(**different: Any) -> Estimator:
    return Estimator.model_validate({"terms": {"rl": {**TERM, **different}}})


# The gradient.


def sides(p: Padded) -> Tensor:
    """Positives and negatives under a token mean each, whose gradients add."""
    total = p.logp.sum() * 0
    rollout = (~p.demonstration)[:, None] & (p.mask != 0)
    advantage = centred_advantage(p.reward, p.group, p.demonstration)
    old = p.logp.detach() if p.old_logp is None else p.old_logp
    gain = (p.logp - old).clamp(-20, 20).exp() * advantage[:, None]
    for side in (advantage > 0, advantage < 0):
        chosen = rollout & side[:, None]
        if bool(chosen.any()):
            total = total - gain[chosen].mean()
    return total


@pinned
@given(cases())
def test_positives_and_negatives_are_counted_apart_as_a_textbook_does(case: Case) -> None:
    terms = {side: {**TERM, "select": {"use": "sign", "of": side}} for side in ("positive", "negative")}
    laws.check_gradient(Estimator.model_validate({"terms": terms}), sides, case.batch)


def entropy_80_20(p: Padded, *, among_all: bool) -> Tensor:
    """The surrogate on the two fifths of tokens with the largest entropy, divided by all tokens or by those."""
    rollout = (~p.demonstration)[:, None] & (p.mask != 0)
    if not bool(rollout.any()):
        return p.logp.sum() * 0
    chosen = rollout & (p.entropy.detach() >= torch.quantile(p.entropy.detach()[rollout], 0.6))
    advantage = centred_advantage(p.reward, p.group, p.demonstration)
    old = p.logp.detach() if p.old_logp is None else p.old_logp
    gain = (p.logp - old).clamp(-20, 20).exp() * advantage[:, None]
    return -gain[chosen].sum() / int((rollout if among_all else chosen).sum())


@pytest.mark.parametrize("where", ["mask", "select"])
@pinned
@given(cases())
def test_a_selection_under_mask_still_counts_and_under_select_does_not(where: str, case: Case) -> None:
    block = estimator(**{where: [{"use": "top_entropy", "share": 0.4}]})
    laws.check_gradient(block, lambda p: entropy_80_20(p, among_all=where == "mask"), case.batch)


# Law 11.


@pytest.mark.parametrize("reduction", REDUCTIONS, ids=str)
@pytest.mark.parametrize("name", SELECTIONS)
@fewer
@given(case=cases())
def test_a_selection_counts_what_the_batch_of_the_selected_tokens_counts(reduction: Any, name: str, case: Case) -> None:
    batch, block = case.batch, estimator(reduction=reduction, select=SELECTIONS[name])
    credit = block.count(batch, block.credit(batch))
    own = credit.terms["rl"]
    assert own.selected is not None
    tokens = own.tokens(batch)
    plain = estimator(reduction=reduction)
    rest = plain.credit(batch)
    there = rows_of(tokens, batch) | (batch.length == 0)
    rows = rest.terms["rl"].rows & there
    whole = replace(rest.terms["rl"], rows=rows, active=rest.terms["rl"].active & there)
    part = batch.of_tokens(tokens)
    cut = replace(whole, advantage=whole.advantage[tokens])  # type: ignore[index]
    share = plain.count(part, replace(rest, terms={"rl": cut}, shaping=rest.shaping[tokens])).terms["rl"].share
    assert own.share is not None
    torch.testing.assert_close(own.share[tokens], share, rtol=0, atol=0)
    assert not bool(own.share[~tokens].any())


@pytest.mark.parametrize("reduction", REDUCTIONS, ids=str)
@given(case=cases())
def test_selecting_everything_changes_no_bit_and_nothing_gives_exactly_nothing(reduction: Any, case: Case) -> None:
    for each in (case, WORDLESS):
        whole = laws.gradient(estimator(reduction=reduction), each.batch)
        everything = laws.gradient(estimator(reduction=reduction, select=[Chosen(share=1.0)]), each.batch)
        assert all(torch.equal(one, other) for one, other in zip(whole, everything, strict=True))
        nothing = laws.gradient(estimator(reduction=reduction, select=[Chosen(share=0.0)]), each.batch)
        assert not any(bool(gradient.any()) for gradient in nothing)


@pytest.mark.parametrize("name", SELECTIONS)
@fewer
@given(case=cases(), seed=st.integers(0, 2**16))
def test_ranks_micro_batches_order_and_dropping_do_not_matter(name: str, case: Case, seed: int) -> None:
    terms = {
        "rl": {**TERM, "select": SELECTIONS[name], "mask": {"use": "clip", "low": 0.2, "high": 0.2}},
        "kept": {**TERM, "source": "kept", "direction": "entropy", "denominator": "current", "advantage": "one"},
        "together": {**TERM, "source": "all", "advantage": "one", "count_with": "rl"},
    }
    block = Estimator.model_validate({"terms": terms})
    for ranks in (1, 2, 3):
        laws.check_splitting(block, case.batch, ranks=ranks, pieces=1 + seed % 4, seed=seed)
    laws.check_permutation(block, case.batch, seed=seed)
    laws.check_dropping(block, case.batch)


@pytest.mark.parametrize("kind", [Chosen, Near, Rows])
def test_such_parts_pass_upge_check(kind: type[upge.Part]) -> None:
    check_part(kind, examples=7)


# What else it changes, and what not.


def test_of_several_selections_a_token_counts_that_all_select() -> None:
    batch = RICH.batch

    def selected(select: list[Any]) -> Tensor:
        block = estimator(select=select)
        tokens = block.count(batch, block.credit(batch)).terms["rl"].selected
        assert tokens is not None
        return tokens

    settled = selected(["correct", Rows()])
    assert torch.equal(settled, selected(["correct"]) & selected([Rows()]))
    late = selected([Near(), "correct"])
    assert torch.equal(late, selected([Near()]) & selected(["correct"]))
    assert bool(late.any())
    assert bool(settled.any())


def test_terms_that_count_together_count_the_tokens_that_any_of_them_selects() -> None:
    batch = RICH.batch
    terms = {side: {**TERM, "select": {"use": "sign", "of": side}} for side in ("positive", "negative")}
    terms["negative"]["count_with"] = "positive"
    block = Estimator.model_validate({"terms": terms})
    credit = block.count(batch, block.credit(batch))
    advantage = credit.terms["positive"].advantage
    assert advantage is not None
    united = int(((advantage != 0) & ~batch.demonstration[batch.trajectory]).sum())
    for term in credit.terms.values():
        assert term.share is not None
        assert term.share[term.tokens(batch)].unique().tolist() == [pytest.approx(1 / united)]
    for side, weights in block.weigh(batch, credit).terms.items():
        own = credit.terms[side].tokens(batch)
        assert torch.equal(weights.weight != 0, own)
        assert 0 < int(own.sum()) < united


def test_kept_rows_are_those_with_a_selected_token() -> None:
    batch = RICH.batch
    kept = {**TERM, "source": "kept", "direction": "entropy", "denominator": "current", "advantage": "one"}
    for select in (["correct"], [Near()]):
        block = Estimator.model_validate({"terms": {"rl": {**TERM, "select": select}, "kept": kept}})
        credit = block.count(batch, block.credit(batch))
        selected = credit.terms["rl"].selected
        assert selected is not None
        wanted = rows_of(selected & ~batch.demonstration[batch.trajectory], batch)
        assert torch.equal(credit.terms["kept"].rows, wanted)
        assert 0 < int(wanted.sum()) < batch.size


def test_a_wide_statistic_of_kept_rows_knows_which_are_kept() -> None:
    seen: list[int] = []

    class Share(upge.Mask):
        scope = "step"

        def __call__(self, b: upge.View) -> Tensor:
            seen.append(int(b.share(1.0)))
            return torch.ones_like(b.ratio)

    kept = {**TERM, "source": "kept", "direction": "entropy", "advantage": "one", "mask": [Share()]}
    block = Estimator.model_validate({"terms": {"kept": kept, "rl": {**TERM, "select": [Near()]}}})
    credit = block.count(RICH.batch, block.credit(RICH.batch))
    assert seen == [int(RICH.batch.length[credit.terms["kept"].rows].sum())]
    assert list(credit.terms) == ["kept", "rl"]


def test_a_wide_statistic_is_over_the_selected_tokens() -> None:
    seen: list[float] = []

    class Median(upge.Mask):
        scope = "step"

        def __call__(self, b: upge.View) -> Tensor:
            seen.append(float(b.quantile(b.advantage, 0.0)))
            return torch.ones_like(b.ratio)

    estimator(mask=[Median()], select=[{"use": "sign", "of": "positive"}]).loss(RICH.batch)
    estimator(mask=[Median()]).loss(RICH.batch)
    assert seen[0] > 0 > seen[1]


def test_what_a_selection_needs_is_known_before_any_model_is_opened() -> None:
    assert estimator(select=["correct"]).needs_for_count() == frozenset()
    assert estimator(select=["correct"]).needs_for_credit() == {"reward"}
    assert estimator(select=["top_entropy"]).needs_for_count() == {"logp", "entropy", "old_logp"}
    assert estimator(select=[Near()]).needs_for_count() == {"logp", "old_logp"}
    batch = replace(RICH.batch, logp=None)
    one, whole = (estimator(select=select).credit(batch).nonzero_rows(batch) for select in (["correct"], []))
    assert torch.equal(one, whole & (batch.reward > 0))


def test_nothing_is_forced_yet() -> None:
    assert laws.gradient(estimator(source="forced"), RICH.batch)[0].tolist() == [0.0] * len(RICH.batch.trajectory)


def test_a_recipe_without_selections_is_dumped_as_it_was() -> None:
    assert "select" not in estimator().model_dump()["terms"]["rl"]
    again = Estimator.model_validate(estimator(select=["correct"]).model_dump())
    assert again == estimator(select="correct")


# What is refused.


@pytest.mark.parametrize(
    ("result", "told"),
    [
        ("b.ratio", r"returned torch.float64; it should return bool, .*: compare, as in `x > 0`"),
        (
            "b.ratio[1:] > 0",
            r"returned the shape \(\d+,\); it should be bool, a token's \(T,\) or a trajectory's \(N,\)",
        ),
        ("3", "returned int; it should return a tensor"),
        ("b.noise < b.quantile(b.noise, 0.5)", 'say scope = "step"'),
    ],
)
def test_what_a_selection_must_not_return(result: str, told: str) -> None:
    kind = type("Odd", (upge.Selection,), {"__call__": lambda self, b: (b.ratio, eval(result))[1]})
    with pytest.raises(PartError, match=rf"Odd \(estimator.terms.rl.select.0\).*{told}"):
        estimator(select=[kind()]).loss(RICH.batch)


def test_a_name_that_is_no_mask_may_be_a_selections() -> None:
    assert isinstance(estimator(mask=["correct"]).terms["rl"].mask[0], upge.Selection)
    with pytest.raises(ValidationError, match="no mask is called 'corect'"):
        estimator(mask=["corect"])
    with pytest.raises(ValidationError, match="no selection is called 'clip'"):
        estimator(select=["clip"])


# Weights that are parts.


class Controller(upge.Weight):
    """Grows with the mean score of the batches before.

        w = 1 + target · mean of R

    Shapes: (). Source: a test.
    """

    needs = frozenset({"reward"})

    target: float = 0.5

    def initial(self) -> dict[str, Tensor]:
        return {"sum": torch.zeros(()), "count": torch.zeros(())}

    def advance(self, b: upge.View) -> dict[str, Tensor]:
        return {
            "sum": b.state["sum"] + b.total(b.reward),
            "count": b.state["count"] + b.total(torch.ones_like(b.reward)),
        }

    def __call__(self, b: upge.View) -> Tensor:
        return 1 + self.target * b.state["sum"] / b.state["count"].clamp(min=1)


def test_a_weight_may_be_made_of_a_parts_state() -> None:
    block, batch = estimator(weight=Controller()), RICH.batch
    state = block.credit(batch).state
    plain = laws.gradient(estimator(), batch)
    mean = float(batch.reward.mean())
    laws.assert_same(laws.gradient(block, batch), plain)
    laws.assert_same(laws.gradient(block, batch, 1, state), laws.combined([(1 + 0.5 * mean, plain)]))
    assert block.wants(7) == {"rl"}
    assert estimator(weight={"start": 0.0, "end": 1.0, "steps": 2}).wants(0) == frozenset()
    laws.check_splitting(block, batch, ranks=3, pieces=2, seed=1, step=2)
    check_part(Controller, examples=10)


@pytest.mark.parametrize(
    ("result", "told"),
    [("torch.ones(3)", r"returned the shape \(3,\); it should be one number"), ("torch.tensor(torch.inf)", "finite")],
)
def test_a_weight_is_one_finite_number(result: str, told: str) -> None:
    kind = type("Odd", (upge.Weight,), {"__call__": lambda self, b: eval(result)})
    with pytest.raises(PartError, match=rf"Odd \(estimator.terms.rl.weight\) .*{told}"):
        estimator(weight=kind()).loss(RICH.batch)


def test_a_number_in_quotes_is_still_refused_as_a_number() -> None:
    with pytest.raises(ValidationError, match="valid number"):
        estimator(weight="0.5")
    with pytest.raises(ValidationError, match="no weight is called 'mine'"):
        estimator(weight="mine")


def test_an_empty_batch_has_a_weight_too() -> None:
    leaf: Batch = fresh(EMPTY.batch)
    assert estimator(weight=Controller(), select=["correct"]).loss(leaf).item() == 0
