"""Writes the generated pages: `python docs/tables.py`. `tests/test_tables.py` holds that they are current."""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))

RECIPES = """\
# Recipes

Every algorithm is one file. This table is made from the files by `python docs/tables.py`; a row is a term of

    ∇J = Σ_terms Σ_t  weight · s(prompt) · n_t · mask_t · (π_θ/π_ref)_t · Â_t · ∇log π_θ(t)

A part's parameters stand here only where they differ from their defaults; `upge explain recipes/grpo.yaml` prints a
recipe with all of them and with the parts' formulas. What each reduces to, and when, is in
[docs/reductions.md](../docs/reductions.md); what each does on the lab in [docs/lab.md](../docs/lab.md).

"""

REDUCTIONS = """\
# What reduces to what

Two estimators in a line have the same gradient under its condition. Every line is a test: `tests/test_reductions.py`
checks it on random batches in float64. This page is made from that test's data by `python docs/tables.py`.

| estimator | is | when |
|---|---|---|
"""


def recipes() -> str:
    """recipes/README.md."""
    import upge
    from upge.recipe.table import table

    files = sorted((ROOT / "recipes").glob("*.yaml"))
    return RECIPES + table({file.name: upge.load(file) for file in files})


def reductions() -> str:
    """docs/reductions.md."""
    from reductions import REDUCTIONS as LINES

    return REDUCTIONS + "".join(f"| {line.this} | {line.that} | {line.when} |\n" for line in LINES)


PAGES = {ROOT / "recipes" / "README.md": recipes, ROOT / "docs" / "reductions.md": reductions}


if __name__ == "__main__":
    for path, page in PAGES.items():
        path.write_text(page(), encoding="utf-8")
        print(path.relative_to(ROOT))
