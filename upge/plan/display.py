"""A plan as tables."""

from __future__ import annotations

import math
from collections.abc import Iterator

from rich.console import Console
from rich.table import Table

from upge.files import shown
from upge.plan.plan import Plan
from upge.tables import folding

GIB = 2**30


def show(plan: Plan, console: Console) -> None:
    """Print a plan."""
    console.print(f"{plan.recipe.name}: the estimated cost of a run; nothing was opened, downloaded or written")
    console.print("\nthe model", _table(_model(plan)))
    console.print("a rollout batch, at most", _table(_work(plan)))
    console.print(_heading(plan), _memory(plan))
    console.print("GiB besides", _table(_besides(plan)))
    for note in plan.notes:
        console.print(shown(f"note: {note}"), soft_wrap=True, markup=False)


def _model(plan: Plan) -> Iterator[tuple[str, str]]:
    count = plan.count
    yield "config", plan.origin
    yield "parameters", f"{count.parameters:,}"
    yield "trained", f"{count.trained:,}"
    yield "outside the layers", f"{count.outside:,}"
    yield "a layer", f"{count.layer:,}"
    yield "context", "no limit given" if plan.context is None else f"{plan.context:,} tokens"


def _work(plan: Plan) -> Iterator[tuple[str, str]]:
    work, train = plan.work, plan.recipe.train
    yield "prompts", f"{train.prompts:,} of up to {work.prompt:,} tokens"
    if work.rollouts:
        many = f"in {work.sampled:,} of {train.steps:,} rollout batches"
        yield "rollouts", f"{work.rollouts:,} of up to {work.response:,} tokens, {many}"
    if work.demonstrations:
        many = f"in {work.shown:,} of {train.steps:,} rollout batches"
        yield "demonstrations", f"{work.demonstrations:,} of up to {work.demonstration:,} tokens, {many}"
    yield "tokens", f"{work.tokens:,}"
    yield "optimizer steps", f"{work.updates:,}, {work.updates * train.steps:,} in the run"
    yield "micro-batches", f"{work.micro_batches:,} an optimizer step on each rank, rows in each: {work.rows:,}"


def _memory(plan: Plan) -> Table:
    several = plan.processes > 1
    table = folding()
    table.add_column("GiB on each rank")
    table.add_column("models whole" if several else "", justify="right")
    if several:
        table.add_column("sharded (FSDP2)", justify="right")

    def row(name: str, whole: float, sharded: float) -> None:
        table.add_row(name, _gib(whole), *([_gib(sharded)] if several else []))

    for share in plan.shares:
        if several or share.whole:
            row(share.name, share.whole, share.sharded)
    row("together", sum(item.whole for item in plan.shares), sum(item.sharded for item in plan.shares))
    return table


def _gib(size: float) -> str:
    return "unknown" if math.isnan(size) else f"{size / GIB:,.2f}"


def _heading(plan: Plan) -> str:
    ranks = f"{plan.processes} ranks" if plan.processes > 1 else "1 rank"
    return f"memory, {ranks}, weights in {plan.recipe.model.dtype}, passes in {plan.recipe.train.precision}"


def _besides(plan: Plan) -> Iterator[tuple[str, str]]:
    for name, peak in zip(("without", "with"), plan.peaks, strict=False):
        yield f"activations {name} gradient checkpointing", _gib(peak)
    yield "of these, each copy of the logits", _gib(plan.logits)
    if plan.cache is not None and plan.work.sampled:
        yield "the engine's keys and values, 1000 tokens", f"{1000 * plan.cache / GIB:,.3f}"
    if plan.engine is not None:
        yield "the engine's share of its device", f"{plan.engine:.0%}, also while the policy learns, unless it sleeps"


def _table(rows: Iterator[tuple[str, str]]) -> Table:
    table = folding(show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows:
        table.add_row(name, shown(value))
    return table
