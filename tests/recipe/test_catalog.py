"""Recipes by name: those that ship, those that packages bring, and what is said of a name that leads nowhere."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import Site

import upge
from upge import RecipeError
from upge.recipe.catalog import find_recipe, shelved, shipped_recipes

MINE = "extends: grpo.yaml\nname: mine\nabout: mine\n"


def bring(site: Site, package: str = "plug-in", name: str = "mine", folder: str = "plug") -> Path:
    """Install a package that brings one recipe, in a folder without Python."""
    site.install(package, f"[upge.recipes]\nany = {folder}.shelf\n", {f"{folder}.__init__": "raise ImportError"})
    shelf = site.folder / folder / "shelf"
    shelf.mkdir()
    path = shelf / f"{name}.yaml"
    path.write_text(MINE)
    return path


def test_a_package_s_recipe_is_found_by_its_name_and_imports_nothing(site: Site) -> None:
    path = bring(site)
    assert find_recipe("mine") == find_recipe("plug-in/mine") == path
    assert [each.package for each in shelved() if each.name == "mine"] == ["plug-in"]
    assert upge.load("mine").name == "mine"


def test_what_ships_is_found_from_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("grpo", "grpo.yaml", "recipes/grpo.yaml", "upge/grpo"):
        assert find_recipe(name) == shipped_recipes() / "grpo.yaml"
    assert find_recipe("lab/base.yaml") == shipped_recipes() / "lab" / "base.yaml"


def test_a_file_comes_before_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("grpo.yaml").write_text(MINE)
    assert find_recipe("grpo.yaml") == Path("grpo.yaml")


def test_a_name_of_two_packages_has_to_say_whose(site: Site) -> None:
    bring(site, "plug-one", folder="one")
    bring(site, "plug-two", folder="two")
    with pytest.raises(RecipeError, match=r"2 packages have a recipe called 'mine'\n   write one of: plug-one/mine or"):
        find_recipe("mine")
    assert find_recipe("plug-two/mine").parent.parent.name == "two"


def test_a_name_that_leads_nowhere_gets_the_nearest(site: Site) -> None:
    bring(site)
    with pytest.raises(RecipeError, match="did you mean 'hpt_soft'"):
        find_recipe("hpt_sof")
    with pytest.raises(RecipeError, match="did you mean 'mine'"):
        find_recipe("mien")
    with pytest.raises(RecipeError, match="upge list recipes"):
        find_recipe("zzzzzzzz")


@pytest.mark.parametrize("target", ["plug.nowhere", "", "nowhere", "plug:thing", "...", "plug..shelf"])
def test_an_offer_that_leads_nowhere_brings_nothing(site: Site, target: str) -> None:
    site.install("plug-in", f"[upge.recipes]\nany = {target}\n", {"plug.__init__": ""})
    assert {each.package for each in shelved()} >= {"upge"}
    assert "plug-in" not in {each.package for each in shelved()}


@pytest.mark.parametrize("name", ["", ".", "..", "recipes", "a" * 5000, "a\0b", "lab/nothing"])
def test_a_name_that_can_be_none_is_refused(name: str) -> None:
    with pytest.raises(RecipeError):
        upge.load(name)
