"""`upge eval`: measure a model, or existing responses."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from upge.cli.app import INTERRUPTED, app
from upge.cli.arguments import AllowCode, Overrides, Processes
from upge.errors import Terminated
from upge.tables import fixed, folding

if TYPE_CHECKING:
    from upge.evaluate.evaluation import Evaluation
    from upge.recipe.schema import Recipe

What = Annotated[
    str | None,
    typer.Argument(metavar="MODEL_OR_RUN", help="A run folder, a model's folder, a Hub id, or package:folder."),
]
RecipeOption = Annotated[
    str | None, typer.Option("--recipe", help="The recipe of data, reward, rollout and eval; by default the run's own.")
]
Data = Annotated[
    str | None,
    typer.Option("--data", help="Other data, with the recipe's template: a .jsonl or .parquet file, or a source."),
]
Completions = Annotated[
    Path | None, typer.Option("--completions", help="Score the responses in this file; no model is loaded.")
]
Output = Annotated[
    Path | None, typer.Option("--output", help="The folder to write; by default evaluations/RECIPE/MODEL.")
]
Resume = Annotated[Path | None, typer.Option("--resume", help="Resume the evaluation in this folder.")]
Precision = Annotated[
    Literal["float32", "bfloat16", "float16"] | None,
    typer.Option(
        "--precision", help="The type of the forward pass, by autocast; by default the recipe's train.precision."
    ),
]
Chunk = Annotated[int | None, typer.Option("--chunk", min=1, help="Responses sampled at once; by default 4096.")]

_OVERRIDE = re.compile(r"[\w.]+=")


@app.command("eval")
def evaluate(
    model: What = None,
    overrides: Overrides = None,
    recipe: RecipeOption = None,
    data: Data = None,
    completions: Completions = None,
    output: Output = None,
    resume: Resume = None,
    chunk: Chunk = None,
    precision: Precision = None,
    processes: Processes = None,
    allow_code: AllowCode = False,
) -> None:
    """Measure a model on a recipe's data: avg@n, pass@k, maj@n, with intervals, in all and by band."""
    from upge.cli.arguments import located
    from upge.distributed.launcher import due, launch
    from upge.recipe.resolve import load, load_composed

    model, changes = _model_and_overrides(model, overrides or [], completions)
    changes += [f"train.precision={precision}"] if precision else []
    _check(output, resume, completions, changes)
    named = recipe or _own_recipe(model)
    if data is not None:
        changes = [*_data(data, load(named, _overrides(model, []), allow_code=allow_code)), *changes]
    settings, composed = load_composed(named, _overrides(model, changes), allow_code=allow_code)
    if due(processes):
        raise typer.Exit(launch(processes or 1, sys.argv[1:]))
    from upge.evaluate import evaluation
    from upge.evaluate.measurement import CHUNK

    folder = resume or output or Path("evaluations") / settings.name / _name_of(model)
    show = _Progress()
    size = chunk or CHUNK
    with located(composed), _interrupted(show):
        if completions is not None:
            result = evaluation.evaluate_completions(settings, folder, completions, chunk=size, show=show)
        else:
            result = evaluation.evaluate_model(settings, folder, resume=resume is not None, chunk=size, show=show)
    if os.environ.get("RANK", "0") == "0":
        _print(result)


def _model_and_overrides(model: str | None, overrides: list[str], completions: Path | None) -> tuple[str, list[str]]:
    """The model and the overrides; with `--completions` the model may be left out, and is the file's folder then."""
    from upge.errors import InputError

    if completions is not None and (model is None or _OVERRIDE.match(model)):
        return str(completions.parent), [*([] if model is None else [model]), *overrides]
    if model is None or _OVERRIDE.match(model):
        raise InputError("name the model first: a run folder, a model's folder, a Hub id, or package:folder")
    return model, overrides


def _check(output: Path | None, resume: Path | None, completions: Path | None, overrides: list[str]) -> None:
    from upge.errors import InputError

    if resume is not None and (output is not None or completions is not None):
        other = "--output" if output is not None else "--completions"
        raise InputError(f"--resume continues in its folder with the model; leave out {other}")
    if resume is not None and not resume.is_dir():
        raise InputError(f"--resume: there is no evaluation folder '{resume}'")
    for override in overrides:
        if override.startswith(("log.", "log=")):
            raise InputError(f"{override}: an evaluation's folder is --output")
        if override.startswith(("model=", "model.path=")):
            raise InputError(f"{override}: the model is named first, before the overrides")


