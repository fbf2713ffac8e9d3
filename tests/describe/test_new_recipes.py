"""`upge new recipe`: the file is its parent by another name, and reads as its author wrote it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import upge
from upge import InputError
from upge.describe.scaffold import new_recipe
from upge.recipe.catalog import shelved, shipped_recipes

UPGES_OWN = [each.name for each in shelved() if each.package == "upge"]


@pytest.mark.parametrize("like", UPGES_OWN)
def test_a_new_recipe_is_its_parent_by_another_name(like: str, tmp_path: Path) -> None:
    recipe, parent = upge.load(new_recipe("mine", like, tmp_path)), upge.load(like)
    assert recipe.name == "mine"
    assert recipe.model_copy(update={"name": parent.name, "about": parent.about}) == parent


def test_it_has_the_estimator_as_its_author_wrote_it(tmp_path: Path) -> None:
    written = new_recipe("mine", "hpt", tmp_path).read_text()
    parent = (shipped_recipes() / "hpt.yaml").read_text()
    assert written[written.index("estimator:") :] == parent[parent.index("estimator:") :]
    assert "extends: hpt.yaml\nname: mine\n" in written


def test_it_has_the_whole_estimator_where_several_files_say_it(tmp_path: Path) -> None:
    """`grpo_kl` adds a term to what it extends."""
    written = new_recipe("mine", "grpo_kl", tmp_path).read_text()
    assert "extends: grpo_kl.yaml\n" in written
    assert "      mask: {use: clip, low: 0.2, high: 0.2}\n      denominator: old\n" in written
    assert "      advantage: {use: kl, estimator: k3, coefficient: 0.04}\n" in written


def test_one_word_changes_it(tmp_path: Path) -> None:
    path = new_recipe("mine", "grpo", tmp_path)
    path.write_text(path.read_text().replace("reduction: sequence_mean", "reduction: token_mean"))
    assert upge.load(path).estimator.terms["rl"].reduction.dump()["use"] == "token_mean"


def test_a_file_in_the_folder_is_extended_and_one_elsewhere_copied(tmp_path: Path) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir()
    there.mkdir()
    text = "extends: grpo.yaml\nname: base\nabout: 'a: b'\noptimizer: {lr: 3e-4}\ntrain: {steps: 5}\n"
    (here / "base.yaml").write_text(text)
    beside, apart = new_recipe("one", str(here / "base.yaml"), here), new_recipe("two", str(here / "base.yaml"), there)
    assert "extends: base.yaml\n" in beside.read_text()
    assert "extends" not in apart.read_text()
    assert "model: upge_parts:data/lab/base\ndata: lab\n" in apart.read_text()
    assert "lr: 3e-4" in apart.read_text()
    (here / "base.yaml").unlink()
    assert upge.load(apart).model_copy(update={"name": "base"}).train.steps == 5
    assert upge.load(apart).estimator == upge.load("grpo").estimator


def test_a_file_that_would_come_first_is_not_extended_by_mistake(tmp_path: Path) -> None:
    """`extends: grpo.yaml` means the file beside the recipe, if there is one."""
    (tmp_path / "grpo.yaml").write_text("extends: sft.yaml\nname: other\n")
    written = new_recipe("mine", str(shipped_recipes() / "grpo.yaml"), tmp_path)
    assert "extends" not in written.read_text()
    assert upge.load(written).estimator == upge.load(shipped_recipes() / "grpo.yaml").estimator


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        (
            '{"extends": "grpo.yaml", "name": "base", "estimator": {"terms": {"rl": {"weight": 1e-3}}}}',
            "weight: 1e-3\n",
        ),
        ("extends: sft.yaml\nestimator: {terms: {sft: {weight: 0.50}}}\nname: base\n", "weight: 0.50"),
        (
            "extends: hpt.yaml\nname: base\nestimator:\n  switch: null\n\n# the end\ntrain: {steps: 1}\n",
            "reduction: constant\n",
        ),
    ],
)
def test_other_ways_to_write_a_parent(text: str, kept: str, tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text(text)
    written = new_recipe("mine", str(tmp_path / "base.yaml"), tmp_path)
    assert kept in written.read_text()
    assert "the end" not in written.read_text()
    assert upge.load(written).estimator == upge.load(tmp_path / "base.yaml").estimator


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("a b", "'a_b' would do"),
        ("../mine", "'mine' would do"),
        ("", "'mine' would do"),
        (".hidden", "'hidden' would do"),
        ("mine.yaml", "name the recipe alone: 'mine'"),
        ("grpo", "the package upge brings a recipe called 'grpo' already"),
    ],
)
def test_a_recipe_s_name_that_cannot_be_had(name: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=re.escape(said)):
        new_recipe(name, "grpo", tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_recipe_that_is_there_stays_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("mine\n")
    with pytest.raises(InputError, match=re.escape("mine.yaml' already; it is not overwritten")):
        new_recipe("mine", "grpo", tmp_path)
    assert (tmp_path / "mine.yaml").read_text() == "mine\n"


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="can't be written"):
        new_recipe("mine", "grpo", tmp_path / "file")


@pytest.mark.parametrize("name", ["clip_cov", "online_dpo"])
def test_a_copy_of_a_recipe_with_parts_in_a_file_finds_them_from_any_folder(name: str, tmp_path: Path) -> None:
    parent = shipped_recipes() / "invent" / f"{name}.yaml"
    with pytest.raises(upge.RecipeError, match="allow it with --allow-code"):
        new_recipe("mine", str(parent), tmp_path)
    written = new_recipe("mine", str(parent), tmp_path, allow_code=True)
    copied, original = (upge.load(path, allow_code=True).estimator for path in (written, parent))
    assert copied == original
