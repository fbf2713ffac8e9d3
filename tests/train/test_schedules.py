"""Schedules that end before their run does: told before it, and given a new way when it goes on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from support import tiny

import upge
from upge.errors import InputError
from upge.train import cautions
from upge.train.resume import choose
from upge.train.run import train

FALLING = {"start": 0.004, "end": 0.0, "steps": 2}
SHORT = {"train": {"steps": 2, "save_every": 1}, "eval": {"splits": []}}


@pytest.fixture
def finished(tmp_path: Path) -> Path:
    """The recipe of a finished run whose schedules have ended with it; its folder is `run`."""
    weighed = json.loads(json.dumps(tiny.HYBRID))
    weighed["terms"]["sft"]["weight"] = {"start": 1.0, "end": 0.5, "steps": 2}
    path = tiny.recipe(tmp_path, **SHORT, optimizer={"lr": FALLING}, estimator=weighed)
    train(upge.load(path))
    return path


def lines(folder: Path) -> list[dict[str, Any]]:
    found = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [line for line in found if line["phase"] == "train"]


def test_more_steps_at_a_rate_of_0_are_refused_and_the_command_that_is_named_goes_on(finished: Path) -> None:
    folder = finished.parent / "run"
    with pytest.raises(InputError, match=r"is 0 from step 2 on.* more steps would change nothing") as caught:
        train(upge.load(finished, ["train.steps=4"]), resume=folder)
    assert str(caught.value).endswith("train.steps=4 optimizer.lr.steps=4")
    with pytest.raises(InputError, match=r"finished, after 2 steps.* train.steps=4 optimizer.lr.steps=4"):
        train(upge.load(finished), resume=folder)
    train(upge.load(finished, ["train.steps=4", "optimizer.lr.steps=4"]), resume=folder)
    assert [line["lr"] for line in lines(folder)] == pytest.approx([0.004, 0.002, 0.002, 0.001])
    assert upge.load(folder / "recipe.yaml").optimizer.lr.steps == 4  # type: ignore[union-attr]


def test_a_finished_run_without_a_checkpoint_gets_no_advice_that_would_be_refused(tmp_path: Path) -> None:
    path = tiny.recipe(tmp_path, train={"steps": 1}, optimizer={"lr": {**FALLING, "steps": 1}})
    folder = train(upge.load(path))
    for more in ([], ["train.steps=2"], ["train.steps=2", "optimizer.lr.steps=2"]):
        with pytest.raises(InputError, match="has no checkpoint to resume from; a new run may start from"):
            choose(upge.load(path, more), folder)


def test_a_number_may_take_an_ended_schedules_place(finished: Path) -> None:
    folder = finished.parent / "run"
    train(upge.load(finished, ["train.steps=3", "optimizer.lr=0.001"]), resume=folder)
    assert [line["lr"] for line in lines(folder)] == pytest.approx([0.004, 0.002, 0.001])


def test_what_becomes_of_every_ended_schedule_is_told(finished: Path) -> None:
    more = upge.load(finished, ["train.steps=4", "optimizer.lr.steps=4"])
    told = choose(more, finished.parent / "run").messages
    assert "estimator.terms.sft.weight stays at 0.5, the end of its schedule, reached at step 2" in told
    assert "optimizer.lr follows its new schedule from here on; the steps before followed the old one" in told


def test_a_schedule_that_goes_on_stays_as_it_began(finished: Path) -> None:
    folder = train(upge.load(finished, [f"log.folder={finished.parent / 'long'}", "optimizer.lr.steps=9"]))
    other = upge.load(finished, [f"log.folder={folder}", "optimizer.lr.steps=12", "train.steps=4"])
    with pytest.raises(InputError, match=r"optimizer.lr.steps: 9 there, 12 here"):
        choose(other, folder)


FOLLOWER = """\
import upge
from upge import DefaultFrom


class Ramp(upge.Mask):
    \"""Nothing.

    Formula: 1. Source: none.\"""

    until: int = DefaultFrom("train.steps", gt=0)

    def __call__(self, b):
        return b.ratio.new_ones(())
"""


def test_what_follows_the_number_of_steps_is_free_when_a_run_goes_on(tmp_path: Path) -> None:
    (tmp_path / "ramp.py").write_text(FOLLOWER)
    followed = json.loads(json.dumps(tiny.HYBRID))
    followed["terms"]["rl"]["mask"] = "ramp.py:Ramp"
    path = tiny.recipe(tmp_path, **SHORT, estimator=followed)
    folder = train(upge.load(path, allow_code=True))
    more = upge.load(path, ["train.steps=4"], allow_code=True)
    assert more.estimator.terms["rl"].mask[0].until == 4  # type: ignore[attr-defined]
    told = choose(more, folder).messages
    assert not any("until stays" in each for each in told), "the recipe's own lets it follow"
    kept = upge.load(folder / "recipe.yaml", ["train.steps=4"], allow_code=True)
    told = choose(kept, folder).messages
    place = "estimator.terms.rl.mask.0.until"
    assert any(f"{place} stays 2, as train.steps was; to let it follow: {place}=4" in each for each in told)
    other = upge.load(path, ["train.steps=4", "train.prompts=4"], allow_code=True)
    with pytest.raises(InputError, match=r"train.prompts: 8 there, 4 here"):
        choose(other, folder)


def test_a_learning_rate_of_0_is_told_before_the_run(tmp_path: Path) -> None:
    path = tiny.recipe(tmp_path, optimizer={"lr": 0.0})
    assert cautions.before(upge.load(path)) == [
        "optimizer.lr is 0, so that no step trains anything there; set it above 0"
    ]
    assert cautions.before(upge.load(path), done=5) == []


def test_steps_that_will_change_nothing_are_told_before_the_run(tmp_path: Path) -> None:
    path = tiny.recipe(tmp_path, optimizer={"lr": FALLING})
    assert cautions.before(upge.load(path, ["train.steps=2"])) == []
    assert cautions.before(upge.load(path, ["optimizer.lr.end=0.001"])) == []
    (said,) = cautions.before(upge.load(path))
    assert said.startswith("optimizer.lr is 0 from step 2 on, where its schedule ends: 3 of the next 5 steps")
    assert said.endswith("to extend the schedule: optimizer.lr.steps=5")
    (said,) = cautions.before(upge.load(path), done=4)
    assert "1 of the next 1 steps" in said
