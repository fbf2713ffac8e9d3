"""`upge bench`: repeatable measurements, as ratios of times from one run."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from upge.cli.app import app

if TYPE_CHECKING:
    from upge.bench.timing import Table

bench = typer.Typer(
    no_args_is_help=True,
    help="Measure speed and memory: ratios of times that alternate within one run, with their spread.",
)
app.add_typer(bench, name="bench")

WIDE = 120
"""Columns of a table that goes to a file or another program."""

Prompts = Annotated[int, typer.Option(min=1, help="Prompts of a step.")]
Samples = Annotated[int, typer.Option(min=2, help="Responses to each prompt.")]
PromptTokens = Annotated[int, typer.Option(min=1, help="A prompt's length, give or take an eighth.")]
Shortest = Annotated[int, typer.Option(min=1, help="The shortest response, tokens.")]
Longest = Annotated[int, typer.Option(min=1, help="The longest response, tokens.")]
Seed = Annotated[int, typer.Option(min=0, help="Seed of lengths and texts.")]
Repeats = Annotated[int, typer.Option(min=1, help="Measured rounds; the medians are shown.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the numbers as JSON.")]


def show(table: Table, *, as_json: bool) -> None:
    """Print a table to standard output."""
    if as_json:
        typer.echo(json.dumps(dict(table.facts), indent=2))
        return
    from rich.console import Console
    from rich.table import Table as Drawn

    drawn = Drawn(*table.columns, title=table.title, title_justify="left")
    for row in table.rows:
        drawn.add_row(*row)
    console = Console(highlight=False, markup=False, width=None if sys.stdout.isatty() else WIDE)
    console.print(drawn)
    for note in table.notes:
        console.print(note, soft_wrap=True)


@bench.command()
def trl(
    prompts: Prompts = 4,
    samples: Samples = 8,
    prompt_tokens: PromptTokens = 128,
    shortest: Shortest = 16,
    longest: Longest = 128,
    signal: Annotated[float, typer.Option(min=0, max=1, help="The share of prompts with unequal rewards.")] = 0.5,
    batch_size: Annotated[
        int | None,
        typer.Option(min=1, help="Completions of TRL's micro-batches; by default the fastest of 4, 8, 16 and 32."),
    ] = None,
    seed: Seed = 0,
    repeats: Repeats = 5,
    as_json: AsJson = False,
) -> None:
    """Compare a training step with TRL's GRPOTrainer: gradients first, then time and peak memory."""
    from upge.bench.trl import measure
    from upge.bench.work import Work

    work = Work(prompts, samples, prompt_tokens, shortest, longest, signal, seed)
    show(measure(work, repeats=repeats, batch_size=batch_size), as_json=as_json)


@bench.command()
def step(
    prompts: Prompts = 4,
    samples: Samples = 8,
    prompt_tokens: PromptTokens = 128,
    shortest: Shortest = 16,
    longest: Longest = 128,
    seed: Seed = 0,
    repeats: Repeats = 5,
    as_json: AsJson = False,
) -> None:
    """Compare a step that computes each prompt once with one that repeats it, and with plain matrix products."""
    from upge.bench.step import measure
    from upge.bench.work import Work

    work = Work(prompts, samples, prompt_tokens, shortest, longest, signal=1.0, seed=seed)
    show(measure(work, repeats=repeats), as_json=as_json)


@bench.command()
def scaling(
    prompts: Prompts = 2,
    samples: Samples = 4,
    prompt_tokens: PromptTokens = 64,
    response_tokens: Annotated[int, typer.Option(min=2, help="Every response's length before it grows.")] = 32,
    vocabulary: Annotated[int, typer.Option(min=64, help="The model's vocabulary before it grows.")] = 4096,
    hidden: Annotated[int, typer.Option(min=64, help="The model's width; SmolLM2-135M's is 576.")] = 192,
    layers: Annotated[int, typer.Option(min=1, help="Its layers; SmolLM2-135M has 30.")] = 4,
    plot: Annotated[Path | None, typer.Option(dir_okay=False, help="An SVG file for the curves.")] = None,
    seed: Seed = 0,
    repeats: Repeats = 5,
    as_json: AsJson = False,
) -> None:
    """Measure how a step's time and memory grow with prompts, response length, rollouts of a prompt, and vocabulary."""
    from upge.bench.scaling import measure, shape
    from upge.bench.work import Work

    lengths = (prompt_tokens, response_tokens, response_tokens)
    work = Work(prompts, samples, *lengths, signal=1.0, seed=seed, shape=shape(hidden, layers, vocabulary))
    show(measure(work, repeats=repeats, plot=plot), as_json=as_json)


