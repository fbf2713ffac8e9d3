"""The tests can fail: every hand-made mutant is killed by the laws, and the code as it is survives them.

One mutant of each module dies in the default tier, and all the others in CI.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache, partial
from typing import Any

import pytest
import test_estimator
import test_gradients
import test_laws
import test_noise
import test_parts_of_fields
import test_selections
import test_whole_step
from support.methods import METHODS
from support.mutants import MUTANTS, Mutant
from support.part_cases import FACTORS, estimator, host, hosted, made, values
from support.tiers import spread

from upge.testing import Padded, laws, part_laws
from upge.testing.batches import EMPTY, RICH, Case, fresh, seeded
from upge.testing.scenes import batch_for

Check = Callable[[], None]
CASES = seeded(20)


@cache
def textbook_gradient(name: str, case: Case) -> laws.Gradient:
    """Computed once: it depends on nothing that a mutant changes."""
    leaf = fresh(case.batch)
    return laws.gradient_of(METHODS[name].loss(Padded.of(leaf)), leaf)


def check_published_gradient(name: str, case: Case) -> None:
    ours = laws.gradient(estimator(METHODS[name].estimator), case.batch, METHODS[name].step)
    laws.assert_same(ours, textbook_gradient(name, case))


def checks() -> Iterator[Check]:
    """The checks of the property tests on a fixed set of batches: cheap and pointed ones first."""
    for bounds in test_gradients.BOUNDS:
        yield partial(test_gradients.test_clip_keeps_the_gradient_at_its_bounds_and_drops_it_just_beyond, *bounds)
    yield test_gradients.test_dual_clip_keeps_the_gradient_at_its_third_bound_and_drops_it_just_beyond
    yield test_gradients.test_cis_mask_drops_what_is_pushed_beyond_its_bounds_and_caps_the_rest
    yield partial(
        test_gradients.test_the_gate_is_closed_at_its_threshold_and_open_just_above, [1.0, 0.0, 0.0, 0.0], 0.25, False
    )
    yield partial(test_gradients.test_whitening_a_batch_of_equal_rewards_gives_exactly_nothing, 0.1)
    yield test_estimator.test_idle_prompts_are_those_whose_every_coefficient_is_zero
    yield partial(test_laws.test_a_group_whose_rewards_are_all_alike_has_exactly_no_advantage, "group_norm")
    yield test_laws.test_a_masked_token_with_a_huge_ratio_has_no_weight
    yield partial(test_laws.test_an_impossible_token_without_weight_costs_nothing, "old", "near")
    yield test_laws.test_a_part_that_reads_what_it_did_not_declare_is_told_so
    for case in CASES[:3]:  # the later two have groups, of either outcome
        yield from (partial(check_published_gradient, name, case) for name in METHODS)
    for slot, value in values(*FACTORS):
        part = made(slot, value)
        yield partial(part_laws.check_reads, part, RICH, 0)
        yield partial(laws.check_detached, part, batch_for(part, RICH))
        yield partial(laws.check_contributes_nothing, *hosted(slot, value, EMPTY))
    yield from test_parts_of_fields.checks()
    yield from _checks_of_selections()
    yield from _checks_of_the_whole_step()
    yield test_selections.test_a_weight_may_be_made_of_a_parts_state
    for case in CASES[3:]:
        yield from (partial(check_published_gradient, name, case) for name in METHODS)
    for case in CASES[:12]:
        for name in ("hpt", "hpt_upt", "half imitation, half reinforcement"):
            whole = estimator(METHODS[name].estimator)
            yield partial(laws.check_splitting, whole, case.batch, ranks=2, pieces=2, seed=case.seed)
            yield partial(laws.check_dropping, whole, case.batch)
        whitened = host("advantage", {"use": "batch_norm"})
        yield partial(laws.check_splitting, whitened, case.batch, ranks=2, pieces=2, seed=case.seed)
    for case in CASES[:6]:
        yield from _checks_of_parts(case)


def _checks_of_the_whole_step() -> Iterator[Check]:
    """Statistics over ranks, and noise."""
    yield test_whole_step.test_a_share_is_at_least_one_of_some_and_none_of_none
    yield test_noise.test_two_parts_of_a_kind_draw_apart
    for case in (RICH, CASES[4]):
        yield partial(_drawn(test_noise.test_order_and_selection_leave_it_where_it_is), case=case, seed=3)
        yield partial(_drawn(test_whole_step.test_a_quantile_is_torchs), case=case, q=0.37)
        for seed in (1, 2):
            top = _drawn(test_whole_step.test_the_top_is_what_sorting_gives_and_ties_follow_the_trajectories)
            yield partial(top, case=case, count=3, seed=seed)
        for term in test_whole_step.PARTS.values():
            whole = test_whole_step.estimator(term)
            yield partial(laws.check_splitting, whole, case.batch, ranks=2, pieces=2, seed=case.seed)


def _checks_of_selections() -> Iterator[Check]:
    """What counts, under every reduction; and weights that are parts."""
    yield test_selections.test_of_several_selections_a_token_counts_that_all_select
    yield test_selections.test_terms_that_count_together_count_the_tokens_that_any_of_them_selects
    yield test_selections.test_kept_rows_are_those_with_a_selected_token
    yield test_selections.test_what_a_selection_needs_is_known_before_any_model_is_opened
    for case in (RICH, CASES[4]):
        yield partial(_drawn(test_selections.test_positives_and_negatives_are_counted_apart_as_a_textbook_does), case)
        for where in ("mask", "select"):
            entropy = _drawn(test_selections.test_a_selection_under_mask_still_counts_and_under_select_does_not)
            yield partial(entropy, where, case)
        for select in test_selections.SELECTIONS:
            counts = _drawn(test_selections.test_a_selection_counts_what_the_batch_of_the_selected_tokens_counts)
            yield partial(counts, "sequence_mean", select, case)


def _drawn(test: Any) -> Callable[..., None]:
    """The body of a property test, for examples given here."""
    body: Callable[..., None] = test.hypothesis.inner_test
    return body


def _checks_of_parts(case: Case) -> Iterator[Check]:
    for slot, value in values(*FACTORS):
        yield partial(laws.check_dropping, *hosted(slot, value, case))
        yield partial(laws.check_permutation, *hosted(slot, value, case), seed=case.seed)
    for _, value in values("reduction"):
        terms: dict[str, Any] = {n: {**t, "reduction": {**value, "count": "all"}} for n, t in test_laws.TERMS.items()}
        weights = {"rl": 0.5, "sft": 2.0, "entropy": -1.0}
        yield partial(laws.check_linear_in_coefficients, terms, weights, case.batch)


def killer() -> str | None:
    """The first check that fails, or None where all hold."""
    for check in _guarded(checks()):
        if check is not None:
            return check
    return None


def _guarded(found: Iterator[Check]) -> Iterator[str | None]:
    """For each check how it failed; a mutant that can't even be built has failed too."""
    try:
        for check in found:
            check()
            yield None
    except (Exception, pytest.fail.Exception) as failure:
        yield f"{type(failure).__name__}: {failure}"


def test_the_code_as_it_is_survives() -> None:
    assert killer() is None


@pytest.mark.parametrize("mutant", spread(MUTANTS, lambda mutant: mutant.module), ids=lambda mutant: mutant.name)
def test_every_mutant_is_killed(mutant: Mutant) -> None:
    with mutant.alive():
        assert killer() is not None, f"no test notices that {mutant.name}"


def test_a_dead_mutant_leaves_the_code_as_it_was() -> None:
    case = CASES[-1]
    for mutant in MUTANTS:
        with mutant.alive():
            pass
    check_published_gradient("hpt", case)


def test_there_are_enough_mutants_and_no_two_alike() -> None:
    assert len(MUTANTS) >= 20
    assert len({mutant.name for mutant in MUTANTS}) == len(MUTANTS)
    assert len({(mutant.module, mutant.old, mutant.new) for mutant in MUTANTS}) == len(MUTANTS)
