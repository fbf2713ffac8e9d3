"""`upge eval` on a tiny model, a run and given completions, and `upge compare` of what it leaves."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from support import tiny
from support.evaluations import FILES, done, given_completions, lines, measured_run, refused, same
from support.processes import command
from typer.testing import CliRunner, Result

import upge
from upge.cli.main import app
from upge.evaluate.paired import Bands, bands, differences, measured, opened, solved
from upge.evaluate.scores import bootstrap
from upge.rollouts.problems import problems_of, spread
from upge.runs.reader import RunReader
from upge.train.run import train
from upge_parts.data.session import InMemory
from upge_parts.engines.recorded import read


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run that took no step, so that its measurement is of the model that it saved."""
    monkeypatch.chdir(tmp_path)
    return measured_run(tmp_path)


@pytest.fixture
def sizes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many responses the engine was asked for, each time."""
    from upge_parts.engines.generating import Generating

    asked: list[int] = []
    sample: Callable[..., Any] = Generating.sample
    monkeypatch.setattr(Generating, "sample", lambda *given: (asked.append(len(given[1])), sample(*given))[1])
    return asked


def test_an_evaluation_of_a_run_says_what_the_run_said(run: Path, tmp_path: Path) -> None:
    result = done(run)
    folder = tmp_path / "evaluations" / "tiny" / "run"
    logged = lines(run / "metrics.jsonl")[-1]
    summary = json.loads((folder / "summary.json").read_text())
    found = {f"{place}/{name}": it for place, its in summary["scores"].items() for name, it in its.items()}
    shared = logged.keys() - {"phase", "step"}
    assert {"test/avg@3", "test/even/pass@3", "test/truncated", "test/length"} <= shared
    assert {name: found[name]["value"] for name in shared} == {name: logged[name] for name in shared}
    assert "test/maj@3" in found
    assert all(found[name]["low"] <= found[name]["value"] <= found[name]["high"] for name in shared)
    assert "test/even" in result.stdout
    ours, theirs = lines(folder / "completions.jsonl"), lines(run / "completions.jsonl")
    assert [each["tokens"] for each in ours] == [each["tokens"] for each in theirs if each["stream"] == "eval/test"]
    problem = lines(folder / "problems.jsonl")[0]
    assert (problem["id"], problem["n"], len(problem["answers"]), len(problem["rewards"])) == ("p0", 3, 3, 3)
    assert json.loads((folder / "manifest.json").read_text())["vocabulary"]


def test_chunks_change_no_byte_and_bound_what_is_asked_for(run: Path, sizes: list[int]) -> None:
    done(run, "--output", "whole")
    assert sizes == [18]
    for chunk in (1, 4, 18):
        sizes.clear()
        done(run, "--output", f"chunk-{chunk}", "--chunk", str(chunk))
        assert max(sizes) == chunk
        assert sum(sizes) == 18
        assert same(Path("whole"), Path(f"chunk-{chunk}"), *FILES)


@pytest.mark.parametrize("kept", [0, 1, 7, 18])
def test_an_evaluation_that_stopped_goes_on(run: Path, sizes: list[int], kept: int) -> None:
    two = ["data.evaluation.more=problems.jsonl", "eval.splits=[test, more]"]
    done(run, *two, "--output", "through")
    done(run, *two, "--output", "stopped")
    file = Path("stopped/completions.jsonl")
    written = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(b"".join(written[:kept]) + written[kept][:20])
    Path("stopped/summary.json").unlink()
    sizes.clear()
    done(run, *two, "--resume", "stopped", "--chunk", "4")
    assert sum(sizes) == 36 - kept
    assert same(Path("through"), Path("stopped"), *FILES)


def test_only_the_same_evaluation_goes_on(run: Path) -> None:
    done(run, "--output", "begun")
    assert "other settings" in refused(run, "eval.n=4", "--resume", "begun")
    assert "no evaluation" in refused(run, "--resume", ".")
    assert "nowhere" in refused(run, "--resume", "nowhere")
    assert "--output" in refused(run, "--resume", "begun", "--output", "elsewhere")
    assert "--completions" in refused(run, "--resume", "begun", "--completions", "begun/completions.jsonl")
    first, second, *rest = Path("begun/completions.jsonl").read_text().splitlines(keepends=True)
    Path("begun/completions.jsonl").write_text("".join([second, first, *rest]))
    assert "completions.jsonl:1: isn't the expected next line" in refused(run, "--resume", "begun")


def test_given_responses_are_nothing_to_go_on_with(run: Path) -> None:
    given = done("--completions", run / "completions.jsonl", "--recipe", run / "recipe.yaml", "--output", "given")
    assert given.exit_code == 0
    done(run, "--output", "sampled", "eval.n=3")
    Path("given/recipe.yaml").write_text(Path("sampled/recipe.yaml").read_text())
    assert "its responses came from a file" in refused(run, "--resume", "given", "eval.n=3")


def test_a_model_on_another_recipe(run: Path) -> None:
    fragment = json.loads(Path("recipe.yaml").read_text()) | {"abstract": True, "name": "bench"}
    del fragment["model"]
    Path("bench.yaml").write_text(json.dumps(fragment))
    done(run / "model", "--recipe", "bench.yaml", "eval.limit=2", "eval.splits=[test]")
    done(run / "model", "--recipe", "bench.yaml", "eval.limit=2", "eval.splits=[test]")
    assert len(lines(Path("evaluations/bench/model/problems.jsonl"))) == 2
    assert same(Path("evaluations/bench/model"), Path("evaluations/bench/model-2"), *FILES)
    assert upge.load("evaluations/bench/model/recipe.yaml").model.path == str(run / "model")


BENCHMARKS = sorted((Path(__file__).parents[2] / "recipes" / "eval").glob("*.yaml"))


@pytest.mark.parametrize("path", [path for path in BENCHMARKS if path.stem != "base"], ids=lambda path: path.stem)
def test_a_benchmark_is_a_recipe_once_it_has_a_model(path: Path) -> None:
    recipe = upge.load(path, ["abstract=false", "model.path=upge_parts:data/lab/base"])
    assert recipe.name == path.stem
    assert recipe.eval.splits == (path.stem,)
    assert set(recipe.data.dump()["evaluation"]) == {path.stem}
    assert (recipe.eval.temperature, recipe.eval.top_p, recipe.rollout.max_tokens) == (0.6, 0.95, 8192)
    assert recipe.eval.n == (32 if path.stem in ("aime24", "aime25", "amc23") else 1)


def test_a_prompt_without_room_is_refused_before_anything_is_sampled(run: Path) -> None:
    assert "exceed the model's context of 64" in refused(run, "rollout.max_tokens=63")


# Wrong input, as a user types it.


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("", "name the model first"),
        ("eval.n=3", "name the model first"),
        ("nobody/nothing", "pass the recipe to evaluate it on: --recipe"),
        ("./nowhere --recipe recipe.yaml", "there is no folder './nowhere'"),
        ("run --recipe nope", "neither a file nor a recipe called 'nope'"),
        ("run evel.n=3", "did you mean 'eval'"),
        ("run eval.splits=[nope]", "no split 'nope'"),
        ("run eval.splits=[]", "eval.splits=\\[test\\] names all"),
        ("run model.path=run", "the model is named first"),
        ("run log.folder=elsewhere", "folder is --output"),
        ("run eval.pass_at=[4]", "pass@4 needs at least 4 samples"),
        ("--completions nowhere.jsonl --recipe recipe.yaml", "nowhere.jsonl: can't be read"),
    ],
)
def test_wrong_input_is_refused_and_leaves_nothing(run: Path, arguments: str, said: str) -> None:
    assert re.search(said, refused(*shlex.split(arguments)))
    assert not Path("evaluations").exists()


def test_exit_codes_and_streams(run: Path) -> None:
    wrong = command("eval", "run", "eval.splits=[nope]")
    assert (wrong.returncode, wrong.stdout) == (2, "")
    assert "Traceback" not in wrong.stderr
    right = command("eval", "run")
    assert right.returncode == 0, right.stderr
    assert "avg@3" in right.stdout
    assert "18/18 responses" in right.stderr
    assert "responses" not in right.stdout


# Two evaluations.


def two_evaluations(run: Path) -> tuple[Path, Path]:
    """Of three problems: the first solves p0 and p1, the second p0 and p2."""
    for name, texts in (
        ("first", {"p0": ["a", "a"], "p1": ["b", "c"], "p2": ["a", "a"]}),
        ("second", {"p0": ["a", "a"], "p1": ["c", "c"], "p2": ["c", "c"]}),
    ):
        file = given_completions(texts)
        done("--completions", file, "--recipe", "recipe.yaml", "eval.limit=3", "--output", name)
    return Path("first"), Path("second")


def test_paired_differences_and_exclusive_solves(run: Path) -> None:
    one, other = opened(two_evaluations(run))
    found = {(each.place, each.score): each for each in differences(one, other)}
    average = found["test", "avg"]
    assert (average.first, average.second) == (pytest.approx(0.5), pytest.approx(2 / 3))
    assert average.difference == bootstrap([0.0, -0.5, 1.0], one.seed)
    assert found["test", "pass@2"].difference.value == 0
    assert {score for place, score in found if place == "test"} == {"avg", "pass@2", "maj@2", "truncated"}
    whole = solved(one, other)[0]
    assert (whole.place, whole.both, whole.only_first, whole.only_second) == ("test", ("p0",), ("p1",), ("p2",))
    assert {each.place: each.only_second for each in solved(one, other)}["test/even"] == ("p2",)


def test_only_line_feeds_end_a_line(run: Path) -> None:
    odd = "a\u2028b\u0085c"
    file = given_completions({f"p{index}": [odd, "a"] for index in range(3)}, tokens=[2], truncated=False)
    done("--completions", file, "--recipe", "recipe.yaml", "eval.limit=3", "--output", "odd")
    assert odd in Path("odd/completions.jsonl").read_text()
    assert opened([Path("odd"), Path("odd")])[0].records[0].n == 2
    lines = [{"stream": "s", "step": 0, "problem": "p", "sample": i, "text": odd, "tokens": [2]} for i in range(2)]
    text = "".join(json.dumps(line | {"truncated": False}, ensure_ascii=False) + "\n" for line in lines)
    Path("recorded.jsonl").write_text(text, encoding="utf-8")
    assert len(read(Path("recorded.jsonl"))) == 2


def test_an_evaluation_does_not_differ_from_itself(run: Path) -> None:
    one, _ = opened(two_evaluations(run))
    assert all((d.difference.low, d.difference.high) == (0.0, 0.0) for d in differences(one, one))
    assert not any(each.only_first or each.only_second for each in solved(one, one))


def compared(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, ["compare", *map(str, arguments)], env={"COLUMNS": "120"})


def test_compare_takes_evaluations(run: Path) -> None:
    one, other = two_evaluations(run)
    result = compared(one, other, "--output", "both.json")
    assert result.exit_code == 0, result.output
    assert "only by second" in result.stdout
    assert "+0.167" in result.stdout
    assert json.loads(Path("both.json").read_text())[0]["solved"][0]["only_first"] == ["p1"]
    for wrong, said in (
        ((one, run), "compare like with like"),
        ((one,), "with another one"),
        ((one, other, "--metric", "reward"), "--metric"),
    ):
        assert said in str(compared(*wrong).exception)


def test_other_problems_and_broken_folders_are_not_compared(run: Path) -> None:
    one, _ = two_evaluations(run)
    done(run, "--output", "other")
    assert "'p1' of 'test' (7 such in all)" in str(compared(one, "other").exception)
    Path("other/summary.json").write_text("{}")
    assert "other: its problems.jsonl or summary.json can't be read" in str(compared(one, "other").exception)


def test_different_numbers_of_samples_are_said(run: Path) -> None:
    one, _ = two_evaluations(run)
    file = given_completions({"p0": ["a"] * 3, "p1": ["b"] * 3, "p2": ["a"] * 3})
    done("--completions", file, "--recipe", "recipe.yaml", "eval.limit=3", "--output", "third")
    result = compared(one, "third")
    assert "different numbers" in result.stderr
    assert " avg " in result.stdout
    assert "maj" not in result.stdout


# A run's own two.


def test_a_run_is_compared_with_what_it_started_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder = train(upge.load(tiny.recipe(tmp_path), ["train.steps=2", "eval.every=1", "optimizer.lr=0.02"]))
    first, last = measured(RunReader(folder))
    assert (first.name, last.name) == ("step 0", "step 2")
    gap = next(each for each in differences(first, last) if each.score == "avg")
    logged = [line for line in lines(folder / "metrics.jsonl") if line["phase"] == "eval"]
    (score,) = [key for key in logged[0] if key.startswith("test/avg@")]
    assert (gap.first, gap.second) == (pytest.approx(logged[0][score]), pytest.approx(logged[-1][score]))
    result = compared(folder)
    assert result.exit_code == 0, result.output
    assert re.search(rf"test +avg +{gap.first:.3f} +{gap.second:.3f}", result.stdout)
    assert "only by step 2" in result.stdout


def test_a_run_measured_once_or_without_responses_shows_its_curves_alone(run: Path, tmp_path: Path) -> None:
    assert measured(RunReader(run)) == []
    assert "solved by" not in compared(run).stdout
    (run / "completions.jsonl").unlink()
    assert measured(RunReader(run)) == []


def test_a_runs_broken_responses_are_told(run: Path) -> None:
    (run / "completions.jsonl").write_text('{"stream": "eval/test"}\n{"cut off')
    assert "completions.jsonl:1: is no response: it has no 'step'" in str(compared(run).exception)


def test_bands_count_problems_by_how_often_they_are_solved(run: Path) -> None:
    texts = {"p0": ["b", "b", "c"], "p1": ["b", "a", "c"], "p2": ["c", "c", "a"]}
    done("--completions", given_completions(texts), "--recipe", "recipe.yaml", "eval.limit=3", "--output", "one")
    (one,) = opened([Path("one")])
    assert bands(one)[0] == Bands("test", never=1, sometimes=1, often=1)


@pytest.mark.parametrize(("limit", "places"), [(3, [0, 4, 7]), (4, [0, 1, 4, 7]), (10, range(10)), (11, range(10))])
def test_a_limit_takes_problems_from_all_over_a_split(limit: int, places: Sequence[int]) -> None:
    settings: Any = SimpleNamespace(eval=SimpleNamespace(limit=limit))
    data = InMemory([], {"test": [upge.Problem(str(index), "?", "a") for index in range(10)]}, 0)
    assert [int(each.id) for each in problems_of(settings, data, "test")] == list(places)
    given = {"1", "4", "5"}
    chosen = [int(each.id) for each in problems_of(settings, data, "test", given)]
    assert chosen == ([1, 4, 5] if limit == 3 else list(places))


@pytest.mark.parametrize("size", [24, 60, 198, 500, 1319])
@pytest.mark.parametrize("limit", [6, 20, 24])
def test_a_limit_gives_each_kind_its_share_of_sorted_data_and_of_data_whose_kinds_take_turns(
    size: int, limit: int
) -> None:
    taken = spread(size, limit)
    assert taken == sorted(set(taken))
    assert len(taken) == limit
    for kinds in (2, 3):
        sort, turns = [place * kinds // size for place in taken], [place % kinds for place in taken]
        assert all(abs(sort.count(kind) - limit / kinds) < 2 for kind in range(kinds))
        assert all(abs(turns.count(kind) - limit / kinds) <= limit / kinds / 2 for kind in range(kinds))
