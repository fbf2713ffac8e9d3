"""Metrics to experiment trackers: what accelerate's trackers are told, and that nothing else changes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest
from accelerate import tracking
from accelerate.tracking import GeneralTracker
from support import tiny

import upge
from upge.errors import InputError
from upge.train.run import train


class Listener(GeneralTracker):
    """A tracker that remembers what it was told."""

    name = "listener"
    requires_logging_directory = True
    heard: ClassVar[list[tuple[Any, ...]]] = []

    def __init__(self, project: str, folder: str, **_: Any) -> None:
        super().__init__()
        self.heard.append(("begin", project, folder))

    @property
    def tracker(self) -> list[tuple[Any, ...]]:
        return self.heard

    def store_init_configuration(self, values: dict[str, Any]) -> None:
        self.heard.append(("settings", values))

    def log(self, values: dict[str, Any], step: int | None = None, **_: Any) -> None:
        self.heard.append(("log", step, values))

    def finish(self) -> None:
        self.heard.append(("end",))


@pytest.fixture
def heard(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[Any, ...]]]:
    """What the tracker `listener` is told; it is forgotten after the test."""
    monkeypatch.setattr(tracking, "LOGGER_TYPE_TO_CLASS", dict(tracking.LOGGER_TYPE_TO_CLASS))
    monkeypatch.setattr("accelerate.accelerator.LOGGER_TYPE_TO_CLASS", tracking.LOGGER_TYPE_TO_CLASS)
    tracking.register_tracker_class(Listener)
    Listener.heard.clear()
    yield Listener.heard
    Listener.heard.clear()


def run(tmp_path: Path, name: str, *overrides: str) -> Path:
    return train(upge.load(tiny.recipe(tmp_path), [f"log.folder={tmp_path / name}", *overrides]))


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_a_tracker_is_told_what_metrics_jsonl_holds(tmp_path: Path, heard: list[tuple[Any, ...]]) -> None:
    folder = run(tmp_path, "told", "log.trackers=[listener]")
    told = [(step, values) for kind, *rest in heard if kind == "log" for step, values in [rest]]
    kept = [(line.pop("step"), {name: x for name, x in line.items() if name != "phase"}) for line in lines(folder)]
    assert told == kept
    assert sum("grad_norm" in values for _, values in told) == 5
    assert [step for step, values in told if "test/avg@2" in values] == [0, 5]
    assert [step for step, _ in told] == sorted(step for step, _ in told), "as wandb demands"


def test_a_tracker_is_opened_with_the_settings_and_closed(tmp_path: Path, heard: list[tuple[Any, ...]]) -> None:
    folder = run(tmp_path, "told", "log.trackers=[listener]")
    assert heard[0] == ("begin", "tiny", str(folder / "trackers"))
    assert heard[1][0] == "settings"
    assert heard[1][1]["estimator.terms.rl.mask.0.use"] == "clip"
    assert heard[1][1]["eval.splits"].startswith("[")
    assert heard[1][1]["optimizer.lr"] == 0.003
    assert all(isinstance(value, bool | int | float | str) for value in heard[1][1].values())
    assert heard[-1] == ("end",)
    assert [kind for kind, *_ in heard].count("end") == 1


def test_the_folder_is_the_one_that_the_run_claimed(tmp_path: Path, heard: list[tuple[Any, ...]]) -> None:
    for _ in range(2):
        run(tmp_path, "told", "log.trackers=[listener]", "train.steps=0")
    begun = [event for event in heard if event[0] == "begin"]
    assert [folder for _, _, folder in begun] == [str(tmp_path / name / "trackers") for name in ("told", "told-2")]


def test_a_tracker_is_closed_when_the_run_fails(
    tmp_path: Path, heard: list[tuple[Any, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("in the middle")

    monkeypatch.setattr("upge.train.trainer.learn", fail)
    with pytest.raises(RuntimeError, match="in the middle"):
        run(tmp_path, "told", "log.trackers=[listener]")
    assert heard[-1] == ("end",)


def test_a_tracker_changes_nothing_in_the_run(tmp_path: Path, heard: list[tuple[Any, ...]]) -> None:
    plain, told = run(tmp_path, "plain"), run(tmp_path, "told", "log.trackers=[listener]")
    assert heard
    for name in ("metrics.jsonl", "completions.jsonl", "model/model.safetensors"):
        assert (plain / name).read_bytes() == (told / name).read_bytes()


def test_without_trackers_there_are_none(tmp_path: Path, heard: list[tuple[Any, ...]]) -> None:
    folder = run(tmp_path, "plain", "train.steps=1")
    assert heard == []
    assert not (folder / "trackers").exists()


def test_a_resumed_run_goes_on_telling(tmp_path: Path, heard: list[tuple[Any, ...]]) -> None:
    settings = ("log.trackers=[listener]", "train.save_every=2", "eval.splits=[]")
    folder = run(tmp_path, "told", *settings, "train.steps=2")
    heard.clear()
    train(upge.load(tmp_path / "recipe.yaml", [f"log.folder={folder}", *settings]), resume=folder)
    assert [event[1] for event in heard if event[0] == "log"] == [2, 3, 4]


def test_an_unknown_tracker_is_refused_with_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(upge.RecipeError, match=r"no tracker 'tensorbord'; did you mean 'tensorboard'\?"):
        upge.load(tiny.recipe(tmp_path), ["log.trackers=[tensorbord]"])
    with pytest.raises(upge.RecipeError, match=r"there are .*tensorboard.*wandb"):
        upge.load(tiny.recipe(tmp_path), ["log.trackers=[all]"])


def test_a_missing_package_is_named_with_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("upge.train.trackers.get_available_trackers", list)
    for name, package in (("wandb", "wandb"), ("tensorboard", r"upge\[tensorboard\]"), ("comet_ml", "comet-ml")):
        with pytest.raises(InputError, match=f"pip install '{package}'"):
            run(tmp_path, "told", f"log.trackers=[{name}]")
    assert not (tmp_path / "told").exists(), "found out before anything is opened"


def test_a_tracker_that_can_not_start_is_an_input_error(
    tmp_path: Path, heard: list[tuple[Any, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("not logged in\nreally")

    monkeypatch.setattr(Listener, "start", fail)
    with pytest.raises(InputError, match="listener can't be started: RuntimeError: not logged in really"):
        run(tmp_path, "told", "log.trackers=[listener]")


@pytest.mark.needs("tensorboard")
def test_tensorboard_shows_the_metrics(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder = run(tmp_path, "shown", "log.trackers=[tensorboard]")
    events = EventAccumulator(str(folder / "trackers" / "tiny"))
    events.Reload()
    for phase in ("train", "eval"):
        for line in (line for line in lines(folder) if line["phase"] == phase):
            for name in line.keys() - {"phase", "step"}:
                shown = {event.step: event.value for event in events.Scalars(name)}
                assert shown[line["step"]] == pytest.approx(line[name], rel=1e-6)
