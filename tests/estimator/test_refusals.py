"""What an estimator refuses: parts that do not keep their contract, and blocks that say what cannot be."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from support.methods import Given
from support.part_cases import estimator
from test_estimator import BATCH, PLAIN, assert_close, pushing, weights
from torch import Tensor

import upge
from upge import Advantage, Denominator, Estimator, Mask, PartError, Reduction, Shaping, Switch, View, register
from upge.estimator.batch import FIELD_KINDS
from upge.part_checks import ATTRIBUTES, FILLED
from upge.testing import laws

# When a part goes wrong.


def broken(base: type, result: Any) -> Any:
    """A part of this slot that returns `result`."""

    class Broken(base):  # type: ignore[misc]
        """Returns what it shouldn't."""

        def __call__(self, b: View) -> Any:
            return result

        def terms(self) -> tuple[str, ...]:
            return ("rl",)

    return Broken()


TOKENS = len(BATCH.trajectory)


@pytest.mark.parametrize(
    ("slot", "base", "place"),
    [
        ("mask", Mask, r"terms\.rl\.mask\.0"),
        ("denominator", Denominator, r"terms\.rl\.denominator"),
        ("advantage", Advantage, r"terms\.rl\.advantage"),
        ("reduction", Reduction, r"terms\.rl\.reduction"),
    ],
)
@pytest.mark.parametrize(
    ("result", "complaint"),
    [
        (torch.ones(TOKENS + 1), rf"returned the shape \({TOKENS + 1},\); it should be .*\({TOKENS},\)"),
        (torch.ones(TOKENS, 1), "returned the shape"),
        (torch.full((TOKENS,), torch.nan), "returned NaN"),
        (1.0, "returned float; it should return a tensor"),
        (None, "returned NoneType"),
    ],
)
def test_a_broken_part_is_named_with_its_place(slot: str, base: type, place: str, result: Any, complaint: str) -> None:
    with pytest.raises(PartError, match=rf"Broken \(estimator\.{place}\) {complaint}"):
        estimator(pushing(**{slot: broken(base, result)})).loss(BATCH)


@pytest.mark.parametrize(
    ("result", "complaint"),
    [
        ({"rl": torch.ones(BATCH.prompts + 1)}, r"returned the shape .*\(G,\)"),
        ({"rl": torch.ones(())}, r"returned the shape \(\); it should be a coefficient per prompt"),
        ({"rl": torch.full((BATCH.prompts,), torch.nan)}, "returned NaN"),
        ({"rl": 1.0}, "returned float"),
    ],
)
def test_a_broken_switch_is_named_with_its_place(result: Any, complaint: str) -> None:
    with pytest.raises(PartError, match=rf"Broken \(estimator\.switch\.0\) {complaint}"):
        estimator({**pushing(), "switch": broken(Switch, result)}).loss(BATCH)


@pytest.mark.parametrize("result", [{}, {"rl": torch.ones(BATCH.prompts), "other": torch.ones(BATCH.prompts)}, None])
def test_a_switch_gives_coefficients_for_the_terms_that_it_names(result: Any) -> None:
    with pytest.raises(PartError, match=r"Broken \(estimator\.switch\.0\)"):
        estimator({**pushing(), "switch": broken(Switch, result)}).loss(BATCH)


class Rude(Mask):
    """Does to the view whatever the test asks for."""

    needs = frozenset({"logp", "old_logp"})
    act: Any

    def __call__(self, b: View) -> Any:
        return self.act(b)


HOLD = "it is not the part's own; make a new tensor"


