"""Law 8: part → YAML → part is the identity, parts are values, and every default is valid."""

from __future__ import annotations

import copy
import json
from typing import Annotated, Any

import pytest
from pydantic import TypeAdapter, ValidationError
from support.methods import METHODS, Given, Uncertain
from support.part_cases import FACTORS, describe, estimator, host, made, values

from upge import Estimator, registry
from upge.part import SLOTS
from upge.testing import fixtures

every_factor = pytest.mark.parametrize(("slot", "value"), values(*FACTORS), ids=describe)


@every_factor
def test_a_part_dumps_to_the_yaml_that_makes_it(slot: str, value: dict[str, Any]) -> None:
    part = made(slot, value)
    assert part.dump()["use"] == value["use"]
    for dumped in (part.dump(), json.loads(json.dumps(part.dump()))):
        again = made(slot, dumped)
        assert again == part
        assert hash(again) == hash(part)
        assert type(again) is type(part)


@every_factor
def test_parts_compare_by_value_and_are_frozen(slot: str, value: dict[str, Any]) -> None:
    part, same = made(slot, value), made(slot, copy.deepcopy(value))
    assert part == same
    assert len({part, same}) == 1
    with pytest.raises(ValidationError, match="frozen"):
        part.anything = 1  # type: ignore[attr-defined]


def test_equal_parts_hash_alike() -> None:
    one, other = ({"use": "always", "weights": dict(w)} for w in ([("a", 1.0), ("b", -0.0)], [("b", 0.0), ("a", 1.0)]))
    assert made("switch", one) == made("switch", other)
    assert hash(made("switch", one)) == hash(made("switch", other))


def test_parts_of_different_values_or_kinds_differ() -> None:
    parts = [made(slot, value) for slot, value in values(*FACTORS)]
    assert len(set(parts)) == len(parts)


@every_factor
def test_an_unknown_parameter_is_refused(slot: str, value: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="no_such_parameter"):
        made(slot, {**value, "no_such_parameter": 1})


@pytest.mark.parametrize("block", [method.estimator for method in METHODS.values()], ids=list(METHODS))
@pytest.mark.usefixtures("fresh_registry")
def test_an_estimator_dumps_to_the_yaml_that_makes_it(block: dict[str, Any]) -> None:
    registry.register("given")(Given)
    registry.register("uncertain")(Uncertain)
    original = estimator(block)
    for dumped in (original.model_dump(), json.loads(original.model_dump_json())):
        again = estimator(dumped)
        assert again == original
        assert hash(again) == hash(original)
        assert again.model_dump() == original.model_dump()


@every_factor
@pytest.mark.usefixtures("fresh_registry")
def test_every_part_survives_its_estimators_round_trip(slot: str, value: dict[str, Any]) -> None:
    registry.register("given")(fixtures.Given)
    hosted = host(slot, value)
    assert estimator(hosted.model_dump()) == hosted


def test_every_default_is_valid() -> None:
    """What a part's parameters default to passes their own constraints."""
    for offer in registry.entries():
        if offer.slot not in FACTORS:
            continue
        kind = registry.load(offer, SLOTS[offer.slot])
        assert kind.slot == offer.slot
        assert issubclass(kind, SLOTS[offer.slot])
        for field in kind.model_fields.values():
            if not field.is_required():
                constrained = TypeAdapter(Annotated[(field.annotation, *field.metadata, None)])
                constrained.validate_python(field.get_default(call_default_factory=True), strict=True)


def test_an_estimator_is_a_value() -> None:
    block = METHODS["hpt"].estimator
    assert len({estimator(block), estimator(copy.deepcopy(block)), Estimator.model_validate(block)}) == 1
