"""Parts that take a field as a parameter: each is its textbook's loss of that field, and NaN stays where it is."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from support import textbook, textbook_fields, textbook_rl
from support.part_cases import estimator, made
from test_gradients import pinned
from torch import Tensor

import upge
from upge import Batch
from upge.testing import Padded, laws
from upge.testing.batches import EMPTY, PINNED, RICH, Case, seeded
from upge.testing.strategies import cases

NAN = float("nan")


@dataclass(frozen=True)
class Fields:
    """The fields of a batch as papers write them.

    Attributes: teacher, patchy: (B, L) log-probs, the latter with gaps. turn: (B, L) int. format: (B,) a second reward.
        judge: (B,) a third, that scores no demonstration.
    """

    teacher: Tensor
    patchy: Tensor
    turn: Tensor
    format: Tensor
    judge: Tensor

    def rows(self, chosen: Tensor) -> Fields:
        return Fields(*(getattr(self, name)[chosen] for name in self.__dataclass_fields__))


def with_fields(batch: Batch, seed: int) -> Batch:
    """The batch with fields in eighths, so that sums are exact."""
    random = torch.Generator().manual_seed(seed)
    tokens, rows = batch.trajectory.shape, (batch.size,)
    teacher = torch.randint(-40, 0, tokens, generator=random).double() / 8
    judge = torch.randint(-8, 9, rows, generator=random).double() / 8
    gaps = torch.rand(tokens, generator=random) < 0.3
    started = torch.rand(tokens, generator=random) < 0.4
    turn = torch.where(batch.position == 0, 0, started.long()).cumsum(0)
    first = turn[torch.cumsum(batch.length, 0) - batch.length] if len(turn) else turn
    return replace(
        batch,
        token_fields={
            "teacher": teacher,
            "patchy": teacher.where(~gaps, NAN),
            "turn": turn - first[batch.trajectory] if len(turn) else turn,
        },
        trajectory_fields={
            "format": torch.randint(-4, 5, rows, generator=random).double() / 8,
            "judge": judge.where(~batch.demonstration, NAN),
        },
    )


def fields_of(batch: Batch, p: Padded) -> Fields:
    def pad(flat: Tensor) -> Tensor:
        return torch.zeros(p.mask.shape, dtype=flat.dtype).masked_scatter(p.mask, flat)

    tokens = {name: pad(x) for name, x in batch.token_fields.items()}
    return Fields(**tokens, **batch.trajectory_fields)


Loss = Callable[[Padded, Fields], Tensor]


@dataclass(frozen=True)
class Published:
    """An estimator's terms and shaping, and the loss whose gradient it has on the rollouts; its ratio has `kinks`."""

    terms: Mapping[str, Any]
    loss: Loss
    shaping: Any = ()
    kinks: tuple[float, ...] = ()

    @property
    def estimator(self) -> upge.Estimator:
        return estimator({"terms": dict(self.terms), "shaping": self.shaping})


def rl(advantage: Any, reduction: str = "token_mean", **other: Any) -> dict[str, Any]:
    """A term over rollouts, by default the plain policy gradient."""
    term = {"source": "rollouts", "denominator": "current", "advantage": advantage, "reduction": reduction}
    return {"rl": {**term, **other}}


CLIPPED = {"denominator": "old", "mask": {"use": "clip", "low": 0.2, "high": 0.2}}
KINKS = (0.8, 1.2)


def kl(estimate: str, to: str) -> dict[str, Any]:
    return {"use": "kl", "estimator": estimate, "coefficient": 0.3, "to": to}


def penalty(p: Padded, other: Tensor, kind: str) -> Tensor:
    """The mean over tokens of ½·ln² (k2) or r − 1 − ln r (k3), r = π_0/π_θ."""
    log_ratio = other - p.logp
    return 0.3 * textbook.token_mean(log_ratio**2 / 2 if kind == "k2" else torch.exp(log_ratio) - log_ratio - 1, p.mask)


def plain(p: Padded, advantage: Tensor) -> Tensor:
    """−Â·log π with Â (B,), the mean over tokens."""
    return textbook.token_mean(-advantage[:, None] * p.logp, p.mask)


def surrogate(p: Padded, advantage: Tensor) -> Tensor:
    gain = textbook.clipped_surrogate(p.logp, p.old_logp, advantage[:, None].expand(p.logp.shape), 0.2, 0.2)
    return textbook.token_mean(-gain, p.mask)


def of_turn(p: Padded, f: Fields, chosen: Callable[[int, int], bool]) -> Tensor:
    """−log π of tokens whose turn is `chosen` by its number and the trajectory's last, the mean over these."""
    mask = torch.zeros_like(p.mask)
    for i, own in enumerate(p.mask):
        last = max(f.turn[i][own].tolist())
        for t in range(int(own.sum())):
            mask[i, t] = chosen(int(f.turn[i, t]), last)
    return textbook.token_mean(-p.logp, mask)