@pytest.mark.parametrize(
    ("act", "changed"),
    [
        (lambda b: b.ratio.mul_(2), "ratio"),
        (lambda b: b.advantage.clamp_(max=0), "advantage"),
        (lambda b: b.mask[:2].zero_().sum(), "mask"),
        (lambda b: b.ratio + b.old_logp.zero_(), "old_logp"),
        (lambda b: b.demonstration.logical_not_() * 0 + b.ratio[0], "demonstration"),
    ],
)
def test_a_part_that_changes_what_it_sees_is_named_with_its_place_and_line(act: Any, changed: str) -> None:
    batch = dataclasses.replace(BATCH, **{name: getattr(BATCH, name).clone() for name in ("old_logp", "demonstration")})
    told = rf"changes b\.{changed} in place: {HOLD} \(.*test_refusals\.py:\d+\)"
    with pytest.raises(PartError, match=rf"Rude \(estimator\.terms\.rl\.mask\.0\) {told}"):
        estimator(pushing(mask=Rude(act=act))).loss(batch)


@pytest.mark.parametrize("slot", ["mask", "denominator", "advantage", "reduction", "switch", "shaping"])
def test_numbers_that_carry_gradient_are_refused_in_every_slot(slot: str) -> None:
    wet = torch.ones(BATCH.prompts if slot == "switch" else TOKENS, requires_grad=True)
    part = broken(upge.part.SLOTS[slot], {"rl": wet} if slot == "switch" else wet)
    block = {**pushing(), slot: part} if slot in ("switch", "shaping") else pushing(**{slot: part})
    with pytest.raises(PartError, match=r"returned a tensor that carries gradient: detach it \(.*:\d+\)"):
        estimator(block).loss(BATCH)


def test_what_a_part_does_to_its_state_in_place_is_told() -> None:
    class Running(Advantage):
        """Adds up in place."""

        def initial(self) -> dict[str, Tensor]:
            return {"seen": torch.zeros(())}

        def advance(self, b: View) -> dict[str, Tensor]:
            return {"seen": b.state["seen"].add_(1)}

        def __call__(self, b: View) -> Tensor:
            return b.to_tokens(b.length)

    with pytest.raises(PartError, match=r"changes b\.state\['seen'\] in place"):
        estimator(pushing(advantage=Running())).credit(BATCH)


WEIGHED = int(((~BATCH.demonstration) & (BATCH.reward != 0))[BATCH.trajectory].nonzero()[0])
"""A token of a rollout that is rewarded."""


def test_nan_is_told_with_its_token() -> None:
    numbers = torch.ones(TOKENS)
    numbers[WEIGHED] = torch.nan
    row = int(BATCH.trajectory[WEIGHED])
    told = rf"returned NaN at token \d+ of trajectory {row} \(rollout, group -?\d+\) \(\S+test_refusals\.py:\d+\)"
    with pytest.raises(PartError, match=told):
        estimator(pushing(mask=broken(Mask, numbers))).loss(BATCH)


def test_nan_that_meets_no_weight_changes_nothing() -> None:
    """A field has no number for a trajectory that nobody asks about, and so have parts that read it."""
    numbers = torch.ones(TOKENS)
    numbers[BATCH.demonstration[BATCH.trajectory]] = torch.nan
    block = estimator(pushing(mask=broken(Mask, numbers)))
    assert_close(-laws.gradient(block, BATCH)[0], weights(pushing()))


class Hiding(Switch):
    """Gives a coefficient to a term that it doesn't want."""

    def terms(self) -> tuple[str, ...]:
        return ("rl",)

    def wants(self, step: int) -> frozenset[str]:
        return frozenset({"rl"} if step < 2 else ())

    def __call__(self, b: Any) -> dict[str, Tensor]:
        return {"rl": torch.ones(BATCH.prompts)}


def test_a_switch_weighs_no_term_that_it_does_not_want() -> None:
    block = estimator({**pushing(), "switch": Hiding()})
    assert torch.isfinite(block.loss(BATCH, step=1))
    with pytest.raises(PartError, match="gives 'rl' a coefficient at step 2, when it wants none: expected 0, got"):
        block.loss(BATCH, step=2)


