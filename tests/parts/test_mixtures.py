"""Mixtures of data sources: what comes from which, in which order, and what mixtures mean nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from support import tiny
from support.data_sources import data, lines, training

import upge
from upge import Context


def mixed(tmp_path: Path, **weights: float) -> upge.Data:
    both = {}
    for name in ("one", "two"):
        rows = [{"prompt": f"{name} {i}", "answer": "a", "id": i} for i in range(7)]
        path = lines(tmp_path, *rows, name=f"{name}.jsonl")
        both[name] = {"use": "jsonl", "path": path, "evaluation": {"test": path}}
    return data("mixture", sources=both, weights=weights)


def test_a_mixture_takes_by_weight_and_each_source_in_its_order(tmp_path: Path) -> None:
    part = mixed(tmp_path, one=3, two=1)
    problems = training(part, 4000, seed=2)
    share = sum(problem.id.startswith("one/") for problem in problems) / 4000
    assert share == pytest.approx(0.75, abs=0.03), "more than four standard deviations"
    for name in ("one", "two"):
        own = [problem.id for problem in problems if problem.id.startswith(name)]
        alone = training(part.sources[name], len(own), seed=2)
        assert own == [f"{name}/{problem.id}" for problem in alone]


def test_a_mixture_depends_on_place_and_seed_alone(tmp_path: Path) -> None:
    part = mixed(tmp_path, two=2.5)
    whole = training(part, 60)
    with part.open(Context()) as session:
        backwards = {step: session.take(step, 6) for step in reversed(range(10))}
        assert [problem for step in range(10) for problem in backwards[step]] == whole
        assert [session.take(place, 1)[0] for place in range(60)] == whole
        session.restore(json.loads(json.dumps(session.state())))
        assert session.take(9, 6) == whole[54:]
    assert training(part, 60, seed=1) != whole


def test_a_mixture_has_the_splits_of_its_sources(tmp_path: Path) -> None:
    with mixed(tmp_path).open(Context()) as session:
        assert session.splits() == ("one/test", "two/test")
        assert [problem.id for problem in session.split("two/test")] == [f"two/{i}" for i in range(7)]


def test_a_source_without_weight_is_never_taken(tmp_path: Path) -> None:
    assert {problem.id[:4] for problem in training(mixed(tmp_path, one=0), 50)} == {"two/"}


@pytest.mark.parametrize(
    ("parameters", "said"),
    [
        ({"weights": {"thre": 1.0}}, "no source is called 'thre'"),
        ({"weights": {"one": -1.0}}, "0 or more"),
        ({"weights": {"one": 0.0}}, "all weights are 0"),
        ({"sources": {}}, "at least 1"),
        ({"sources": {"one": {"use": "lab", "system": "Be brief."}}}, "belongs to the mixture"),
        ({"sources": {"one": {"use": "labb"}}}, "no data is called 'labb'"),
    ],
)
def test_mixtures_that_mean_nothing_are_refused(parameters: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        data("mixture", **{"sources": {"one": {"use": "lab"}}, **parameters})


def test_a_mixture_survives_yaml_and_mistakes_within_it_are_placed(tmp_path: Path) -> None:
    part = mixed(tmp_path, one=2)
    assert data("mixture", **{key: value for key, value in part.dump().items() if key != "use"}) == part
    text = json.dumps({**part.dump(), "sources": {"one": {"use": "jsonl", "pth": "x"}}})
    with pytest.raises(upge.RecipeError) as refused:
        upge.load(tiny.recipe(tmp_path), [f"data={text}"])
    assert "did you mean 'path'?" in str(refused.value)
