"""The table of recipes, and that of what reduces to what."""

from __future__ import annotations

from pathlib import Path

import upge
from upge.describe.table import table

ROOT = Path(__file__).resolve().parents[2]

RECIPES = """\
# {title}

Every algorithm is one file. `python docs/tables.py` makes this table from the files. A row is one term of

    ∇J = Σ_terms Σ_t  weight · s(prompt) · n_t · mask_t · (π_θ/π_ref)_t · Â_t · ∇log π_θ(t)

A part's parameters are shown only where they differ from their defaults. `upge explain recipes/grpo.yaml` prints a
recipe with all parameters and with the parts' formulas. [What reduces to what]({docs}reductions.md) lists the recipes
that are the same, and when. [The lab]({docs}lab.md) has the results of each recipe.

"""

INVENTIONS = """
## Inventions

The folder `invent` has recipes that bring parts of their own: at most two, each of at most 20 lines beside its
documentation, in the Python file beside the recipe. They show what a part can say; [Invent an
estimator]({docs}invent.md#recipes-with-parts-of-their-own) explains them. A recipe with such a file needs
`--allow-code`, as in `upge run recipes/invent/clip_cov.yaml --allow-code`.

"""

REDUCTIONS = """\
# What reduces to what

The two estimators in a row have the same gradient under the condition of that row. Every row is a test:
`tests/estimator/test_reductions.py` checks it on random batches in float64. `python docs/tables.py` makes this page
from that test's data.

| estimator | is | when |
|---|---|---|
"""


def recipes_page() -> str:
    """recipes/README.md."""
    return _recipes("Recipes", docs="../docs/", recipes="")


def methods_page() -> str:
    """docs/methods.md: the same table, for the site."""
    return _recipes("The methods", docs="", recipes="../recipes/")


def _recipes(title: str, *, docs: str, recipes: str) -> str:
    """The page, with the way from it to the other pages and to the recipes."""
    shipped, invented = (_table(folder, recipes) for folder in (ROOT / "recipes", ROOT / "recipes" / "invent"))
    return RECIPES.format(title=title, docs=docs) + shipped + INVENTIONS.format(docs=docs) + invented


def _table(folder: Path, recipes: str) -> str:
    """The recipes of a folder; `recipes` is the way from the page to `recipes/`."""
    files = sorted(folder.glob("*.yaml"))
    names = [recipes + file.relative_to(ROOT / "recipes").as_posix() for file in files]
    return table({name: upge.load(file, allow_code=True) for name, file in zip(names, files, strict=True)})


def reductions_page() -> str:
    """docs/reductions.md."""
    from support.reduction_table import REDUCTIONS as LINES  # the tests' folder is on the path only when pages are made

    return REDUCTIONS + "".join(f"| {line.this} | {line.that} | {line.when} |\n" for line in LINES)
