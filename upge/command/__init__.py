"""The command `upge`: one file a verb. Data goes to stdout, everything else to stderr.

Exit codes: 0 done; 1 the run failed; 2 the input is wrong; 130 and 143 interrupted and terminated.
"""

from __future__ import annotations

import signal
from types import FrameType

import typer

from upge import __version__
from upge.command.errors import reported
from upge.errors import Terminated

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Invent post-training algorithms for language models by writing YAML.",
)


def main() -> None:
    """The console script."""
    signal.signal(signal.SIGTERM, _terminated)
    with reported():
        app(standalone_mode=True)


@app.callback(invoke_without_command=True)
def _options(version: bool = typer.Option(False, "--version", help="Print the version.")) -> None:
    if version:
        typer.echo(__version__)
        raise typer.Exit


def _terminated(signum: int, frame: FrameType | None) -> None:
    del frame
    raise Terminated(128 + signum)


from upge.command import (  # noqa: E402  (each registers its verb)
    bench,  # noqa: F401
    check,  # noqa: F401
    compare,  # noqa: F401
    diff,  # noqa: F401
    eval_,  # noqa: F401
    explain,  # noqa: F401
    list_,  # noqa: F401
    new,  # noqa: F401
    report,  # noqa: F401
    run,  # noqa: F401
    schema,  # noqa: F401
    show,  # noqa: F401
    study,  # noqa: F401
    validate,  # noqa: F401
)
