"""The packages in plugins/ are other people's kind: distributions of their own, made of public names alone."""

from __future__ import annotations

import ast
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import upge
import upge.testing
from upge import registry

ROOT = Path(__file__).parents[2]
PROJECTS = sorted((ROOT / "plugins").glob("*/pyproject.toml"))
PUBLIC = {f"upge.{name}" for name in upge.__all__} | {f"upge.testing.{name}" for name in upge.testing.__all__}
every_project = pytest.mark.parametrize("project", PROJECTS, ids=lambda path: path.parent.name)


def stated(project: Path) -> dict[str, Any]:
    """The [project] table."""
    table: dict[str, Any] = tomllib.loads(project.read_text(encoding="utf-8"))["project"]
    return table


def package(project: Path) -> Path:
    """The folder of its one package: `plugins/upge-chord/upge_chord`."""
    return project.parent / project.parent.name.replace("-", "_")


def names_of_upge(source: str) -> Iterator[str]:
    """`module.name` of each name of upge that a module imports, or takes from `upge` itself."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "upge":
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.startswith("upge."))
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "upge":
            yield f"upge.{node.attr}"


def test_there_are_some() -> None:
    assert {"upge-chord", "upge-gmpo"} <= {project.parent.name for project in PROJECTS}


MODULES = [path for project in PROJECTS for path in sorted(package(project).rglob("*.py"))]


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT / "plugins")))
def test_a_package_uses_only_the_public_names(path: Path) -> None:
    private = set(names_of_upge(path.read_text(encoding="utf-8"))) - PUBLIC
    assert not private, f"uses {', '.join(sorted(private))}: not in upge.__all__, nor in upge.testing.__all__"


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("from upge import Mask, View", {"upge.Mask", "upge.View"}),
        ("from upge.estimator.batch import Batch", {"upge.estimator.batch.Batch"}),
        ("import upge.part as p", {"upge.part"}),
        ("import upge\nclass M(upge.Mask): x = upge.estimator.batch.Batch", {"upge.Mask", "upge.estimator"}),
        ("def f():\n    from upge.train import trainer", {"upge.train.trainer"}),
        ("from upgerade import x\nimport torch", set()),
    ],
)
def test_every_way_to_a_name_is_seen(source: str, found: set[str]) -> None:
    assert set(names_of_upge(source)) == found


@every_project
def test_a_package_is_a_distribution_of_its_own(project: Path) -> None:
    table = stated(project)
    assert table["name"] == project.parent.name
    assert table["dependencies"] == ["upge"]
    assert table["optional-dependencies"]["test"] == ["upge[test]"]
    assert table["license"] == "Apache-2.0"
    assert (project.parent / table["readme"]).stat().st_size > 0
    assert (project.parent / "LICENSE").read_bytes() == (ROOT / "LICENSE").read_bytes()
    assert (package(project) / "py.typed").is_file()
    assert list((project.parent / "tests").glob("test_*.py"))


@every_project
def test_what_a_package_offers_is_there(project: Path) -> None:
    for group, entries in stated(project)["entry-points"].items():
        for target in entries.values():
            module, _, name = target.partition(":")
            path = project.parent.joinpath(*module.split("."))
            if group == registry.RECIPES:
                assert list(path.glob("*.yaml")), target
                continue
            assert group.removeprefix(registry.GROUP) in registry.slots()
            tree = ast.parse(path.with_suffix(".py").read_text(encoding="utf-8"))
            assert name in {node.name for node in tree.body if isinstance(node, ast.ClassDef)}, target