def turns(which: Any, *, others: bool = False) -> dict[str, Any]:
    return rl("one", select={"use": "turn", "which": which, "others": others})


def known(of: str) -> dict[str, Any]:
    return {"use": "known", "of": of}


def rewarded(p: Padded, reward: Tensor) -> Padded:
    return replace(p, reward=reward)


PUBLISHED: dict[str, Published] = {
    "k2 to a field": Published(rl(kl("k2", "teacher")), lambda p, f: penalty(p, f.teacher, "k2")),
    "k3 to a field": Published(rl(kl("k3", "teacher")), lambda p, f: penalty(p, f.teacher, "k3")),
    "k2 to a field of the machine": Published(
        rl(kl("k2", "rollout_logp")), lambda p, f: penalty(p, p.rollout_logp, "k2")
    ),
    "k2 to the reference": Published(rl(kl("k2", "reference")), lambda p, f: penalty(p, p.reference_logp, "k2")),
    "k3 to the old policy": Published(rl(kl("k3", "old")), lambda p, f: penalty(p, p.old_logp, "k3")),
    "k2 to the engine's": Published(rl(kl("k2", "rollout")), lambda p, f: penalty(p, p.rollout_logp, "k2")),
    "distillation by a teacher that has gaps": Published(
        rl({"use": "kl", "estimator": "k2", "coefficient": 1.0, "to": "patchy"}, select=known("patchy")),
        lambda p, f: textbook_fields.distilled(p, f.patchy),
    ),
    "distillation over several updates": Published(
        rl("one", denominator={"use": "field", "of": "patchy"}, select=known("patchy")),
        lambda p, f: textbook.token_mean(-torch.exp(p.logp - f.patchy.nan_to_num()), p.mask & ~f.patchy.isnan()),
    ),
    "importance over a field": Published(
        rl("reward", denominator={"use": "field", "of": "teacher"}),
        lambda p, f: textbook.token_mean(-torch.exp(p.logp - f.teacher) * p.reward[:, None], p.mask),
    ),
    "a clip over a field": Published(
        rl("group_mean", **{**CLIPPED, "denominator": {"use": "field", "of": "old_logp"}}),
        lambda p, f: surrogate(p, textbook.centred_advantage(p.reward, p.group, p.demonstration)),
        kinks=KINKS,
    ),
    "GRPO of another reward": Published(
        rl({"use": "group_norm", "of": "judge"}, "sequence_mean", **CLIPPED),
        lambda p, f: textbook.grpo(p.logp, p.old_logp, p.mask, f.judge, p.group),
        kinks=KINKS,
    ),
    "the mean of another reward": Published(
        rl({"use": "group_mean", "of": "judge"}),
        lambda p, f: plain(p, textbook.centred_advantage(f.judge, p.group, p.demonstration)),
    ),
    "RLOO of another reward": Published(
        rl({"use": "leave_one_out", "of": "judge"}, "sequence_sum"),
        lambda p, f: textbook_rl.leave_one_out(rewarded(p, f.judge)),
    ),
    "another reward itself": Published(rl({"use": "reward", "of": "judge"}), lambda p, f: plain(p, f.judge)),
    "the sign of another reward": Published(
        rl({"use": "signed", "of": "judge"}, "sequence_sum"),
        lambda p, f: textbook.reinforce(p.logp, p.mask, f.judge),
    ),
    "REINFORCE++ of another reward, which has no shaping": Published(
        rl({"use": "batch_norm", "of": "format"}, **CLIPPED),
        lambda p, f: textbook_rl.reinforce_plus_plus(rewarded(p, f.format), 0.0),
        shaping={"use": "kl_in_reward", "coefficient": 0.1},
        kinks=KINKS,
    ),
    "REINFORCE++ of another reward over its group's mean": Published(
        rl({"use": "batch_norm", "of": "judge", "baseline": "group_mean"}, **CLIPPED),
        lambda p, f: textbook_rl.reinforce_plus_plus(rewarded(p, f.judge), 0.0, baseline=True),
        kinks=KINKS,
    ),
    "REINFORCE++ with a KL to a field in its reward": Published(
        rl("batch_norm", **CLIPPED),
        lambda p, f: textbook_rl.reinforce_plus_plus(replace(p, reference_logp=f.teacher), 0.1),
        shaping={"use": "kl_in_reward", "coefficient": 0.1, "to": "teacher"},
        kinks=KINKS,
    ),
    "REINFORCE++ with a KL to the engine in its reward": Published(
        rl("batch_norm", **CLIPPED),
        lambda p, f: textbook_rl.reinforce_plus_plus(replace(p, reference_logp=p.rollout_logp), 0.1),
        shaping={"use": "kl_in_reward", "coefficient": 0.1, "to": "rollout"},
        kinks=KINKS,
    ),
    "two rewards apart, in a term each": Published(
        {
            "rl": rl("group_norm", "sequence_mean")["rl"] | {"weight": 0.75},
            "format": rl({"use": "group_norm", "of": "format"}, "sequence_mean")["rl"] | {"weight": 0.25},
        },
        lambda p, f: textbook_fields.decoupled(
            replace(p, old_logp=p.logp.detach()), [p.reward, f.format], [0.75, 0.25]
        ),
    ),
    "the right by another reward": Published(
        rl("one", select={"use": "correct", "of": "format", "above": 0.0}),
        lambda p, f: textbook.supervised(p.logp, p.mask & (f.format > 0)[:, None]),
    ),
    "the last turn": Published(turns("last"), lambda p, f: of_turn(p, f, lambda turn, last: turn == last)),
    "the first turn": Published(turns("first"), lambda p, f: of_turn(p, f, lambda turn, last: turn == 0)),
    "a turn by its number": Published(turns(1), lambda p, f: of_turn(p, f, lambda turn, last: turn == 1)),
    "the turn before the last": Published(turns(-2), lambda p, f: of_turn(p, f, lambda turn, last: turn == last - 1)),
    "all turns but both ends": Published(
        turns([0, -1], others=True), lambda p, f: of_turn(p, f, lambda turn, last: 0 < turn < last)
    ),
}
"""Parts with a field as their parameter, over rollouts; `judge` knows nothing of demonstrations."""


