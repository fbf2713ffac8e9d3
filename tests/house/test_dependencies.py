"""What upge imports is what pyproject.toml declares, and what a plain install brings is imported."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from collections.abc import Iterable, Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
OURS = {"upge", "upge_parts"}
BROUGHT = {"pydantic_core": "pydantic", "sympy": "math-verify"}
"""Modules whose distribution another one is made of."""
MODULES = {"ruamel": "ruamel.yaml"}
"""Modules whose distribution has another name."""


def names(requirements: Iterable[str]) -> set[str]:
    return {re.split(r"[<>=!~\[]", each)[0].strip() for each in requirements}


def modules(tree: ast.AST) -> Iterator[str]:
    """The top-level modules that a file imports, also within functions."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield (node.module or "").partition(".")[0]


def imported(*folders: str) -> dict[str, str]:
    """The distributions that the files of these folders import, each with one of the files."""
    files = (file for folder in folders for file in sorted((ROOT / folder).rglob("*.py")))
    pairs = ((module, file.name) for file in files for module in modules(ast.parse(file.read_text())))
    others = ((module, file) for module, file in pairs if module not in sys.stdlib_module_names | OURS)
    return {BROUGHT.get(m) or MODULES.get(m) or m.replace("_", "-"): file for m, file in others}


def test_every_import_is_declared() -> None:
    extras = (each for requirements in PROJECT["optional-dependencies"].values() for each in requirements)
    declared = names(PROJECT["dependencies"]) | names(extras)
    assert {name: file for name, file in imported("upge", "plugins/upge_parts").items() if name not in declared} == {}


def test_every_dependency_is_imported() -> None:
    assert names(PROJECT["dependencies"]) - imported("upge", "plugins/upge_parts").keys() == set()
