"""The reward `python`: a function of the user's, with leave only, and whatever it does wrong is said."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support import tiny
from support.command import call

import upge
from upge import Context, InputError, PartError, Problem, RecipeError
from upge.runs.recipe_file import command
from upge.train.run import train
from upge_parts.rewards.python_function import PythonFunction
from upge_parts.rewards.weighted import Weighted

SCORE = """
def score(problem, text):
    return text.strip() == problem.answer
"""


def rewarded(folder: Path, source: str = SCORE, function: str = "mine.py:score") -> Path:
    """The tiny recipe with the function of mine.py as its reward."""
    (folder / "mine.py").write_text(source)
    path = tiny.recipe(folder, train={"steps": 2, "save_every": 1})
    reward = {"use": "python", "function": function}
    path.write_text(json.dumps({**json.loads(path.read_text()), "reward": reward}))
    return path


def faults(path: Path, *overrides: str, allow_code: bool = False) -> str:
    with pytest.raises(RecipeError) as raised:
        upge.load(path, overrides, allow_code=allow_code)
    return str(raised.value)


# Leave.


def test_without_leave_the_function_is_refused_at_its_place_and_nothing_is_imported(tmp_path: Path) -> None:
    path = rewarded(tmp_path, "raise SystemExit('imported')")
    said = faults(path)
    column = path.read_text().index('"mine.py:score"') + 1
    assert f"{path}:1:{column}: 'mine.py:score' is code" in said
    assert "allow it with --allow-code" in said
    within = "reward={use: weighted, rewards: [{use: python, function: 'os:getenv'}], weights: [1.0]}"
    assert "'os:getenv' is code" in faults(path, within)


@pytest.mark.parametrize(
    ("function", "said"),
    [
        ("mine.py:scor", "has no function 'scor'"),
        ("mine.py:NAME", "has no function 'NAME'"),
        ("nowhere.py:score", "there is no file"),
        ("no.such.module:score", "'no.such.module' can't be imported: ModuleNotFoundError"),
        ("broken.py:score", "broken.py can't be imported: ZeroDivisionError: division by zero"),
        ("score", "function"),
    ],
)
def test_what_is_no_function_is_a_fault_of_the_recipe(tmp_path: Path, function: str, said: str) -> None:
    (tmp_path / "broken.py").write_text("1 / 0")
    found = faults(rewarded(tmp_path, SCORE + "NAME = 3\n", function), allow_code=True)
    assert said in found
    assert "recipe.yaml:1:" in found


def test_a_run_keeps_the_function_and_goes_on_with_leave_alone(tmp_path: Path) -> None:
    path = rewarded(tmp_path)
    folder = train(upge.load(path, allow_code=True))
    (tmp_path / "mine.py").write_text("raise SystemExit('the author went on working')")
    assert "--allow-code" in faults(folder / "recipe.yaml")
    more = upge.load(folder / "recipe.yaml", [f"log.folder={folder}", "train.steps=3"], allow_code=True)
    train(more, resume=folder)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if line["phase"] == "train"] == [0, 1, 2]
    assert [file.read_text() for file in (folder / "code").iterdir()] == [SCORE]


def test_the_command_that_goes_on_asks_for_leave_where_a_module_is_named(tmp_path: Path) -> None:
    path = tiny.recipe(tmp_path)
    named = upge.load(path, ["reward={use: python, function: operator:eq}"], allow_code=True)
    assert command(named, tmp_path) == f"upge run --resume {tmp_path} --allow-code"
    assert command(upge.load(path), tmp_path) == f"upge run --resume {tmp_path}"


def test_validate_says_what_code_would_run(tmp_path: Path) -> None:
    path = rewarded(tmp_path, function="mine:score")
    said = call("validate", str(path), "--allow-code").stdout
    assert f"code      {tmp_path / 'mine.py'}:score" in said
    installed = call("validate", str(path), "--allow-code", "reward.function=operator:eq").stdout
    assert "code      operator:eq" in installed


# What it says of responses.


def score(part: upge.Reward, *responses: str) -> list[float]:
    with part.open(Context()) as session:
        return session.score([(Problem("p", "?", "4"), response) for response in responses])


@pytest.fixture
def module(tmp_path: Path) -> str:
    file = tmp_path / "given.py"
    file.write_text(
        "def score(problem, text): return text == problem.answer\n"
        "def lengths(problems, texts): return [len(text) / 4 for text in texts]\n"
        "def few(problems, texts): return [0.0]\n"
        "def nothing(*given): pass\n"
        "def infinite(problem, text): return float('inf')\n"
        "def texts(problem, text): return '1'\n"
        "def raises(problem, text): return 1 / 0\n"
    )
    return str(file)


def test_scores_come_one_by_one_or_all_at_once(module: str) -> None:
    assert score(PythonFunction(function=f"{module}:score"), "4", "5") == [1.0, 0.0]
    lengths = PythonFunction(function=f"{module}:lengths", batch=True)
    assert score(lengths, "12", "1234") == [0.5, 1.0]
    assert score(lengths) == []
    both = Weighted(rewards=(PythonFunction(function=f"{module}:score"), lengths), weights=(1.0, 2.0))
    assert score(both, "4") == [1.5]


@pytest.mark.parametrize(
    ("function", "batch", "said"),
    [
        ("few", True, "few returned 1 for 2 responses"),
        ("nothing", True, "nothing returned NoneType for 2 responses"),
        ("nothing", False, "nothing returned None for the problem 'p'; a score is a finite number"),
        ("infinite", False, "infinite returned inf for the problem 'p'"),
        ("texts", False, "texts returned '1' for the problem 'p'"),
        ("raises", False, r"raises raised ZeroDivisionError: division by zero \(problem 'p', .*given.py:7\)"),
        ("raises", True, r"raises raised ZeroDivisionError: division by zero \(problem 'p … p'"),
    ],
)
def test_a_function_that_goes_wrong_is_named_with_the_problem(
    module: str, function: str, batch: bool, said: str
) -> None:
    with pytest.raises(PartError, match=rf"the reward's function {module}:{said}"):
        score(PythonFunction(function=f"{module}:{function}", batch=batch), "1", "2")


def test_a_function_that_is_gone_is_an_error_about_the_input(tmp_path: Path) -> None:
    for name, said in ((f"{tmp_path / 'gone.py'}:score", "there is no file"), ("nowhere:score", "can't be imported")):
        with pytest.raises(InputError, match=said):
            score(PythonFunction(function=name), "1")
