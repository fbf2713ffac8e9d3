"""The textbook's losses of fields: each reduces to a published one that recipes are held to."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import assume, given
from support import textbook, textbook_fields, textbook_inventions, textbook_rl
from torch import Tensor

import upge
from upge.testing import Padded, laws
from upge.testing.batches import Case, fresh
from upge.testing.strategies import cases

Loss = Callable[[Padded], Tensor]
NAN = float("nan")


def _grpo(p: Padded) -> Tensor:
    return textbook.grpo(p.logp, p.old_logp, p.mask, p.reward, p.group)


def _ids(p: Padded) -> Tensor:
    return torch.arange(p.mask.numel()).reshape(p.mask.shape) % 5


def _history(p: Padded, *visits: float) -> Tensor:
    return torch.tensor(visits, dtype=p.reward.dtype).expand(len(p.reward), -1)


ALIKE: dict[str, tuple[Loss, Loss]] = {
    "a teacher that is π_0 is the k2 penalty": (
        lambda p: textbook_fields.distilled(p, p.reference_logp),
        lambda p: textbook.token_mean((p.logp - p.reference_logp) ** 2 / 2, p.mask),
    ),
    "a teacher and π_0 that are one are both penalties": (
        lambda p: textbook_fields.distilled(p, p.reference_logp, 0.5),
        lambda p: 1.5 * textbook_fields.distilled(p, p.reference_logp),
    ),
    "a teacher that says nothing leaves the penalty": (
        lambda p: textbook_fields.distilled(p, p.logp.detach() * NAN, 0.5),
        lambda p: 0.5 * textbook.token_mean((p.logp - p.reference_logp) ** 2 / 2, p.mask),
    ),
    "an average that is π_0 is GRPO's penalty": (
        lambda p: textbook_fields.pulled_to_average(p, p.reference_logp, 0.04),
        lambda p: textbook_rl.grpo_with_penalty(p, 0.04),
    ),
    "one reward, decoupled, is GRPO": (lambda p: textbook_fields.decoupled(p, [p.reward], [1.0]), _grpo),
    "a reward twice at half its weight is GRPO": (
        lambda p: textbook_fields.decoupled(p, [p.reward, 8 * p.reward], [0.5, 0.5]),
        lambda p: textbook_fields.decoupled(p, [8 * p.reward, p.reward], [0.5, 0.5]),
    ),
    "segments with one reward are GRPO": (
        lambda p: textbook_fields.segmented(p, _ids(p), 3, p.reward, p.reward),
        _grpo,
    ),
    "without the marker the first reward is all": (
        lambda p: textbook_fields.segmented(p, _ids(p), 7, p.reward, p.value.sum(1)),
        _grpo,
    ),
    "a judge without weight is silent": (lambda p: textbook_fields.judged(p, p.value, 0.0), _grpo),
}


@pytest.mark.parametrize("name", ALIKE)
@given(case=cases())
def test_a_loss_with_a_field_reduces_to_a_published_one(name: str, case: Case) -> None:
    gradients = []
    for loss in ALIKE[name]:
        leaf = fresh(case.batch)
        p = Padded.of(leaf).rollouts
        gradients.append(laws.gradient_of(loss(p), leaf))
    laws.assert_same(*gradients, case.batch)


@given(cases())
def test_a_gate_with_a_memory_is_hpts_at_both_ends(case: Case) -> None:
    for visits, gate in (((1.0, NAN), -1.0), ((0.5, 0.0), 0.25), ((NAN, NAN), -1.0)):
        leaf, other = fresh(case.batch), fresh(case.batch)
        p, q = Padded.of(leaf), Padded.of(other)
        ours = textbook_fields.remembered(p, _history(p, *visits), gate, 7.0)
        explored = gate < 0 and not math.isnan(visits[0])
        always = torch.ones_like(q.reward) if explored else torch.zeros_like(q.reward)
        theirs = textbook.hybrid(
            q.logp, q.old_logp, q.mask, q.reward, q.group, q.demonstration, -math.inf if explored else math.inf, 7.0
        )
        assume(bool((~q.demonstration).any()) or not bool(always.any()))
        laws.assert_same(laws.gradient_of(ours, leaf), laws.gradient_of(theirs, other), case.batch)


@pytest.mark.parametrize(
    ("visits", "median"),
    [([], -math.inf), ([NAN, NAN], -math.inf), ([0.5, NAN], 0.5), ([1.0, 0.0], 0.5), ([0.0, 1.0, 0.25], 0.25)],
)
def test_the_median_is_of_the_visits_that_there_were(visits: list[float], median: float) -> None:
    assert textbook_fields.median(visits) == median


def test_a_policy_that_moves_is_distilled_by_the_importance_of_its_tokens() -> None:
    leaf = fresh(
        upge.Batch.from_padded(
            torch.tensor([[-1.0, -2.0]], dtype=torch.float64),
            torch.ones(1, 2),
            group=torch.zeros(1, dtype=torch.int64),
            reward=torch.ones(1),
            entropy=torch.ones(1, 2),
            rollout_logp=torch.ones(1, 2),
            reference_logp=torch.ones(1, 2),
            value=torch.ones(1, 2),
            old_logp=torch.tensor([[-1.5, -2.0]], dtype=torch.float64),
        )
    )
    p = Padded.of(leaf)
    gradient = laws.gradient_of(textbook_fields.distilled_off_policy(p, torch.tensor([[-0.5, NAN]])), leaf)[0]
    torch.testing.assert_close(gradient, torch.tensor([-math.exp(0.5) * 1.0, 0.0], dtype=torch.float64))


def test_the_textbooks_of_inventions_and_of_fields_share_no_name_with_upge() -> None:
    for module in (textbook_fields, textbook_inventions):
        assert not [name for name, value in vars(module).items() if "upge" in str(getattr(value, "__module__", ""))]
