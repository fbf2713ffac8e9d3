"""Several seeds: Student's intervals, differences seed by seed, areas below curves, and which runs belong together."""

from __future__ import annotations

import json
import re
from itertools import pairwise
from math import inf, pi, tan
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.svg import keys, panels
from typer.testing import CliRunner, Result

from upge.cli.main import app
from upge.errors import InputError
from upge.evaluate.scores import bootstrap
from upge.report.charts import LEFT, RIGHT
from upge.runs.curves import Run, opened
from upge.runs.folder import to_yaml
from upge.sweep.groups import Group, grouped
from upge.sweep.scores import area, paired, quantile, spent, student, within

VALUES = st.floats(-100, 100)

# Intervals.


@pytest.mark.parametrize(
    ("freedom", "value"),
    [(1, 12.7062), (2, 4.3027), (3, 3.1824), (4, 2.7764), (5, 2.5706), (9, 2.2622), (10, 2.2281), (30, 2.0423)],
)
def test_the_quantiles_are_those_of_the_tables(freedom: int, value: float) -> None:
    assert quantile(freedom) == pytest.approx(value, abs=5e-5)


def test_other_levels_and_many_degrees() -> None:
    assert quantile(4, 0.99) == pytest.approx(4.6041, abs=5e-5)
    assert quantile(1, 0.5) == pytest.approx(tan(pi / 4))
    assert quantile(10_000) == pytest.approx(1.96020, abs=5e-5)
    with pytest.raises(ValueError, match="degree of freedom"):
        within(0.1, 0)


def test_an_interval_by_hand() -> None:
    """Mean 3, s = √2.5, t_4·√(2.5/5) = 2.77645·0.70711 = 1.96324."""
    found = student([1.0, 2.0, 3.0, 4.0, 5.0])
    assert (found.value, found.low, found.high) == pytest.approx((3.0, 1.03676, 4.96324), abs=1e-5)
    one = student([0.5])
    assert (one.value, one.low, one.high) == (0.5, -inf, inf)
    with pytest.raises(ValueError, match="no seeds"):
        student([])


def covered(interval: Any, draws: int) -> float:
    """How often the interval of five normal numbers around 1 holds 1."""
    numbers = np.random.default_rng(7).normal(1.0, 2.0, size=(draws, 5)).tolist()
    return fmean(found.low <= 1.0 <= found.high for found in map(interval, numbers))


def test_five_seeds_are_covered_as_often_as_is_said_and_by_the_bootstrap_less() -> None:
    assert covered(student, 4000) == pytest.approx(0.95, abs=0.012)  # 3.5 standard errors
    assert covered(lambda values: bootstrap(values, 0), 800) == pytest.approx(0.83, abs=0.04)


@given(st.dictionaries(st.integers(0, 9), VALUES), st.dictionaries(st.integers(0, 9), VALUES), st.randoms())
def test_pairs_are_made_by_seed_whatever_the_order(one: dict[int, float], other: dict[int, float], random: Any) -> None:
    shuffled = list(other.items())
    random.shuffle(shuffled)
    found = paired(one, other)
    assert found == paired(dict(reversed(one.items())), dict(shuffled))
    shared = sorted(one.keys() & other.keys())
    assert found == (student([other[seed] - one[seed] for seed in shared]) if shared else None)


def test_a_pair_is_surer_than_two_intervals_where_seeds_share_their_luck() -> None:
    one, other = {0: 0.1, 1: 0.5, 2: 0.9}, {2: 1.0, 0: 0.2, 1: 0.6}
    gap = paired(one, other)
    assert gap is not None
    assert (gap.value, gap.low, gap.high) == pytest.approx((0.1, 0.1, 0.1))
    assert student(list(one.values())).low < 0 < student(list(one.values())).high


# Areas.


def test_areas_by_hand() -> None:
    assert area([(0, 0.0), (10, 1.0)], 10) == 0.5
    assert area([(0, 0.0), (10, 1.0)], 5) == 0.25
    assert area([(0, 0.0), (2, 1.0), (10, 0.0)], 6) == pytest.approx((1.0 + 4 * 0.75) / 6)
    for curve, until in (([], 1.0), ([(0, 1.0), (5, 1.0)], 6), ([(1, 1.0), (5, 1.0)], 5), ([(0, 1.0)], 0.0)):
        assert area(curve, until) is None


@given(st.lists(st.tuples(st.integers(1, 50), st.floats(0, 1)), min_size=1), st.floats(0, 1), st.floats(0.01, 1))
def test_an_area_is_a_mean_and_points_on_the_lines_change_nothing(
    moves: list[tuple[int, float]], first: float, share: float
) -> None:
    curve = [(0.0, first)]
    for width, value in moves:
        curve.append((curve[-1][0] + width, value))
    until = share * curve[-1][0]
    found = area(curve, until)
    assert found is not None
    values = [value for _, value in curve]
    assert min(values) - 1e-9 <= found <= max(values) + 1e-9
    middles = [((a + b) / 2, (u + v) / 2) for (a, u), (b, v) in pairwise(curve)]
    assert area(sorted([*curve, *middles]), until) == pytest.approx(found)


