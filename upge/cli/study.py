"""`upge study`: bias and variance of recipes' estimators, where the exact gradient is known."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from upge.cli.app import FAILED, app
from upge.cli.arguments import AllowCode
from upge.tables import folding

if TYPE_CHECKING:
    from rich.table import Table

    from upge.estimator.estimator import Estimator
    from upge.estimator.part_errors import PartError
    from upge.recipe.compose import Composed
    from upge.recipe.schema import Recipe
    from upge.study.exact import World
    from upge.study.study import Finding, Row


class Policy(StrEnum):
    """The kind of policy."""

    table = "table"
    transformer = "transformer"


Recipes = Annotated[list[str], typer.Argument(metavar="RECIPE...", help="Recipe files, or names of shipped ones.")]
Mus = Annotated[
    list[float] | None, typer.Option("--mu", help="μ of J = E[r] − μ·KL(π_β‖π); may be given several times.")
]
Success = Annotated[
    list[float] | None, typer.Option("--success", help="A prompt's share of right answers; once for each prompt.")
]


@app.command()
def study(
    recipes: Recipes,
    mu: Mus = None,
    success: Success = None,
    prompts: Annotated[int, typer.Option(min=1, help="Prompts of a batch.")] = 4,
    n: Annotated[int, typer.Option("--n", min=1, help="Rollouts of each prompt.")] = 8,
    stale: Annotated[int, typer.Option(min=0, help="Updates since the policy that sampled.")] = 0,
    step: Annotated[int, typer.Option(min=0, help="The rollout batch's index, which schedules read.")] = 0,
    policy: Annotated[Policy, typer.Option(help="A table of softmaxes, or one layer of a transformer.")] = Policy.table,
    vocabulary: Annotated[int, typer.Option(min=2, help="Tokens, the stop token included.")] = 3,
    length: Annotated[int, typer.Option(min=1, help="The longest sequence.")] = 3,
    rate: Annotated[float, typer.Option(help="The length of each update along the exact gradient.")] = 1.0,
    draws: Annotated[int, typer.Option(min=40, help="Batches to draw if not all can be enumerated.")] = 200,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the draws.")] = 0,
    sweep: Annotated[bool, typer.Option(help="Whether prompts, n, staleness and success are varied too.")] = True,
    output: Annotated[Path | None, typer.Option("--output", help="Also write a page with curves (HTML).")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the numbers as JSON.")] = False,
    allow_code: AllowCode = False,
) -> None:
    """Compare each recipe's gradient with the exact one: bias, variance and error, on a small enumerable policy."""
    import torch

    from upge.study.exact import Setting
    from upge.study.study import SWEEPS, Case, remarks
    from upge.study.study import study as studied

    torch.set_num_threads(1)  # tensors of a few hundred numbers
    loaded = [_loaded(path, length, allow_code=allow_code) for path in recipes]
    estimators = _estimators([recipe for recipe, _ in loaded])
    case = Case(_world(success, vocabulary, length), Setting(prompts, n, step), stale, policy.value, rate, draws, seed)
    faults: dict[str, PartError] = {}
    rows = list(studied(estimators, case, mu or [0.0, 0.1], SWEEPS if sweep else {}, faults))
    whole = {name: estimator for name, estimator in estimators.items() if name not in faults}
    if output is not None and rows:
        _write(rows, output)
    for remark in remarks(whole, case):
        typer.echo(remark, err=True)
    _print(rows, faults, as_json=as_json)
    _refuse(loaded, faults)


def _refuse(loaded: Sequence[tuple[Recipe, Composed]], faults: Mapping[str, PartError]) -> None:
    """Report what parts have raised, and exit 1; nothing where none has."""
    for name, composed in ((recipe.name, composed) for recipe, composed in loaded if recipe.name in faults):
        typer.echo(f"{name}: {_placed(faults[name], composed)}", err=True)
    if faults:
        raise typer.Exit(FAILED)


def _write(rows: Sequence[Row], output: Path) -> None:
    """Write the page of a study."""
    from upge.report.study import write_study

    typer.echo(f"wrote {write_study(rows, output)}", err=True)


def _print(rows: Sequence[Row], faults: Mapping[str, PartError], *, as_json: bool) -> None:
    """Print the numbers of a study, and which recipes have none."""
    if as_json:
        failed = [{"recipe": name, "fault": str(error)} for name, error in faults.items()]
        typer.echo(json.dumps([*map(_plain, rows), *failed], indent=2))
        return
    from rich.console import Console

    Console(highlight=False, markup=False).print(*_tables(rows, list(faults)))