@pytest.mark.parametrize(
    ("before", "after", "complaint"),
    [
        ({"x": 1.0}, {}, r"returned float for 'x' from `initial`"),
        (None, {}, "returned NoneType from `initial`; it should return a dict of tensors"),
        ({"x": torch.ones(())}, {"x": 2.0}, r"returned float for 'x' from `advance`"),
        ({"x": torch.ones(())}, None, "returned NoneType from `advance`"),
        ({"x": torch.ones(())}, {}, "returned nothing from `advance`; its state has x"),
    ],
)
def test_state_is_named_tensors_and_the_same_ones_throughout(before: Any, after: Any, complaint: str) -> None:
    class Stateful(Advantage):
        """Its state is none."""

        def initial(self) -> Any:
            return before

        def advance(self, b: Any) -> Any:
            return after

        def __call__(self, b: Any) -> Tensor:
            return torch.ones(())

    with pytest.raises(PartError, match=rf"Stateful \(estimator\.terms\.rl\.advantage\) {complaint}"):
        estimator(pushing(advantage=Stateful())).loss(BATCH)


def test_a_fault_is_placed_in_the_parts_own_file() -> None:
    class Undeclared(Mask):
        """Reads what it doesn't declare."""

        def __call__(self, b: Any) -> Any:
            return b.old_logp

    class Misspelt(Mask):
        """Has no such parameter."""

        width: float = 1.0

        def __call__(self, b: Any) -> Any:
            return b.ratio * self.widht

    for part, said in ((Undeclared(), "without declaring it"), (Misspelt(), "no attribute 'widht'")):
        line = type(part).__call__.__code__.co_firstlineno + 1
        with pytest.raises(PartError, match=rf"{said}.*\({Path(__file__)}:{line}\)"):
            estimator(pushing(mask=part)).loss(BATCH)


@pytest.mark.parametrize(
    ("declared", "message"),
    [
        ({"needs": "logp"}, r"Odd.needs = 'logp': should be a set of batch fields"),
        ({"needs": {"group"}}, "Odd.needs: there is no batch field 'group'; there are entropy, forced, logp"),
        ({"scope": "sequence"}, "Odd.scope = 'sequence': should be one of token, trajectory, group, step"),
        ({"trust_region": 1}, "Odd.trust_region = 1: should be True or False"),
        ({"api": "1"}, "Odd.api = '1': should be the number"),
        ({"__annotations__": {"scope": str}, "scope": "group"}, "Odd.scope is the class's own and no parameter"),
        ({"packages": {"numpy"}}, "Odd.packages = {'numpy'}: should map a module"),
        ({"__annotations__": {"use": float}, "use": 0.3}, "Odd.use: no parameter can be called so"),
    ],
)
def test_what_a_class_declares_is_checked_when_it_is_made(declared: dict[str, Any], message: str) -> None:
    with pytest.raises(TypeError, match=message):
        type("Odd", (Mask,), {"__module__": __name__, **declared})


def test_needs_may_be_a_plain_set() -> None:
    assert type("Odd", (Mask,), {"__module__": __name__, "needs": {"logp"}}).needs == frozenset({"logp"})


def test_the_fields_that_can_be_needed_are_those_of_a_batch() -> None:
    structure = {"trajectory", "group", "demonstration", "key", *FIELD_KINDS}
    assert {field.name for field in dataclasses.fields(upge.Batch)} - structure == set(ATTRIBUTES)
    assert not set(ATTRIBUTES) & set(FILLED)


def test_a_broken_shaping_is_named_with_its_place() -> None:
    with pytest.raises(PartError, match=r"Broken \(estimator\.shaping\.0\) returned NaN"):
        estimator({**pushing(), "shaping": broken(Shaping, torch.full((TOKENS,), torch.nan))}).loss(BATCH)


def test_a_part_may_return_one_number_for_all_tokens() -> None:
    assert_close(weights(pushing(mask=broken(Mask, torch.tensor(2.0)))), 2 * weights(pushing()))


# What a recipe may not say.


def complaints(block: dict[str, Any]) -> dict[tuple[Any, ...], str]:
    """Where an estimator is refused, and why."""
    with pytest.raises(ValidationError) as refused:
        Estimator.model_validate(block)
    return {error["loc"]: error["msg"] for error in refused.value.errors()}


