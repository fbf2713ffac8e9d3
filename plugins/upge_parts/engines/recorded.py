"""Replays the completions of an earlier run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pydantic import Field

from upge import Completion, Context, Engine, InputError, Policy, Request, Sampling, parse_json, regular_file

Key = tuple[str, int, str, int]


class Recorded(Engine):
    """Returns the recorded completions of an earlier run: for exact comparisons, and for offline RL.

        completion(stream, step, problem, sample) = the line of completions.jsonl with these coordinates

    A request that the recorded run did not make is an error. Log-probs are available if that run's recipe read them.
    """

    run: str = Field(min_length=1)
    """The folder of the recorded run, relative to the working directory."""

    @contextmanager
    def open(self, context: Context) -> Iterator[Replay]:
        size = None if context.policy is None else context.policy.size
        yield Replay(self.run, read(Path(self.run) / "completions.jsonl", size))


class Replay:
    """An open recording."""

    def __init__(self, run: str, completions: Mapping[Key, Completion]) -> None:
        self.run, self.completions = run, completions

    def sample(self, requests: Sequence[Request], sampling: Sampling) -> list[Completion]:
        """The recorded completions, in the order of the requests. Raises InputError for one that is missing."""
        return [self._answer(request) for request in requests]

    def sync(self, policy: Policy) -> None:
        """Nothing: what is recorded doesn't follow the policy."""

    def _answer(self, request: Request) -> Completion:
        key = (request.stream, request.step, request.problem, request.sample)
        if key not in self.completions:
            stream, step, problem, sample = key
            wanted = f"sample {sample} of '{problem}' in {stream} at step {step}"
            raise InputError(f"{self.run}: the recorded run did not sample {wanted}; replay it with its own settings")
        return self.completions[key]


def read(path: Path, size: int | None = None) -> dict[Key, Completion]:
    """The completions of a file by their coordinates.

    Args: size: how many token ids the model knows that goes on from them, if that is known.

    Raises InputError with the line that can't be read, or has tokens of another model.
    """
    try:
        # Only line feeds end a line: JSON may hold the other characters that splitlines() splits at.
        lines = regular_file(path).read_text(encoding="utf-8").removesuffix("\n").split("\n")
        lines = [] if lines == [""] else lines
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: can't be read: {getattr(error, 'strerror', None) or error}") from error
    found = {}
    for number, line in enumerate(lines, start=1):
        try:
            said: dict[str, Any] = parse_json(line)
            key = (said["stream"], said["step"], said["problem"], said["sample"])
            logp = said.get("logp")
            _check(said["tokens"], logp, said["truncated"], size)
            found[key] = Completion(tuple(said["tokens"]), None if logp is None else tuple(logp), said["truncated"])
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f"{path}:{number}: not a completion: {error}") from error
    return found


def _check(tokens: Any, logp: Any, truncated: Any, size: int | None) -> None:
    """Raise ValueError unless these are ids that the model knows, as many log-probs or None, and a truth value."""
    if not all(isinstance(token, int) and not isinstance(token, bool) and 0 <= token < 2**31 for token in tokens):
        raise ValueError("'tokens' should be ids, numbers from 0")
    if size is not None and max(tokens, default=0) >= size:
        known = f"the model's ids go up to {size - 1}"
        raise ValueError(f"'tokens' has {max(tokens)}, and {known}: it was recorded with another model")
    if logp is not None and (len(logp) != len(tokens) or not all(isinstance(x, int | float) for x in logp)):
        raise ValueError("'logp' should be a number for each of 'tokens'")
    if not isinstance(truncated, bool):
        raise ValueError("'truncated' should be true or false")
