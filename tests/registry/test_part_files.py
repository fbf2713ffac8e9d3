"""Parts in a file beside the recipe: what they import, what their classes declare, and that `validate` calls them."""

from __future__ import annotations

import os
import py_compile
import re
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor
from typer.testing import CliRunner

import upge
from upge import View
from upge.cli.main import app
from upge.code import function_of
from upge.recipe import RecipeError, check
from upge.runs.folder import RunFolder
from upge.testing.batches import RICH

HEAD = "import torch\nimport upge\nfrom upge import Mask, Switch\n\n\n"
MASK = 'class P(Mask):\n    """x."""\n\n    needs = {{"logp"}}\n\n    def __call__(self, b):\n        return {}\n'


def recipe(folder: Path, code: str, mask: str = "part.py:P", **files: str) -> Path:
    """A recipe with a mask from a file beside it."""
    folder.mkdir(exist_ok=True)
    for name, text in {"part": HEAD + code, **files}.items():
        (folder / f"{name}.py").write_text(text)
    path = folder / "mine.yaml"
    path.write_text(f"extends: grpo.yaml\nestimator:\n  terms:\n    rl:\n      mask: {mask}\n")
    return path


def refusal(folder: Path, code: str) -> str:
    with pytest.raises(RecipeError) as refused:
        check(recipe(folder, code), allow_code=True)
    return str(refused.value)


def validated(path: Path) -> str:
    """What `validate` says of a recipe that it refuses."""
    with pytest.raises(RecipeError) as refused:
        CliRunner().invoke(app, ["validate", str(path), "--allow-code"], catch_exceptions=False)
    return str(refused.value)


# Neighbours.


@pytest.mark.parametrize(
    "line",
    [
        "from helpers import half",
        "from .helpers import half",
        "import helpers; half = helpers.half",
        "from . import helpers; half = helpers.half",
    ],
)
def test_a_part_imports_the_file_beside_it(tmp_path: Path, line: str) -> None:
    helpers = "from numbers_of_ours import HALF\n\ndef half(x):\n    return x * HALF\n"
    path = recipe(
        tmp_path, f"{line}\n\n\n{MASK.format('half(b.logp)')}", helpers=helpers, numbers_of_ours="HALF = 0.5\n"
    )
    assert check(path, allow_code=True).recipe is not None


def test_an_import_within_a_call_finds_the_neighbour_too(tmp_path: Path) -> None:
    code = "def late(b):\n    from helpers import half\n    return half(b.logp)\n\n\n" + MASK.format("late(b)")
    path = recipe(tmp_path, code, helpers="def half(x):\n    return x * 0.5\n")
    assert "valid" in CliRunner().invoke(app, ["validate", str(path), "--allow-code"]).stdout


def test_a_file_is_beside_the_recipe_that_names_it_whichever_extends_that(tmp_path: Path) -> None:
    recipe(
        tmp_path / "below", MASK.format("b.logp * 2.0"), **{"score": "def score(problem, response):\n    return 1.0\n"}
    )
    below, top = tmp_path / "below" / "mine.yaml", tmp_path / "top.yaml"
    below.write_text(below.read_text() + "reward: {use: python, function: score.py:score}\n")
    top.write_text("extends: below/mine.yaml\n")
    loaded = upge.load(top, allow_code=True)
    assert loaded.estimator == upge.load(below, allow_code=True).estimator
    assert loaded.reward.dump()["function"] == f"{tmp_path / 'below' / 'score.py'}:score"
    shipped = tmp_path / "shipped.yaml"
    shipped.write_text("extends: invent/clip_cov.yaml\n")
    assert type(upge.load(shipped, allow_code=True).estimator.terms["rl"].mask[1]).__name__ == "ClipCov"


