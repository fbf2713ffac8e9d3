"""The Typer app that each verb registers itself at, and that reports errors as messages, never as a traceback."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import typer

from upge import __version__
from upge.errors import causes

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Invent post-training algorithms for language models by writing YAML.",
)


@app.callback(invoke_without_command=True)
def _options(version: bool = typer.Option(False, "--version", help="Print the version.")) -> None:
    if version:
        typer.echo(__version__)
        raise typer.Exit


FAILED, INPUT_WRONG, INTERRUPTED = 1, 2, 130


@contextmanager
def reported() -> Iterator[None]:
    """Turn errors about the input into a message and exit 2, those of a run into exit 1, a signal into 130 or 143."""
    try:
        yield
    except KeyboardInterrupt:
        _report_message("interrupted")
        sys.exit(INTERRUPTED)
    except SystemExit as error:
        if isinstance(interrupt := _origin(error), KeyboardInterrupt):
            _report_message("\n".join(["interrupted", *_notes(interrupt)]))
        raise
    except BaseException as error:
        code = _code(error)
        if code is None and "UPGE_MESSAGES" not in os.environ:
            raise  # a fault of the program: its traceback is what helps
        _report_message("\n".join([str(error), *_notes(error)]) if code is not None else traceback.format_exc())
        sys.exit(FAILED if code is None else code)


def _origin(error: SystemExit) -> BaseException | None:
    """The original exception of an exit: typer converts Ctrl-C to an exit without a message."""
    return None if error.__context__ is None else error.__context__.__cause__


def _report_message(message: str) -> None:
    """Print a message on stderr, or pass it to the launching process if there are several."""
    if folder := os.environ.get("UPGE_MESSAGES"):
        (Path(folder) / os.environ["RANK"]).write_text(message, encoding="utf-8")
    else:
        from upge.files import shown

        print(shown(message), file=sys.stderr)


def _code(error: BaseException) -> int | None:
    """The exit code of an error whose message is sufficient; None for one that needs a traceback."""
    if is_about_input(error):
        return INPUT_WRONG
    if _is(error, "Stopped"):
        return int(getattr(error, "code", INTERRUPTED))
    return FAILED if _is(error, "PartError", "RunError", "FloatingPointError") else None


def _notes(error: BaseException) -> list[str]:
    """The notes added to an error and to its causes, each once."""
    return list(dict.fromkeys(note for each in causes(error) for note in getattr(each, "__notes__", ())))


def is_about_input(error: BaseException) -> bool:
    """Whether the error is about the user's input, and not a failure of the program."""
    return _is(error, "RecipeError", "InputError")


def _is(error: BaseException, *names: str) -> bool:
    """Whether the error is of a class so named: by name, since importing the classes would import torch."""
    return any(kind.__name__ in names for kind in type(error).__mro__)