def check(name: str, case: Case) -> None:
    published, batch = PUBLISHED[name], with_fields(case.batch, case.seed)
    fields = fields_of(batch, Padded.of(batch)).rows(~batch.demonstration)
    laws.check_gradient(published.estimator, lambda p: published.loss(p.rollouts, fields), batch)


def smooth(name: str, case: Case) -> bool:
    return not laws.reaches_a_kink(lambda p: (p.logp - p.old_logp).exp()[p.mask], PUBLISHED[name].kinks, case.batch)


@pytest.mark.parametrize("name", PUBLISHED)
@pinned
@given(cases())
def test_a_part_of_a_field_has_the_textbooks_gradient(name: str, case: Case) -> None:
    assume(smooth(name, case))
    check(name, case)


@pytest.mark.parametrize("name", PUBLISHED)
@given(cases(), st.integers(0, 2**16))
def test_it_is_so_on_two_ranks_in_micro_batches(name: str, case: Case, seed: int) -> None:
    laws.check_splitting(PUBLISHED[name].estimator, with_fields(case.batch, case.seed), ranks=2, pieces=2, seed=seed)


# What isn't known.


def two(reward: list[float], **fields: Any) -> Batch:
    """Rollouts of one prompt, of a token each, with this reward per trajectory in the field `judge`."""
    count = len(reward)
    numbers = torch.arange(count).double()
    return Batch(
        logp=-1 - numbers / 8,
        trajectory=torch.arange(count),
        group=torch.zeros(count, dtype=torch.int64),
        demonstration=torch.zeros(count, dtype=torch.bool),
        reward=numbers,
        reference_logp=-2 - numbers / 8,
        trajectory_fields={"judge": torch.tensor(reward, dtype=torch.float64)},
        **fields,
    )


@pytest.mark.parametrize("use", ["group_norm", "group_mean", "leave_one_out"])
def test_an_unknown_reward_is_no_member_of_its_group_and_has_no_advantage(use: str) -> None:
    whole = estimator({"terms": rl({"use": use, "of": "judge"})})
    known = whole.credit(two([1.0, 0.5, 0.25])).terms["rl"].advantage
    some = whole.credit(two([1.0, NAN, 0.5, 0.25, NAN])).terms["rl"].advantage
    assert known is not None
    assert some is not None
    assert some[[1, 4]].isnan().all()
    torch.testing.assert_close(some[[0, 2, 3]], known, rtol=0, atol=0)
    alone = whole.credit(two([1.0, NAN])).terms["rl"].advantage
    assert alone is not None
    assert alone.isnan().tolist() == [False, True]


