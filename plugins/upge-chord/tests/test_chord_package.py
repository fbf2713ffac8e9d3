"""The package as its users meet it: found by name, run by the command, written with public names alone."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import upge
import upge.testing
import upge_chord

RECIPES = ("chord_mu", "chord_phi")
SMALL = ("train.steps=2", "train.prompts=4", "train.minibatches=2", "eval.splits=[]")
FOLDER = Path(upge_chord.__file__).parent
MODULES = sorted([*FOLDER.rglob("*.py"), *Path(__file__).parent.glob("*.py")])


def names_of_upge(path: Path) -> Iterator[str]:
    """`module.name` of every name of upge that a file imports or takes from `upge` itself."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "upge":
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.startswith("upge."))
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "upge":
            yield f"upge.{node.attr}"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.name)
def test_only_public_names_are_used(path: Path) -> None:
    public = {f"upge.{name}" for name in (*upge.__all__, "testing", "__all__")}
    public |= {f"upge.testing.{name}" for name in upge.testing.__all__}
    assert not set(names_of_upge(path)) - public


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_is_found_by_its_name(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert upge.load(name) == upge.load(f"upge-chord/{name}") == upge.load(FOLDER / "recipes" / f"{name}.yaml")
    assert upge.load(name).name == name


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_runs(name: str, tmp_path: Path) -> None:
    command = [str(Path(sys.executable).parent / "upge"), "run", name, *SMALL, f"log.folder={tmp_path / 'run'}"]
    finished = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["phase"] for line in lines].count("train") == 2
    assert (tmp_path / "run" / "model" / "model.safetensors").is_file()
