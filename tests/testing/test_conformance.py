"""Every installed part and recipe keeps the laws, with parameters drawn from whatever its fields allow."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import pytest
from hypothesis import Phase, find, given, settings
from hypothesis import strategies as st
from hypothesis.errors import NoSuchExample
from pydantic import Field
from support.part_cases import FACTORS
from support.tiers import heavy, spread

import upge
from upge import Advantage, Mask, Number, View, registry
from upge.part import SLOTS
from upge.recipe.catalog import shelved
from upge.schedule import Within
from upge.testing import check_estimator, check_part, parts

EXAMPLES = max(5, settings().max_examples // 10)


GIVEN: dict[tuple[str, str], dict[str, Any]] = {("reward", "math"): {"workers": 1, "seconds": 5.0}}
"""Parts whose every session starts processes."""


def tier(entry: registry.Entry) -> Any:
    """Of factors, whose laws test_laws.py has too, one of each slot is in the default tier; and what starts nothing."""
    return pytest.param(entry, marks=[heavy] if (entry.slot, entry.name) in GIVEN else [])


ENTRIES = spread(map(tier, registry.entries()), lambda entry: entry.slot if entry.slot in FACTORS else entry)


@pytest.mark.draws
@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: f"{entry.slot}-{entry.name}")
def test_every_installed_part_keeps_the_laws(entry: registry.Entry) -> None:
    parameters = GIVEN.get((entry.slot, entry.name), {})
    check_part(registry.load(entry, SLOTS[entry.slot]), examples=EXAMPLES, **parameters)


def test_each_law_has_20_examples_in_the_default_tier() -> None:
    """Together: over one part of each slot, and over the recipes."""
    light = [case.values[0] for case in ENTRIES if not any(mark.name == "heavy" for mark in case.marks)]
    assert EXAMPLES * len({entry.slot for entry in light if entry.slot in FACTORS}) >= 20
    assert EXAMPLES * len(shelved()) >= 20


@pytest.mark.draws
@pytest.mark.parametrize("recipe", shelved(), ids=lambda each: f"{each.package}-{each.name}")
def test_every_installed_recipe_keeps_the_laws(recipe: Any) -> None:
    check_estimator(upge.load(recipe.path).estimator, examples=EXAMPLES)


class Rich(Mask):
    """Parameters of every kind."""

    plain: float
    share: Annotated[float, Field(gt=0, le=1)]
    above: float = Field(ge=1)
    count: int = Field(ge=2, lt=5)
    word: Literal["a", "b"] = "a"
    flag: bool = False
    moving: Annotated[Number, Within(0, 2)] = 1.0
    several: tuple[float, ...] = ()
    perhaps: float | None = None
    among: float = Field(default=3.0, examples=[3.0, 7.0])

    def __call__(self, b: View) -> Any:
        return b.ratio


@given(parts(Rich))
def test_drawn_parameters_are_within_their_bounds(part: Any) -> None:
    assert 0 < part.share <= 1
    assert part.above >= 1
    assert part.count in (2, 3, 4)
    assert part.among in (3.0, 7.0)
    assert Rich.model_validate(part.model_dump()) == part


@pytest.mark.parametrize(
    "wanted",
    [
        lambda p: p.plain == 0,
        lambda p: p.plain < 0,
        lambda p: p.share == 1,
        lambda p: p.word == "b" and p.flag,
        lambda p: not isinstance(p.moving, float),
        lambda p: len(p.several) > 1,
        lambda p: p.perhaps is not None,
    ],
)
def test_the_ends_and_every_alternative_are_drawn(wanted: Any) -> None:
    drawn = settings(max_examples=2000, database=None, phases=[Phase.generate])  # any example will do, not the smallest
    assert wanted(find(parts(Rich), wanted, settings=drawn))


def test_given_parameters_stay() -> None:
    with pytest.raises(NoSuchExample):
        find(parts(Rich, {"plain": 0.5}), lambda p: p.plain != 0.5, settings=settings(max_examples=100, database=None))


def test_a_part_that_no_parameters_fit_says_to_give_them() -> None:
    class Choosy(Advantage):
        """Wants one number out of many.

            Â = 1

        Shapes: (T,). Source: an example.
        """

        secret: float

        def model_post_init(self, context: Any) -> None:
            if self.secret != 0.123456:
                raise ValueError("another number")

        def __call__(self, b: View) -> Any:
            return b.to_tokens(b.rollout.to(b.dtype))

    with pytest.raises(AssertionError, match="no valid parameters could be drawn; give them: name=value"):
        check_part(Choosy, examples=5)
    check_part(Choosy, examples=5, secret=0.123456)


@given(st.data())
def test_schedules_are_drawn_as_well_as_numbers(data: Any) -> None:
    part = data.draw(parts(registry.find(SLOTS["switch"], "schedule")))
    assert part.terms()
