"""What the commands say of a recipe with fields of its own."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

import upge
from upge.cli.main import app
from upge.describe.recipe import explained
from upge.recipe.resolve import load_composed

PARTS = '''
"""Parts beside the recipe."""
from contextlib import contextmanager
import torch
import upge

class Length(upge.BatchField):
    """The length of a response.

        field_i = scale · |o_i|

    Shapes: (N,). Source: none.
    """
    per = "trajectory"
    scale: float = 1.0

    @contextmanager
    def open(self, context):
        yield self

    def read(self, step, trajectories):
        return torch.tensor([self.scale * len(each.response) for each in trajectories])
'''
RECIPE = """
extends: grpo.yaml
name: short
fields:
  length: {use: parts.py:Length, scale: -0.1}
  idle: {use: parts.py:Length}
estimator: {terms: {rl: {advantage: {use: group_norm, of: length}}}}
"""


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "parts.py").write_text(PARTS)
    path = tmp_path / "short.yaml"
    path.write_text(RECIPE)
    return path


def test_an_explanation_has_the_fields_after_the_terms(recipe: Path) -> None:
    explanation = explained(*load_composed(str(recipe), allow_code=True))
    titles = [section.title for section in explanation.sections]
    assert titles == [
        "rl: over the policy's rollouts",
        "length: a field per trajectory",
        "idle: a field per trajectory",
    ]
    length, idle = explanation.sections[1:]
    assert length.pieces[0].formulas == ("field_i = -0.1 · |o_i|",)
    assert [(each.value, each.origin.rpartition("/")[2]) for each in length.pieces[0].settings] == [
        ("-0.1", "short.yaml:5")
    ]
    assert (length.notes, idle.notes) == ((), ("no part reads it, so it is not opened",))


def test_a_difference_in_fields_is_one(recipe: Path) -> None:
    result = CliRunner().invoke(app, ["diff", "grpo", str(recipe), "--allow-code"], env={"COLUMNS": "200"})
    assert result.exit_code == 0, result.output
    assert "fields.length" in result.output
    assert "rl.advantage" in result.output


def test_a_recipe_with_fields_validates_without_opening_one(recipe: Path) -> None:
    result = CliRunner().invoke(app, ["validate", str(recipe), "--allow-code"])
    assert result.exit_code == 0, result.output


def test_a_study_of_fields_is_refused(recipe: Path) -> None:
    result = CliRunner().invoke(app, ["study", str(recipe), "--allow-code", "--draws", "40"])
    assert "short reads the field 'length', and here is none" in str(result.exception)


HOLDING = '''

class Halved(upge.Advantage):
    """Half of another advantage.

        Â_t = ½ A_t

    Shapes: (T,). Source: none.
    """
    scope = "group"
    of: upge.AnAdvantage

    def __call__(self, b):
        return self.of(b) / 2
'''
WRONG = '''
import upge

class Wrong(upge.Advantage):
    """One number too few.

        Â_t = 0

    Shapes: (T,). Source: none.
    """
    def __call__(self, b):
        raise KeyError("nothing")
'''
HELD = """
extends: grpo.yaml
name: halved
fields:
  length: {use: parts.py:Length}
estimator: {terms: {rl: {advantage: {use: parts.py:Halved, of: INNER}}}}
"""


def test_a_part_reads_what_the_parts_among_its_parameters_read(recipe: Path) -> None:
    (recipe.parent / "parts.py").write_text(PARTS + HOLDING)
    recipe.write_text(HELD.replace("INNER", "{use: group_norm, of: length}"))
    held = upge.load(recipe, allow_code=True)
    assert "length" in held.estimator.needs()
    assert set(held.fields_read()) == {"length"}
    result = CliRunner().invoke(app, ["validate", str(recipe), "--allow-code"])
    assert result.exit_code == 0, result.output


def test_a_part_within_a_part_that_raises_is_named_where_it_stands(recipe: Path) -> None:
    (recipe.parent / "parts.py").write_text(PARTS + HOLDING)
    (recipe.parent / "wrong.py").write_text(WRONG)
    recipe.write_text(HELD.replace("INNER", "{use: 'wrong.py:Wrong'}"))
    result = CliRunner().invoke(app, ["validate", str(recipe), "--allow-code"])
    said = str(result.exception)
    assert "Wrong (estimator.terms.rl.advantage.of) raised KeyError" in said
    assert "short.yaml:6:" in said
