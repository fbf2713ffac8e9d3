"""Asking a vLLM server over HTTP: time-outs, going on after a broken connection, and what is said when it stays so."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from textwrap import shorten
from typing import Any, TypeVar

import httpx2
from pydantic import BaseModel, ValidationError

from upge import InputError, PartError

Answer = TypeVar("Answer", bound=BaseModel)
Result = TypeVar("Result")

START = "docs/vllm.md has the command that starts one"
BUSY = frozenset({429, 502, 503, 504})
"""Answers that pass; so does a broken connection."""
_HINTS = {
    401: "it wants an API key: set rollout.engine.api_key_variable",
    403: "start it with --tokens-only",
    404: "start it with VLLM_SERVER_DEV_MODE=1 and --tokens-only, and let the url have no path",
}
_LONGEST = 60.0
"""Seconds between two attempts, at most."""


@dataclass(frozen=True)
class Waiting:
    """How long is waited for a server, in seconds, and how often it is asked again."""

    timeout: float
    connect: float
    retries: int
    backoff: float
    wait: Callable[[float], None] = field(default=time.sleep, repr=False)

    def before(self, attempt: int) -> None:
        """Wait before the attempt of this number, counted from 0."""
        if attempt:
            self.wait(min(self.backoff * 2 ** (attempt - 1), _LONGEST))


class Server:
    """One vLLM server.

    Args:
        url: its base address, without a slash at the end.
        client: has the time-outs and the key.
        waiting: says how often a request is sent again.
        folder: the run's, for the message of how to go on.

    Attributes:
        opened: whether a failure is one of the run, and no longer of the settings that it began with.
    """

    def __init__(self, url: str, client: httpx2.Client, waiting: Waiting, folder: Path | None) -> None:
        self.url, self.client, self.waiting, self.folder = url, client, waiting, folder
        self.opened = False

    def ask(self, path: str, kind: type[Answer], body: Any = None, *, again: frozenset[int] | None = BUSY) -> Answer:
        """What the server answers: to POST of `body`, or to GET where there is none.

        Args: again: the answers that are worth another attempt, as a broken connection is; None: nothing is.

        Raises:
            InputError: the server can't be reached, refuses, or answers something else; before `opened`.
            PartError: the same, afterwards.
        """
        response = self._reached(path, body, again)
        if response.status_code != 200:
            raise self.wrong(f"{path} is answered by {_told(response)}")
        try:
            return kind.model_validate_json(response.content)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            place = ".".join(map(str, first["loc"]))
            raise self.wrong(f"{path}: the answer is none of vLLM 0.32's: {place} {first['msg']}") from error

    def refuses(self, path: str, body: Any) -> bool:
        """Whether the server says that such a request is wrong; errors as `ask`."""
        response = self._reached(path, body, BUSY)
        if response.status_code not in (200, 400, 422):
            raise self.wrong(f"{path} is answered by {_told(response)}")
        return response.status_code != 200

    def wrong(self, what: str, then: str = START) -> Exception:
        """The error that says this of the server, and what to do then."""
        if self.opened:
            return PartError(f"the vLLM server {self.url}: {what}; {self._resuming()}", "rollout.engine")
        return InputError(f"rollout.engine.url: the vLLM server {self.url}: {what}; {then}")

    def _reached(self, path: str, body: Any, busy: frozenset[int] | None) -> httpx2.Response:
        attempts = 1 if busy is None else 1 + self.waiting.retries
        failure = ""
        cause: Exception | None = None
        for attempt in range(attempts):
            self.waiting.before(attempt)
            try:
                response = self._once(path, body)
            except httpx2.ReadTimeout as error:  # another attempt would wait as long
                waited = f"{path} isn't answered within {self.waiting.timeout:g} s (rollout.engine.timeout)"
                raise self.wrong(waited, "it may be stuck: its own log says more") from error
            except httpx2.TransportError as error:
                failure, cause = f"{type(error).__name__}: {error}".rstrip(": "), error
                continue
            if busy is None or response.status_code not in busy:
                return response
            failure, cause = _told(response), None
        tried = "once" if attempts == 1 else f"{attempts} times"
        raise self.wrong(f"it doesn't answer {path}, asked {tried}: {failure}") from cause

    def _once(self, path: str, body: Any) -> httpx2.Response:
        return self.client.get(self.url + path) if body is None else self.client.post(self.url + path, json=body)

    def _resuming(self) -> str:
        start = "start it again with the same command"
        return f"{start}, and continue with --resume {self.folder}" if self.folder else start


def side_by_side(calls: Sequence[Callable[[], Result]], at_once: int) -> list[Result]:
    """What the calls return, in their order, some at a time; the first that raises ends it."""
    if not calls:
        return []
    pool = ThreadPoolExecutor(min(at_once, len(calls)), thread_name_prefix="upge-vllm")
    try:
        return [future.result() for future in [pool.submit(call) for call in calls]]
    finally:
        pool.shutdown(cancel_futures=True)  # to the end of what is under way: under it no connection may be closed


@contextmanager
def connected(
    urls: Sequence[str], waiting: Waiting, key: str | None, folder: Path | None, concurrency: int
) -> Iterator[list[Server]]:
    """The servers, with connections that end with the block."""
    headers = {} if key is None else {"Authorization": f"Bearer {key}"}
    timeout = httpx2.Timeout(waiting.timeout, connect=waiting.connect, pool=None)
    limits = httpx2.Limits(max_connections=concurrency, max_keepalive_connections=concurrency)
    with ExitStack() as stack:
        yield [
            Server(url, stack.enter_context(_client(headers, timeout, limits)), waiting, folder)
            for url in urls
        ]  # fmt: skip


def _client(headers: dict[str, str], timeout: httpx2.Timeout, limits: httpx2.Limits) -> httpx2.Client:
    return httpx2.Client(headers=headers, timeout=timeout, limits=limits)


def _told(response: httpx2.Response) -> str:
    said = shorten(response.text, 300)
    hint = _HINTS.get(response.status_code)
    return f"{response.status_code} {said}".strip() + (f" ({hint})" if hint else "")


class Done(BaseModel):
    """An answer of which nothing is read."""


class Emptied(BaseModel):
    """What `/reset_prefix_cache` answers."""

    success: bool


def forget(server: Server) -> None:
    """Empty what a server has cached of prefixes."""
    if not server.ask("/reset_prefix_cache", Emptied, {}).success:
        raise server.wrong("it kept what it had cached of the old weights; nothing else may use it during a run")
