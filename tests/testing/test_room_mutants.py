"""Each room of the machine that has a formula has a wrong version of it, which a test of that room notices."""

from __future__ import annotations

import pytest
from support.mutants import MUTANTS, Mutant
from support.room_mutants import ROOM_MUTANTS, TESTS, WITHOUT, Killer

ROOMS = {folder.name for folder in (TESTS.parent / "upge").iterdir() if (folder / "__init__.py").is_file()}


@pytest.mark.parametrize(("mutant", "killer"), [pytest.param(*each, id=each[0].name) for each in ROOM_MUTANTS])
def test_a_rooms_mutant_is_killed(mutant: Mutant, killer: Killer) -> None:
    killer()
    with mutant.alive(), pytest.raises((Exception, pytest.fail.Exception)):
        killer()


def test_every_room_with_a_formula_has_a_mutant() -> None:
    of = {mutant.module.split(".")[1] for mutant in [*MUTANTS, *(mutant for mutant, _ in ROOM_MUTANTS)]}
    assert ROOMS - set(WITHOUT) <= of
    assert set(WITHOUT) <= ROOMS - of, "what has none is named, and has none"


def test_their_tests_are_in_the_default_tier_and_no_two_mutants_are_alike() -> None:
    names = [mutant.name for mutant in [*MUTANTS, *(mutant for mutant, _ in ROOM_MUTANTS)]]
    assert len(set(names)) == len(names)
    for _, killer in ROOM_MUTANTS:
        assert not any(mark.name == "heavy" for mark in getattr(killer.load(), "pytestmark", []))
