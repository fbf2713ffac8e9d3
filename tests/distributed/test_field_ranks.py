"""Fields say the same whatever the number of processes, and of models divided over them."""

from __future__ import annotations

import json

import pytest
from support.process_outcomes import Done, forked, trained

pytestmark = pytest.mark.heavy


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Done:
    """What one and two processes have left."""
    return forked("ranks_fields.py", tmp_path_factory)


@pytest.mark.parametrize("name", ["whole", "divided"])
def test_two_processes_learn_from_fields_what_one_does(done: Done, name: str) -> None:
    one, two = trained(done(1) / "whole"), trained(done(2) / name)
    assert len(one) == 4
    for ours, theirs in zip(one, two, strict=True):
        # A recorded run knows no log-probs of the engine, of which the sampled entropy is made.
        common = ours.keys() & theirs.keys() - {"phase"}
        assert ours.keys() - common <= {"phase", "sampled_entropy", "health/entropy_collapse"}
        assert {key: theirs[key] for key in common} == pytest.approx({key: ours[key] for key in common}, 1e-4, 1e-5)


def test_a_divided_run_goes_on_where_it_was(done: Done) -> None:
    through, stopped = done(2) / "divided", done(2) / "stopped"
    for name in (
        "metrics.jsonl",
        "checkpoints/step-000004/fields.json",
        "checkpoints/step-000004/averages.safetensors",
    ):
        assert (through / name).read_bytes() == (stopped / name).read_bytes(), name


def test_histories_are_the_same_on_all_ranks(done: Done) -> None:
    one, two = (
        json.loads((folder / "checkpoints" / "step-000004" / "fields.json").read_text())["history"]["visits"]
        for folder in (done(2) / "divided", done(2) / "stopped")
    )
    assert one == two
    assert len(one) == 24
