"""What makes the generated pages: `python docs/tables.py` writes them.

tests/house/test_generated_pages.py compares the files with what it would write.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from pathlib import Path

from generate.blocks import recipe_page
from generate.metrics import metrics_page
from generate.slots import TITLES, slot_page
from generate.tables import methods_page, recipes_page, reductions_page

ROOT = Path(__file__).resolve().parents[2]
REFERENCE = ROOT / "docs" / "reference"

PAGES: Mapping[Path, Callable[[], str]] = {
    ROOT / "recipes" / "README.md": recipes_page,
    ROOT / "docs" / "methods.md": methods_page,
    ROOT / "docs" / "reductions.md": reductions_page,
    REFERENCE / "recipe.md": recipe_page,
    **{REFERENCE / f"{slot}.md": functools.partial(slot_page, slot) for slot in TITLES},
    REFERENCE / "metrics.md": metrics_page,
}
"""Every generated page: its file, and what makes its text."""
