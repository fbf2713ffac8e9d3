"""An evaluation measures the policy: an engine that samples something else is not asked, unless the recipe says so."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from support import tiny
from support.evaluations import done

import upge
from upge.recipe import RecipeError
from upge.train.run import train
from upge.types import Completion, Request, Sampling
from upge_parts.engines.transformers_engine import Transformers
from upge_parts.engines.vllm_engine import Vllm

CALLS: list[str] = []


@pytest.fixture(autouse=True)
def stale(fresh_registry: None) -> None:
    """An engine that always says the same, and one that says so of itself."""
    del fresh_registry
    CALLS.clear()

    class Session:
        def __init__(self, name: str) -> None:
            self.name = name

        def sample(self, requests: Sequence[Request], sampling: Sampling) -> list[Completion]:
            CALLS.append(f"{self.name} {requests[0].stream}")
            return [Completion((2, 1), (-1.0, -1.0), truncated=False) for _ in requests]

        def sync(self, policy: object) -> None:
            CALLS.append(f"{self.name} sync")

    class Stale(upge.Engine):
        """Says the same whatever the policy."""

        label: str = "stale"

        @contextmanager
        def open(self, context: upge.Context) -> Iterator[Any]:
            yield Session(self.label)

    upge.register("stale")(Stale)

    class Fresh(Stale):
        """Claims to sample the policy."""

        samples_policy = True
        label: str = "fresh"

    upge.register("fresh")(Fresh)


def measured(folder: Path) -> list[dict[str, Any]]:
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [line for line in lines if line["phase"] == "eval"]


def recipe(folder: Path, sampled_by: Any, **evaluated: Any) -> upge.Recipe:
    blocks = {"rollout": {"engine": sampled_by}, "train": {"steps": 2}, "eval": evaluated}
    return upge.load(tiny.recipe(folder, **blocks))


def test_what_does_not_sample_the_policy_does_not_measure_it(tmp_path: Path) -> None:
    (tmp_path / "own").mkdir()
    (tmp_path / "stale").mkdir()
    policy = train(recipe(tmp_path / "own", "transformers"))
    assert measured(train(recipe(tmp_path / "stale", "stale")))[0] == measured(policy)[0]
    assert not any("eval/" in call for call in CALLS)


def test_what_says_that_it_samples_the_policy_measures_it(tmp_path: Path) -> None:
    train(recipe(tmp_path, "fresh"))
    assert CALLS == ["fresh eval/test", "fresh train", "fresh sync", "fresh train", "fresh sync", "fresh eval/test"]


def test_an_engine_of_its_own_gets_the_weights_before_every_measurement(tmp_path: Path) -> None:
    train(recipe(tmp_path, "fresh", engine={"use": "stale", "label": "own"}, every=1))
    once, step = ["own sync", "own eval/test"], ["fresh train", "fresh sync"]
    assert [*once, *step, *once, *step, *once] == CALLS


def test_an_evaluation_on_its_own_asks_the_same_engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder = train(recipe(tmp_path, "stale", splits=[]))
    CALLS.clear()
    done(folder, "eval.splits=[test]", "--output", "default")
    assert CALLS == []
    done(folder, "eval.splits=[test]", "eval.engine=stale", "--output", "named")
    assert CALLS == ["stale eval/test"]


def test_which_engine_measures_is_settled_by_declarations_and_precision(tmp_path: Path) -> None:
    assert recipe(tmp_path, "transformers").engine_of_its_own() is None
    assert recipe(tmp_path, "stale").engine_of_its_own() == Transformers()
    assert recipe(tmp_path, "stale", splits=[]).engine_of_its_own() is None
    assert "eval.engine" in recipe(tmp_path, "stale").parts()
    assert recipe(tmp_path, "stale", engine="stale").engine_of_its_own() is None
    coarse = Vllm(dtype="bfloat16")
    assert [coarse.measures(dtype) for dtype in ("float32", "bfloat16", "float16")] == [False, True, False]
    assert [Vllm().measures(dtype) for dtype in ("float32", "float64")] == [True, True]
    assert not Vllm(dtype="float16").measures("float32")
    assert not Vllm(dtype="float32").measures("float64")


def test_a_wrong_name_is_told_as_that_of_any_engine(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="no engine is called 'transformer'"):
        recipe(tmp_path, "transformers", engine="transformer")
    dumped = recipe(tmp_path, "transformers", engine={"use": "transformers", "batch_size": 3})
    assert dumped.model_dump()["eval"]["engine"] == {"use": "transformers", "batch_size": 3}