@pytest.mark.parametrize(
    ("block", "kind"), [("fields: {mine: {use: more.py:F}}", "F"), ("eval: {engine: {use: more.py:E}}", "E")]
)
def test_so_it_is_in_every_block_that_holds_parts(tmp_path: Path, block: str, kind: str) -> None:
    code = """
import upge
from upge_parts.engines.transformers_engine import Transformers as Base

class E(Base):
    pass

class F(upge.BatchField):
    per = "prompt"

    def open(self, context):
        raise NotImplementedError
"""
    recipe(tmp_path / "below", MASK.format("b.logp * 2.0"), more=code)
    below, top = tmp_path / "below" / "mine.yaml", tmp_path / "top.yaml"
    below.write_text(below.read_text() + block + "\n")
    top.write_text("extends: below/mine.yaml\n")
    parts = upge.load(top, allow_code=True).parts()
    assert kind in {type(part).__name__ for part in parts.values()}


def test_two_files_of_one_name_are_two_parts_to_diff(tmp_path: Path) -> None:
    paths = [recipe(tmp_path / name, MASK.format(f"b.logp * {name}")) for name in ("2", "3")]
    shown = CliRunner().invoke(app, ["diff", *map(str, paths), "--allow-code"], env={"COLUMNS": "400"}).stdout
    for path in paths:
        assert f"{path.with_name('part.py')}:P" in shown.replace("\n", "")


def test_a_file_that_is_missing_is_looked_for_beside_the_recipe_that_names_it(tmp_path: Path) -> None:
    recipe(tmp_path / "below", "", mask="gone.py:P")
    (tmp_path / "top.yaml").write_text("extends: below/mine.yaml\n")
    with pytest.raises(RecipeError) as refused:
        check(tmp_path / "top.yaml", allow_code=True)
    assert f"{tmp_path / 'below' / 'mine.yaml'}:5:13: there is no file '{tmp_path / 'below' / 'gone.py'}'" in str(
        refused.value
    )


def test_two_folders_with_neighbours_of_one_name_keep_their_own(tmp_path: Path) -> None:
    parts = []
    for name, value in (("a", 2.0), ("b", 3.0)):
        code = "from helpers import VALUE\n\n\n" + MASK.format("b.logp * VALUE")
        path = recipe(tmp_path / name, code, helpers=f"VALUE = {value}\n")
        parts.append(upge.load(path, allow_code=True).estimator.terms["rl"].mask[0])
    values = [vars(sys.modules[type(part).__module__])["VALUE"] for part in parts]
    assert values == [2.0, 3.0]
    assert "helpers" not in sys.modules


def test_what_runs_is_the_files_text_and_no_bytecode_beside_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bytecode of the same second and size would be taken for the file's, whoever made it; and none is left."""
    file = tmp_path / "score.py"
    file.write_text("def one():\n    return 1\n")
    compiled = Path(py_compile.compile(str(file), doraise=True))
    stat = file.stat()
    file.write_text("def one():\n    return 2\n")
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert function_of(f"{file}:one")() == 2
    compiled.unlink()
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    file.write_text("def one():\n    return 3\n")
    assert function_of(f"{file}:one")() == 3
    assert list(compiled.parent.iterdir()) == []


def test_a_neighbour_hides_nothing_of_pythons_own(tmp_path: Path) -> None:
    path = recipe(tmp_path, "import math\n\n\n" + MASK.format("b.logp * math.pi"), math="pi = 'no number'\n")
    assert check(path, allow_code=True).recipe is not None


def test_a_fault_of_the_file_has_its_line(tmp_path: Path) -> None:
    assert re.search(
        r"ModuleNotFoundError: No module named 'helpr' \(.*part\.py:6\)", refusal(tmp_path, "import helpr\n")
    )
    assert re.search(r"SyntaxError.*part\.py:6", refusal(tmp_path, "def f(:\n"))


# Declarations.


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("need = {'logp'}", "did you mean 'needs'?"),
        ("scopes = 'step'", "did you mean 'scope'?"),
        ("trust_regions = True", "did you mean 'trust_region'?"),
        ("trustregion = True", "did you mean 'trust_region'?"),
        ("package = {'x': 'y'}", "did you mean 'packages'?"),
        ("need: 'ClassVar[set]' = {'logp'}", "did you mean 'needs'?"),
        ("low = 0.2", "write `low: float = 0.2`, if it is a parameter"),
        ("slot = 'masks'", "the base class sets the slot"),
        ("scope = 'tokens'", "did you mean 'token'?"),
        ("needs = {'rewards'}", "did you mean 'reward'?"),
        ("needs = {'ratio'}", "b.ratio needs no declaration"),
    ],
)
def test_a_misspelt_declaration_gets_the_nearest_name(tmp_path: Path, line: str, said: str) -> None:
    text = refusal(tmp_path, f"class P(Mask):\n    {line}\n\n    def __call__(self, b):\n        return b.ratio\n")
    assert said in text
    assert "non-annotated" not in text


