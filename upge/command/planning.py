"""`--dry-run`: what a run would take, in place of the run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from upge.recipe import Composed, Recipe

DryRun = Annotated[bool, typer.Option("--dry-run", help="Show what the run would take, offline, and do nothing.")]
Processes = Annotated[
    int | None,
    typer.Option(min=1, help="How many processes of this machine run it; with --dry-run: how many ranks are planned."),
]
Config = Annotated[Path | None, typer.Option(help="With --dry-run: a config.json in place of the model's own.")]
PromptTokens = Annotated[int | None, typer.Option(min=1, help="With --dry-run: the longest prompt; 1024 by default.")]


def check_given(dry_run: bool, config: Path | None, prompt_tokens: int | None) -> None:
    """Raise InputError where an option of `--dry-run` stands without it."""
    from upge.errors import InputError

    given = {"--config": config, "--prompt-tokens": prompt_tokens}
    for name, value in given.items():
        if value is not None and not dry_run:
            raise InputError(f"{name} goes with --dry-run")


def show_plan(
    recipe: Recipe, composed: Composed, processes: int | None, config: Path | None, prompt_tokens: int | None
) -> None:
    """Print the plan of a recipe on stdout. Raises RecipeError with the place of what would fail."""
    from rich.console import Console

    from upge.planning import plan
    from upge.planning.showing import show

    planned = plan(recipe, composed, processes=processes, config=config, prompt_tokens=prompt_tokens)
    show(planned, Console(highlight=False, markup=False))
