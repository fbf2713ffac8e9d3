"""Installing a package changes no shipped recipe and no finished run, whatever names it offers."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import Site
from support import tiny

import upge
from upge.runs.folder import RunFolder
from upge.runs.reader import RunReader
from upge.runs.recipe_file import changed
from upge.train.run import train

PARTS = "[upge.mask]\nclip = theirs:Clip\n[upge.engine]\ntransformers = theirs:Clip\n"
RECIPES = "[upge.recipes]\ntheirs = theirs_recipes\n"
THEIRS = """
import upge

class Clip(upge.Mask):
    low: float
    high: float

    def __call__(self, b):
        return b.ratio
"""


@pytest.fixture
def theirs(site: Site) -> None:
    """A package that offers a mask and an engine of names that ship, and a recipe of its own."""
    site.install("theirs", PARTS + RECIPES, {"theirs": THEIRS, "theirs_recipes.__init__": ""})
    recipe = (Path(upge.__file__).parents[1] / "recipes" / "grpo.yaml").read_text()
    (site.folder / "theirs_recipes" / "own.yaml").write_text(recipe.replace("name: grpo", "name: own"))


def mask_of(recipe: upge.Recipe) -> str:
    return type(recipe.estimator.terms["rl"].mask[0]).__module__


@pytest.mark.usefixtures("theirs")
def test_in_a_shipped_recipe_a_name_is_a_part_that_ships() -> None:
    recipe = upge.load("grpo")
    assert mask_of(recipe) == "upge_parts.masks.clip"
    assert recipe.estimator.terms["rl"].mask[0].dump()["use"] == "upge/clip"
    assert upge.load("grpo", ["estimator.terms.rl.mask.high=0.3"]).estimator.terms["rl"].mask[0].dump()["high"] == 0.3


@pytest.mark.usefixtures("theirs")
def test_in_a_packages_recipe_it_is_its_own() -> None:
    assert mask_of(upge.load("theirs/own", ["rollout.engine=upge/transformers"])) == "theirs"


@pytest.mark.usefixtures("theirs")
def test_anybody_else_has_to_say_whose(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(
        "extends: grpo.yaml\nestimator: {terms: {rl: {mask: {use: clip, low: 0.1, high: 0.1}}}}\n"
    )
    with pytest.raises(upge.RecipeError, match=r"mine\.yaml:2:.*2 packages define a mask called 'clip'"):
        upge.load(tmp_path / "mine.yaml")
    with pytest.raises(upge.RecipeError, match="write one of: 'theirs/clip' or 'upge/clip'"):
        upge.load("grpo", ["estimator.terms.rl.mask={use: clip, low: 0.1, high: 0.1}"])


def test_a_part_within_another_is_the_one_that_the_run_had(tmp_path: Path, site: Site) -> None:
    reward = "reward={use: weighted, rewards: [{use: exact}], weights: [1.0]}"
    folder = train(upge.load(tiny.recipe(tmp_path), [f"log.folder={tmp_path}/run", reward, "train.steps=1"]))
    before = upge.load(folder / "recipe.yaml")
    site.install("theirs", "[upge.reward]\nexact = theirs:Clip\n", {"theirs": THEIRS})
    assert upge.load(folder / "recipe.yaml") == before


@pytest.mark.parametrize("slot", ["field", "reward"])
def test_a_field_is_the_one_that_the_run_had(tmp_path: Path, site: Site, slot: str) -> None:
    """Also where another slot of the package has a part of its name, as `reward` has."""
    fields = "fields={form: {use: reward, reward: {use: exact}}, past: {use: reward_history, last: 2}}"
    folder = train(upge.load(tiny.recipe(tmp_path), [f"log.folder={tmp_path}/run", fields, "train.steps=1"]))
    before = upge.load(folder / "recipe.yaml")
    offers = f"[upge.{slot}]\nreward = theirs:Clip\nreward_history = theirs:Clip\n"
    site.install("theirs", offers, {"theirs": THEIRS})
    assert upge.load(folder / "recipe.yaml") == before


def test_one_part_by_two_names_is_merged_as_one(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(
        "extends: grpo.yaml\nestimator: {terms: {rl: {mask: {use: upge/clip, high: 0.3}}}}\n"
    )
    [mask] = upge.load(tmp_path / "mine.yaml").estimator.terms["rl"].mask
    assert mask.dump() == {"use": "clip", "low": 0.2, "high": 0.3, "against": "denominator"}


@pytest.mark.usefixtures("theirs")
def test_a_packages_recipe_has_the_parts_that_ship_where_it_has_none_of_its_own(site: Site) -> None:
    site.install(
        "more",
        "[upge.engine]\nmine = theirs:Clip\n[upge.recipes]\nmore = more_recipes\n",
        {"more_recipes.__init__": ""},
    )
    recipe = (Path(upge.__file__).parents[1] / "recipes" / "grpo.yaml").read_text()
    (site.folder / "more_recipes" / "other.yaml").write_text(recipe.replace("name: grpo", "name: other"))
    assert mask_of(upge.load("other")) == "upge_parts.masks.clip"


def test_a_run_keeps_the_parts_that_it_had(tmp_path: Path, site: Site) -> None:
    folder = train(upge.load(tiny.recipe(tmp_path), [f"log.folder={tmp_path}/run", "train.save_every=1"]))
    before = upge.load(folder / "recipe.yaml")
    site.install("theirs", PARTS, {"theirs": THEIRS})
    after = upge.load(folder / "recipe.yaml")
    assert after == before
    assert RunFolder(folder, writes=False).resolved(after) != (folder / "recipe.yaml").read_text(), "which says whose"
    assert changed(after, RunReader(folder)) == []
    kept, full = (folder / "recipe.yaml").read_text(), RunFolder(folder, writes=False).resolved(after)
    (folder / "recipe.yaml").write_text(full)
    assert changed(before, RunReader(folder)) == [], "nor does it matter what was installed when it began"
    (folder / "recipe.yaml").write_text(kept)
    (folder / "manifest.json").unlink()
    with pytest.raises(upge.RecipeError, match="2 packages define"):
        upge.load(folder / "recipe.yaml")
