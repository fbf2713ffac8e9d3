"""`upge report`: a run, or several side by side, as one HTML page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from upge.cli.app import app
from upge.cli.arguments import AllowCode

Runs = Annotated[list[Path], typer.Argument(metavar="RUN...", help="Run folders, also of runs in progress.")]
Out = Annotated[
    Path | None,
    typer.Option(
        "--output",
        "--out",
        help="The page; by default report.html in the run's folder, or comparison.html here for several runs.",
    ),
]


@app.command()
def report(runs: Runs, out: Out = None, allow_code: AllowCode = False) -> None:
    """Write a report of a run, or of several side by side, as one self-contained HTML page."""
    from upge.report.write import write

    typer.echo(write(runs, out, allow_code=allow_code))