@pytest.mark.parametrize(
    ("block", "location", "message"),
    [
        ({"terms": {}}, ("terms",), "at least 1"),
        ({}, ("terms",), "required"),
        ({**pushing(), "typo": 1}, ("typo",), "not permitted"),
        (pushing(typo=1), ("terms", "rl", "typo"), "not permitted"),
        (pushing(source="everyone"), ("terms", "rl", "source"), "rollouts"),
        (pushing(weight="0.5"), ("terms", "rl", "weight"), "number"),
        (pushing(weight="heavy"), ("terms", "rl", "weight", "use"), "no weight is called 'heavy'"),
        (pushing(weight={"start": 0.1}), ("terms", "rl", "weight", "end"), "required"),
        (pushing(denominator="older"), ("terms", "rl", "denominator", "use"), "no denominator is called 'older'"),
        (pushing(mask={"use": "clip", "low": 0.2}), ("terms", "rl", "mask", 0, "high"), "required"),
        (
            pushing(mask=["none", {"use": "clip", "low": -1.0, "high": 1.0}]),
            ("terms", "rl", "mask", 1, "low"),
            "greater",
        ),
        (pushing(mask={"use": "clip", "low": "0.2", "high": 1.0}), ("terms", "rl", "mask", 0, "low"), "valid number"),
        (pushing(mask={"low": 0.2}), ("terms", "rl", "mask", 0, "use"), "required"),
        (pushing(advantage=3), ("terms", "rl", "advantage"), "should be the name of an advantage"),
        (pushing(reduction="constant"), ("terms", "rl", "reduction", "length"), "required"),
        (pushing(count_with="nobody"), ("terms", "rl", "count_with"), "there is no term 'nobody'"),
        (pushing(source="kept"), ("terms", "rl", "source"), "keeps any rows"),
        (
            {**pushing(), "switch": {"use": "success_rate", "above": "rl", "otherwise": "rl"}},
            ("switch", 0, "otherwise"),
            "'above' names this term already",
        ),
        (
            {**pushing(), "switch": {"use": "linear", "success": "rl", "failure": "rl"}},
            ("switch", 0, "failure"),
            "'success' names this term already",
        ),
        (
            {**pushing(), "switch": {"use": "always", "weights": {"sft": 1.0}}},
            ("switch", 0, "weights", "sft"),
            "there is no term 'sft'; there are 'rl'",
        ),
    ],
)
def test_what_is_wrong_is_said_where_it_is_wrong(block: Any, location: tuple[Any, ...], message: str) -> None:
    found = complaints(block)
    at = [text for place, text in found.items() if tuple(p for p in place if not str(p).startswith("[")) == location]
    assert at, f"no complaint at {location}: {found}"
    assert re.search(message, at[0]), at[0]


def test_counting_with_a_term_that_counts_with_another_is_refused() -> None:
    terms = {"a": PLAIN, "b": {**PLAIN, "count_with": "a"}, "c": {**PLAIN, "count_with": "b"}}
    assert complaints({"terms": terms}) == {("terms", "c", "count_with"): "'b' counts with another term itself"}


def test_all_faults_are_found_at_once() -> None:
    found = complaints({"terms": {"a": {**PLAIN, "typo": 1, "source": "no"}, "b": {**PLAIN, "mask": "clip"}}})
    assert len(found) == 4  # typo, source, and clip's low and high


def test_an_unknown_part_comes_with_the_nearest_right_name() -> None:
    with pytest.raises(ValidationError) as refused:
        Estimator.model_validate(pushing(advantage="group_nrom"))
    assert refused.value.errors()[0]["ctx"]["hint"] == "did you mean 'group_norm'?"


@pytest.mark.usefixtures("fresh_registry")
def test_a_registered_part_is_named_like_any_other() -> None:
    register("given")(Given)
    block = estimator(pushing(advantage="given"))
    assert block.terms["rl"].advantage == Given()
    assert block.model_dump()["terms"]["rl"]["advantage"] == {"use": "given"}