def _estimators(recipes: Sequence[Recipe]) -> dict[str, Estimator]:
    """The estimators by their recipes' names. Raises InputError where two have the same."""
    from upge.errors import InputError

    estimators = {recipe.name: recipe.estimator for recipe in recipes}
    if len(estimators) < len(recipes):
        raise InputError("two of these recipes have the same name; give each another name")
    return estimators


def _world(success: Sequence[float] | None, vocabulary: int, length: int) -> World:
    """The small world of these options. Raises InputError."""
    from upge.errors import InputError
    from upge.study.exact import World

    try:
        return World(tuple(success) if success else World.success, vocabulary, length)
    except ValueError as error:
        raise InputError(f"study: {error}") from error


def _placed(error: PartError, composed: Composed) -> str:
    """A part's error, at the line of the recipe that names the part."""
    from upge.cli.arguments import located
    from upge.estimator.part_errors import PartError

    try:
        with located(composed):
            raise error
    except PartError as placed:
        return str(placed)


def _loaded(name: str, length: int, *, allow_code: bool) -> tuple[Recipe, Composed]:
    """The recipe, with the longest sequence for its completion budget, so that what follows that, a constant reduction
    say, follows the sequences of the study. A recipe that is invalid with this budget keeps its own."""
    from upge.recipe.faults import RecipeError
    from upge.recipe.resolve import load_composed

    whole, composed = load_composed(name, allow_code=allow_code)
    try:
        return load_composed(name, [f"rollout.max_tokens={length}"], allow_code=allow_code)
    except RecipeError as error:
        kept = f"{whole.name}: keeps its own rollout.max_tokens, {whole.rollout.max_tokens}"
        typer.echo(f"{kept}; with the study's --length, {length}: {error.faults[0].message}", err=True)
        return whole, composed


def _tables(rows: Sequence[Row], failed: Sequence[str] = ()) -> list[Table]:
    """The centre with everything, then for each sweep the error and, in brackets, the bias."""
    tables = [_centre([row for row in rows if row.varied is None], failed)]
    for what in dict.fromkeys(row.varied for row in rows if row.varied):
        tables += [
            _sweep(what, mu, [row for row in rows if row.varied == what and row.mu == mu])
            for mu in dict.fromkeys(row.mu for row in rows)
        ]
    return tables


def _centre(rows: Sequence[Row], failed: Sequence[str]) -> Table:
    table = _table("Against the exact gradient", ["μ", "recipe", "scale", "bias", "variance", "error²", "cosine"])
    for row in sorted(rows, key=lambda row: row.mu):
        finding = row.finding
        numbers = (finding.scale, finding.bias, finding.variance, finding.error, finding.cosine)
        table.add_row(f"{row.mu:g}", row.recipe, *map(str, numbers))
    for name in failed:
        table.add_row("", name, "failed")
    return table


def _sweep(what: str, mu: float, rows: Sequence[Row]) -> Table:
    values = list(dict.fromkeys(row.value for row in rows))
    table = _table(f"error² (bias) at μ = {mu:g}, by {what}", ["recipe", *(f"{value:g}" for value in values)])
    for recipe in dict.fromkeys(row.recipe for row in rows):
        findings = {row.value: row.finding for row in rows if row.recipe == recipe}
        cells = (_cell(findings.get(value)) for value in values)
        table.add_row(recipe, *cells)
    return table


def _cell(finding: Finding | None) -> str:
    """The error and the bias; nothing of a case that wasn't reached."""
    return "" if finding is None else f"{finding.error.value:.2f} ({finding.bias.value:.2f})"


def _table(title: str, columns: Sequence[str]) -> Table:

    table = folding(title=title, title_justify="left")
    for column in columns:
        table.add_column(column, justify="left" if column == "recipe" else "right")
    return table


def _plain(row: Row) -> dict[str, object]:
    numbers = {name: value for name, value in vars(row.finding).items() if name != "exact"}
    return {
        "recipe": row.recipe,
        "mu": row.mu,
        "varied": row.varied,
        "value": row.value,
        "exact": row.finding.exact,
        **{name: vars(number) for name, number in numbers.items()},
    }