def test_samples_are_rollouts_and_demonstrations_and_what_refilling_threw_away() -> None:
    lines = ({"phase": "train", "step": 0, "rows": 10.0}, {"phase": "train", "step": 1, "rows": 8.0})
    run = Run("x", Path(), ({"phase": "eval", "step": 0}, lines[0], lines[1] | {"refill/discarded": 2.0}))
    group = Group("x", {0: run}, {"rollout.n": "4"})
    assert spent(run, group, "samples") == [0.0, 10.0, 10.0 + 8 + 2 * 4]
    assert spent(run, group, "steps") == [0.0, 1.0, 2.0]


# Groups.


def a_run(folder: Path, name: str, seed: int, scores: list[float], rows: float = 10.0, **settings: Any) -> Path:
    """A run of two steps between measurements, with a recipe.yaml of what a comparison reads."""
    steps = 2 * (len(scores) - 1)
    folder.mkdir()
    train = {"seed": seed, "steps": settings.pop("steps", steps)}
    recipe = {"name": name, "rollout": {"n": 4}, "train": train, "log": {"folder": str(folder)}, **settings}
    (folder / "recipe.yaml").write_text(to_yaml(recipe))
    (folder / "manifest.json").write_text(json.dumps({"recipe": {"name": name}, "seed": seed}))
    lines: list[dict[str, Any]] = [
        {"phase": "train", "step": i, "reward": i / 10, "rows": rows, "share/sft": 0.5} for i in range(steps)
    ]
    lines += [{"phase": "eval", "step": 2 * i, "test/avg@4": score} for i, score in enumerate(scores)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


@pytest.fixture
def runs(tmp_path: Path) -> list[str]:
    """Two recipes with seeds 0, 1, 2 and 0, 1; the second takes half of the first one's samples."""
    one = [a_run(tmp_path / f"a{seed}", "a", seed, [0.0, score]) for seed, score in enumerate([0.4, 0.5, 0.6])]
    other = [a_run(tmp_path / f"b{seed}", "b", seed, [0.0, score], rows=5.0) for seed, score in enumerate([0.6, 0.8])]
    return [str(folder) for folder in (*one, *other)]


def call(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["compare", *arguments])


def test_seeds_are_put_together_and_compared_in_pairs(runs: list[str], tmp_path: Path) -> None:
    result = call(*runs, "--metric", "share/sft", "--output", str(tmp_path / "all.json"))
    assert result.exit_code == 0, result.output
    assert re.search(r"test/avg@4 +a +3 +0\.500 +0\.252 … 0\.748", result.stdout)
    # 0.6 − 0.4 and 0.8 − 0.5: 0.25 ± 12.7062·0.05
    assert re.search(r"b +2 +0\.700 .* 2 +\+0\.250 +-0\.385 … \+0\.885", result.stdout)
    assert "Means over the first 10 samples" in result.stdout
    assert re.search(r"share/sft +a +3 +0\.500", result.stdout)
    said = json.loads((tmp_path / "all.json").read_text())
    assert said["until"] == {"samples": 10.0}
    one, other = (each["values"] for each in said["area"])
    assert one == pytest.approx({"0": 0.1, "1": 0.125, "2": 0.15})
    assert other == pytest.approx({"0": 0.3, "1": 0.4})
    assert said["last"][1]["difference"]["value"] == pytest.approx(0.25)


def test_the_order_of_folders_chooses_the_first_recipe_and_nothing_else(runs: list[str], tmp_path: Path) -> None:
    call(*runs, "--output", str(tmp_path / "one.json"))
    call(runs[2], *reversed(runs[3:]), *runs[:2], "--output", str(tmp_path / "other.json"))
    one, other = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("one", "other"))
    assert one["last"] == other["last"]
    assert one["area"] == other["area"]


def test_tables_for_a_document_have_means_and_differences(runs: list[str], tmp_path: Path) -> None:
    place = tmp_path / "all.md"
    assert call(*runs, "--metric", "test/avg@4", "--output", str(place)).exit_code == 0
    assert (
        place.read_text()
        == """\
**The last values.** Means over 2 or 3 seeds, ± half of Student's 95 % interval:

|  | test/avg@4 |
| --- | --- |
| a | .500 ± .248 |
| b | .700 ± 1.271 |

**Differences to a**, seed by seed, in the same way:

|  | test/avg@4 |
| --- | --- |
| b | +.250 ± .635 |

**Means over the first 10 samples.** Means over 2 or 3 seeds, ± half of Student's 95 % interval:

|  | test/avg@4 |
| --- | --- |
| a | .125 ± .062 |
| b | .350 ± .635 |

**Differences to a**, seed by seed, in the same way:

|  | test/avg@4 |
| --- | --- |
| b | +.237 ± .476 |
"""
    )
    assert call(*runs, "--metric", "test/avg@4", "--metric", "reward", "--output", str(place)).exit_code == 0
    assert "|  | test/avg@4 | reward |" in place.read_text()
    assert "| a | .500 ± .248 | .100 ± .000 |" in place.read_text()


