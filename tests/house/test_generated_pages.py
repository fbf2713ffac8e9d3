"""The generated pages are those that the parts, the recipes and the tests' data give today."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from generate import PAGES, ROOT

from upge import registry


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_the_page_is_current(path: Path) -> None:
    assert path.read_text(encoding="utf-8") == PAGES[path](), "run python docs/tables.py"


def test_every_recipe_and_every_term_has_a_row() -> None:
    rows = [row for row in (ROOT / "recipes" / "README.md").read_text().splitlines() if row.startswith("| [")]
    files = [path for pattern in ("*.yaml", "invent/*.yaml") for path in (ROOT / "recipes").glob(pattern)]
    assert len(rows) == len(files)


@pytest.mark.parametrize("slot", sorted(registry.slots()))
def test_every_shipped_part_has_an_entry(slot: str) -> None:
    text = (ROOT / "docs" / "reference" / f"{slot}.md").read_text(encoding="utf-8")
    shipped = [offer.name for offer in registry.entries(slot) if offer.package == "upge"]
    assert re.findall(r"^## `(.+)`$", text, flags=re.MULTILINE) == shipped