def _own_recipe(model: str) -> str:
    from upge.errors import InputError
    from upge.runs.reader import RunReader

    files = RunReader(Path(model).expanduser())
    if files.has_recipe:
        return str(files.recipe_file)
    raise InputError(f"{model}: has no recipe.yaml; pass the recipe to evaluate it on: --recipe RECIPE")


def _overrides(model: str, overrides: list[str]) -> list[str]:
    """The overrides with an evaluation's own after the user's, so that messages count the user's from 1.

    Of the recipe's model only what it is run in stays; the rest says how another one came to be.
    """
    from upge.recipe.schema import Model

    others = [f"model.{key}" for key in Model.model_fields if key not in ("path", "dtype", "attention")]
    removed = [key for key in others if not any(re.match(rf"{re.escape(key)}[.=]", override) for override in overrides)]
    settled = ["abstract=false", f"model.path={json.dumps(model)}", "log.folder='runs/{name}'"]
    return [*overrides, *settled, *(f"{key}=null" for key in removed)]


def _data(value: str, recipe: Recipe) -> list[str]:
    """The overrides of `--data`: the source, also from a file's name, with the recipe's template and system prompt.

    Of a file the split to measure is called as it is.
    """
    use = {".jsonl": "jsonl", ".parquet": "parquet"}.get(Path(value).suffix)
    settled = {f"data.{key}": getattr(recipe.data, key) for key in ("template", "system")}
    kept = [f"{key}={json.dumps(text)}" for key, text in settled.items() if text is not None]
    if use is None:
        return ["data=null", f"data={value}", *kept]
    name = Path(value).stem
    block = {"use": use, "path": value, "evaluation": {name: value}}
    return ["data=null", f"data={json.dumps(block)}", *kept, f"eval.splits={json.dumps([name])}"]


def _name_of(model: str) -> str:
    """The last name in a model's path: `runs/hpt` → hpt, `package:folder/inside` → inside."""
    last = re.split(r"[/:\\]", str(Path(model).expanduser().resolve()) if model.startswith(".") else model.rstrip("/"))
    return last[-1] or "model"


@contextmanager
def _interrupted(show: _Progress) -> Iterator[None]:
    """Report Ctrl-C and SIGTERM, with the command to resume if responses were sampled."""
    try:
        yield
    except Terminated:
        typer.echo(f"terminated{show.resume_hint()}", err=True)
        raise
    except KeyboardInterrupt:
        typer.echo(f"interrupted{show.resume_hint()}", err=True)
        raise typer.Exit(INTERRUPTED) from None


class _Progress:
    """Prints the progress on stderr: at the beginning, at the end, and about twenty times between."""

    def __init__(self) -> None:
        self.said = -1
        self.folder: Path | None = None
        self.done = self.total = 0

    def resume_hint(self) -> str:
        """The message with the progress and the command to resume."""
        if self.folder is None:
            return " before the first response"
        again = f"; to resume, add --resume {self.folder} to the command, in place of --output"
        return f" after {self.done} of {self.total} responses, which are in {self.folder}{again}"

    def __call__(self, folder: Path, done: int, total: int) -> None:
        self.folder, self.done, self.total = folder, done, total
        if self.said < 0:
            typer.echo(f"evaluation folder: {folder}", err=True)
        share = 20 * done // max(total, 1)
        if share != self.said:
            self.said = share
            typer.echo(f"{done}/{total} responses", err=True)


def _print(evaluation: Evaluation) -> None:
    from rich.console import Console

    from upge.files import shown

    table = folding()
    table.add_column("measured on")
    table.add_column("score")
    for column in ("mean", "95 % interval", "problems"):
        table.add_column(column, justify="right")
    for place, scores in evaluation.scores.items():
        for name, it in scores.items():
            digits = 1 if name == "length" else 3
            interval = f"{fixed(it.low, digits)} … {fixed(it.high, digits)}"
            table.add_row(shown(place), name, fixed(it.value, digits), interval, str(evaluation.problems[place]))
    Console(highlight=False, markup=False).print(table)
    if not evaluation.answered:
        typer.echo("no maj@n: the reward's session has no `answer`", err=True)