def test_differences_are_to_the_first_recipe_also_where_it_lacks_a_metric(runs: list[str], tmp_path: Path) -> None:
    for folder in runs[3:]:
        lines = (Path(folder) / "metrics.jsonl").read_text()
        (Path(folder) / "metrics.jsonl").write_text(lines.replace('"reward"', '"extra": 1.0, "reward"'))
    place = tmp_path / "all.md"
    assert call(*runs, "--metric", "extra", "--metric", "test/avg@4", "--output", str(place)).exit_code == 0
    assert place.read_text().count("**Differences to a**") == 2
    assert "| b |  | +.250 ± .635 |" in place.read_text()


def test_the_picture_has_the_means_of_each_recipe(runs: list[str], tmp_path: Path) -> None:
    picture = tmp_path / "all.svg"
    assert call(*runs, "--output", str(picture)).exit_code == 0
    assert keys(picture) == ["a", "b"]
    drawn = panels(picture)
    assert list(drawn) == ["test/avg@4", "reward"]
    one, other = drawn["test/avg@4"]
    assert [x for x, _ in one] == [LEFT, RIGHT]
    assert (other[0][1] - other[1][1]) / (one[0][1] - one[1][1]) == pytest.approx(0.7 / 0.5, rel=0.01)
    assert call(*runs, "--metric", "share/sft", "--output", str(picture)).exit_code == 0
    assert list(panels(picture)) == ["share/sft"]


def test_steps_in_place_of_samples(runs: list[str]) -> None:
    result = call(*runs, "--against", "steps")
    assert re.search(r"Means over the first 2 steps", result.stdout)
    assert re.search(r"test/avg@4 +a +3 +0\.250", result.stdout)
    assert "--against is for" in str(call(runs[0], runs[3], "--against", "steps").exception)


def test_a_run_before_its_end_is_left_out(tmp_path: Path, runs: list[str]) -> None:
    early = a_run(tmp_path / "b2", "b", 2, [0.0], steps=2, rows=5.0)
    result = call(*runs, str(early))
    assert "b2 is left out" in result.stderr
    assert re.search(r"b +2 +0\.700", result.stdout)
    both = [str(a_run(tmp_path / f"c{seed}", "c", seed, [0.0], steps=2)) for seed in (0, 1)]
    assert "none of these runs" in str(call(*both).exception)


def test_curves_are_means_over_seeds(runs: list[str], tmp_path: Path) -> None:
    assert call(*runs, "--output", str(tmp_path / "all.html")).exit_code == 0
    assert "<html" in (tmp_path / "all.html").read_text()
    groups = grouped(opened([Path(run) for run in runs]))
    assert groups is not None
    assert groups[0].mean().curve("test/avg@4") == [(0, 0.0), (2, pytest.approx(0.5))]


@pytest.mark.parametrize(
    ("blocks", "names"),
    [
        ([{"optimizer": {"lr": rate}} for rate in (0.1, 0.2)], ["a lr=0.1", "a lr=0.2"]),
        (
            [{"estimator": {"switch": [{"use": "success_rate", "threshold": at}]}} for at in (0.0, 0.25)],
            ["a threshold=0.0", "a threshold=0.25"],
        ),
        (
            [{"eval": {"splits": its}} for its in (["dev"], ["test", "ood"])],
            ['a splits=["dev"]', 'a splits=["test", "ood"]'],
        ),
    ],
)
def test_settings_tell_groups_of_one_name_apart(blocks: list[dict[str, Any]], names: list[str], tmp_path: Path) -> None:
    folders = [
        a_run(tmp_path / f"{index}-{seed}", "a", seed, [0.0, 0.1], **its)
        for index, its in enumerate(blocks)
        for seed in (0, 1)
    ]
    groups = grouped(opened(folders))
    assert groups is not None
    assert [(group.name, sorted(group.runs)) for group in groups] == [(name, [0, 1]) for name in names]


def test_runs_that_are_no_seeds_of_one_recipe_stay_what_they_were(tmp_path: Path, runs: list[str]) -> None:
    assert grouped(opened([Path(runs[0]), Path(runs[3])])) is None
    again = a_run(tmp_path / "again", "a", 0, [0.0, 0.4])
    assert grouped(opened([Path(runs[0]), again])) is None
    with pytest.raises(InputError, match="same recipe and seed"):
        grouped(opened([Path(runs[0]), Path(runs[1]), again]))
    for text, said in (("a: [", "can't be read"), ("train: {steps: many}", "train.steps is no whole number")):
        Path(runs[0], "recipe.yaml").write_text(text)
        with pytest.raises(InputError, match=said):
            grouped(opened([Path(run) for run in runs]))
    Path(runs[0], "recipe.yaml").unlink()
    assert grouped(opened([Path(run) for run in runs])) is None