UNKNOWN: dict[str, dict[str, Any]] = {
    "group_norm": {"terms": rl({"use": "group_norm", "of": "judge"})},
    "reward": {"terms": rl({"use": "reward", "of": "judge"})},
    "signed": {"terms": rl({"use": "signed", "of": "judge"})},
    "batch_norm": {"terms": rl({"use": "batch_norm", "of": "judge"})},
    "kl": {"terms": rl(kl("k2", "patchy"))},
    "field": {"terms": rl("one", denominator={"use": "field", "of": "patchy"})},
    "kl_in_reward": {"terms": rl("reward"), "shaping": {"use": "kl_in_reward", "coefficient": 0.1, "to": "patchy"}},
    "success_rate": {
        "terms": {**rl("one"), "other": rl("one")["rl"]},
        "switch": {"use": "success_rate", "above": "rl", "otherwise": "other", "of": "judge"},
    },
    "linear": {
        "terms": {**rl("one"), "other": rl("one")["rl"]},
        "switch": {"use": "linear", "success": "rl", "failure": "other", "of": "judge"},
    },
}


@pytest.mark.parametrize("use", UNKNOWN)
def test_a_number_that_is_not_known_is_never_taken_for_one(use: str) -> None:
    batch = two([1.0, NAN, 0.5], token_fields={"patchy": torch.tensor([-1.0, NAN, -2.0], dtype=torch.float64)})
    with pytest.raises(upge.PartError, match=rf"(?i)({use}|{use.replace('_', '')}).*NaN"):
        estimator(UNKNOWN[use]).loss(batch)


def test_an_informative_prompt_has_two_rewards_that_are_known() -> None:
    whole = estimator({"terms": rl("one"), "switch": {"use": "informative", "keep": "rl", "of": "judge"}})
    for reward, informative in (([1.0, NAN, 1.0], 0.0), ([1.0, NAN, 0.5], 1.0), ([NAN, NAN], 0.0)):
        assert float(whole.credit(two(reward)).terms["rl"].coefficient[0]) == informative


def test_of_several_numbers_per_token_all_are_known() -> None:
    top = torch.tensor([[-1.0, NAN], [-1.0, -2.0], [NAN, NAN]], dtype=torch.float64)
    whole = estimator({"terms": rl("one", select=known("top"))})
    selected = whole.credit(two([0.0] * 3, token_fields={"top": top})).terms["rl"].selected
    assert selected is not None
    assert selected.tolist() == [False, True, False]


# What is read, and what is written.


@pytest.mark.parametrize(
    ("slot", "value", "reads"),
    [
        ("advantage", kl("k2", "teacher"), {"logp", "teacher"}),
        ("advantage", kl("k2", "reference"), {"logp", "reference_logp"}),
        ("advantage", kl("k2", "old"), {"logp", "old_logp"}),
        ("advantage", kl("k2", "rollout"), {"logp", "rollout_logp"}),
        ("shaping", {"use": "kl_in_reward", "coefficient": 0.1, "to": "teacher"}, {"old_logp", "teacher"}),
        ("denominator", {"use": "field", "of": "teacher"}, {"teacher"}),
        ("advantage", {"use": "group_norm", "of": "judge"}, {"judge"}),
        ("advantage", "group_norm", {"reward"}),
        ("selection", {"use": "turn", "which": "last"}, {"turn"}),
    ],
)
def test_a_part_reads_the_field_that_it_is_given_and_no_other(slot: str, value: Any, reads: set[str]) -> None:
    assert made(slot, {"use": value} if isinstance(value, str) else value).reads() == reads


def test_a_parameter_that_came_later_is_written_only_where_it_says_something() -> None:
    older = {"use": "group_mean", "over": "all"}
    assert made("advantage", older).dump() == older
    assert made("advantage", {**older, "of": "reward"}).dump() == older
    assert made("advantage", {**older, "of": "judge"}).dump() == {**older, "of": "judge"}
    assert "to" not in made("advantage", {"use": "kl", "estimator": "k2", "coefficient": 0.1}).dump()


@pytest.mark.parametrize("which", ["middle", [], True, 1.0, ["first"]])
def test_what_names_no_turn_is_refused(which: Any) -> None:
    with pytest.raises(ValueError, match="which"):
        made("selection", {"use": "turn", "which": which})


def checks() -> Iterator[Callable[[], None]]:
    """A fixed few of the examples, for mutants."""
    for use in ("group_norm", "group_mean", "leave_one_out"):
        yield partial(test_an_unknown_reward_is_no_member_of_its_group_and_has_no_advantage, use)
    for use in UNKNOWN:
        yield partial(test_a_number_that_is_not_known_is_never_taken_for_one, use)
    yield test_an_informative_prompt_has_two_rewards_that_are_known
    yield test_of_several_numbers_per_token_all_are_known
    for name in PUBLISHED:
        for case in (RICH, *PINNED, EMPTY, *seeded(3)):
            if smooth(name, case):
                yield partial(check, name, case)