def test_parameters_methods_and_constants_of_a_class_are_no_misspelt_declarations() -> None:
    class Fine(upge.Mask):
        """x."""

        needs = frozenset({"logp"})
        _hidden = 3
        low: float = 0.2
        """A parameter."""

        @property
        def needed(self) -> float:
            return self.low

        def __call__(self, b: upge.View) -> Tensor:
            return b.logp

    assert list(Fine.fields()) == ["low"]


# Validation.


@pytest.mark.parametrize(
    ("result", "said"),
    [
        ("b.rewards", "which no view has; did you mean b.reward?"),
        ("b.reward", "without declaring it: needs = {'reward'}"),
        ("b.per_trajectory(b.logp)", "b.to_tokens(x) gives each token"),
        ("b.per_prompt(b.length)", "b.to_tokens(b.to_trajectories(x))"),
        ("b.logp[:, None]", "x[:, 0]"),
        ("b.logp * float('nan')", "returned NaN"),
        ("1.0", "returned float"),
        ("b.logp + torch.ones(3)", "raised RuntimeError"),
        ("b.logp if b.step < 40 else b.nothing", "b.nothing"),
    ],
)
def test_validate_calls_every_part(tmp_path: Path, result: str, said: str) -> None:
    text = validated(recipe(tmp_path, MASK.format(result)))
    assert said in text
    assert re.search(r"mine\.yaml:5:13: can't run: P \(estimator\.terms\.rl\.mask\.0\)", text)
    assert re.search(r"the part is P in .*part\.py:6", text)


def test_validate_passes_what_ships() -> None:
    for name in ("sft", "ppo", "hpt_upt", "sft_then_grpo"):
        assert CliRunner().invoke(app, ["validate", name]).exit_code == 0


def test_numbers_per_token_where_a_switch_owes_one_a_prompt_name_the_way(tmp_path: Path) -> None:
    code = (
        "class P(Switch):\n    needs = {'reward', 'logp'}\n\n    def terms(self):\n        return ('rl',)\n\n"
        "    def __call__(self, b):\n        return {'rl': b.reward}\n"
    )
    path = recipe(tmp_path, code)
    path.write_text("extends: grpo.yaml\nestimator:\n  switch: part.py:P\n")
    assert "b.per_prompt(x) sums over the prompt's trajectories" in validated(path)


def test_a_runs_folder_keeps_the_neighbours_too(tmp_path: Path) -> None:
    """Without them the run couldn't be resumed once the files beside the recipe have changed."""
    code = "from helpers import half\n\n\n" + MASK.format("half(b.logp)")
    helpers = "from ours import HALF\n\n\ndef half(x):\n    return x * HALF\n"
    path = recipe(tmp_path / "mine", code, helpers=helpers, ours="HALF = 0.5\n", unrelated="")
    run = RunFolder(tmp_path / "run")
    text = run.resolved(upge.load(path, allow_code=True))
    (run.path / "recipe.yaml").write_text(text)
    kept = sorted(file.name for file in (run.path / "code").rglob("*.py"))
    assert kept == ["helpers.py", "ours.py", "part.py"]
    again = upge.load(run.path / "recipe.yaml", allow_code=True)
    for name in ("helpers", "ours", "part"):
        (tmp_path / "mine" / f"{name}.py").unlink()
    (mask,) = again.estimator.terms["rl"].mask
    assert torch.equal(mask(View(RICH.batch, frozenset({"logp"}))), RICH.batch.logp * 0.5)
    next_run = RunFolder(tmp_path / "next").resolved(upge.load(run.path / "recipe.yaml", allow_code=True))
    assert next_run == text
