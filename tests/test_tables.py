"""The generated pages are those that the recipes and the tests' data give today."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SPEC = importlib.util.spec_from_file_location("tables", ROOT / "docs" / "tables.py")
assert SPEC is not None
assert SPEC.loader is not None
tables = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(tables)


@pytest.mark.parametrize("path", tables.PAGES, ids=lambda path: path.name)
def test_the_page_is_current(path: Path) -> None:
    assert path.read_text(encoding="utf-8") == tables.PAGES[path](), "run python docs/tables.py"


def test_every_recipe_and_every_term_has_a_row() -> None:
    rows = [row for row in (ROOT / "recipes" / "README.md").read_text().splitlines() if row.startswith("| [")]
    assert len(rows) == len(list((ROOT / "recipes").glob("*.yaml")))