@bench.command()
def estimator(
    repeats: Repeats = 15,
    step: Annotated[bool, typer.Option(help="Whether a SmolLM2-sized training step is timed too.")] = True,
    as_json: AsJson = False,
) -> None:
    """Compare a loss made of parts with one written by hand, on the same log-probs."""
    from upge.bench.estimator import measure

    show(measure(repeats=repeats, step=step), as_json=as_json)


@bench.command()
def head(
    tokens: Annotated[int, typer.Option(min=1, help="Response tokens of a micro-batch.")] = 1024,
    vocabulary: Annotated[int, typer.Option(min=1, help="Rows of the head's weight; 49152 is SmolLM2's.")] = 49152,
    hidden: Annotated[int, typer.Option(min=1, help="Its columns; 576 is SmolLM2-135M's.")] = 576,
    repeats: Repeats = 5,
    as_json: AsJson = False,
) -> None:
    """Compare the streaming head with log-softmax of whole logits, and with its matrix products alone."""
    from upge.bench.head import measure

    show(measure(tokens=tokens, vocabulary=vocabulary, hidden=hidden, repeats=repeats), as_json=as_json)


@bench.command()
def lab(
    steps: Annotated[int, typer.Option(min=1, help="Rollout batches; the recipe has 64.")] = 8,
    repeats: Repeats = 5,
    as_json: AsJson = False,
) -> None:
    """Compare the lab's hpt recipe with a bare loop of as many samples and updates."""
    from upge.bench.lab import measure

    show(measure(steps=steps, repeats=repeats), as_json=as_json)


@bench.command()
def rollouts(
    model: Annotated[
        str | None, typer.Option(help="As model.path; without it random, of SmolLM2-135M's shape.")
    ] = None,
    prompts: Annotated[int, typer.Option(min=1, help="Prompts, of 16 to 128 tokens.")] = 8,
    samples: Annotated[int, typer.Option(min=1, help="Responses to each prompt.")] = 8,
    max_tokens: Annotated[int, typer.Option(min=2, help="The longest response, tokens; about half is usual.")] = 128,
    engine: Annotated[str | None, typer.Option(help="Another engine to time too, as rollout.engine: vllm.")] = None,
    repeats: Repeats = 5,
    as_json: AsJson = False,
) -> None:
    """Compare the transformers engine with plain `generate` on responses of equal lengths, and with other engines."""
    from upge.bench.rollouts import Demand, measure, named

    demand, other = Demand(prompts, samples, max_tokens=max_tokens), None if engine is None else named(engine)
    show(measure(demand, model=model, other=other, repeats=repeats), as_json=as_json)


@bench.command()
def start(repeats: Repeats = 5, as_json: AsJson = False) -> None:
    """Measure the start of `upge`, beside Python alone and the import of torch."""
    from upge.bench.start import measure

    show(measure(repeats=repeats), as_json=as_json)


@bench.command()
def resume(
    kills: Annotated[int, typer.Option(min=1, help="The total number of kills.")] = 30,
    steps: Annotated[int, typer.Option(min=2, help="Rollout batches of a run.")] = 12,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the kills' moments.")] = 0,
    recipe: Annotated[str, typer.Option(help="The recipe, made small; its model should be small.")] = "bench/resume",
    as_json: AsJson = False,
) -> None:
    """Kill runs at random moments, resume them, and compare every byte with an uninterrupted run."""
    from upge.bench.resume import measure

    table = measure(kills=kills, steps=steps, seed=seed, recipe=recipe)
    show(table, as_json=as_json)
    if table.facts["equal"] != table.facts["kills"]:
        raise typer.Exit(1)
