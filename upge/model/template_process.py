"""Chat templates, rendered as transformers does, in a process of their own.

A chat template is a program that comes with a tokenizer. Its sandbox keeps it from everything but time and memory: a
loop of loops never ends, and `10 ** 10 ** 9` hears no signal. So the system has the limits, and ends the process that
reaches one.
"""

from __future__ import annotations

import functools
import json
import signal
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from upge.processes import PipedProcess
from upge.types import Message

SECONDS = 2
"""Processor time that one rendering may take; they take milliseconds."""

MEMORY = 4 * 2**30
"""Bytes of address space of the process."""

LONGEST = 4_000_000
"""Characters of what is rendered: beyond any model's context."""


class RenderingError(Exception):
    """A template fails for these turns; the message has the reason."""


class Renderer:
    """Renders templates in a process that is there from the first one on, and anew after one that has ended it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: _TemplateProcess | None = None

    def render(self, template: str, turns: Sequence[Message], tokens: Mapping[str, Any], *, generation: bool) -> str:
        """The text of a conversation.

        Args:
            template: the chat template. turns: the conversation. tokens: the special tokens by name.
            generation: whether the template opens the assistant's turn.

        Raises:
            RenderingError: the template refuses them, or takes too long for it, or too much.
        """
        request = {"template": template, "turns": list(turns), "tokens": dict(tokens), "generation": generation}
        with self._lock:
            self._process = self._process or _TemplateProcess()
            try:
                answer = self._process.ask(request)
            except (EOFError, OSError) as error:
                ended, self._process = self._process.end(), None
                slow = f"it takes more than {SECONDS} s of processor time"
                raise RenderingError(slow if ended == -signal.SIGXCPU else f"it ends its process ({ended})") from error
        if "refused" in answer:
            raise RenderingError(answer["refused"])
        return answer["text"]


@functools.cache
def renderer() -> Renderer:
    """This process's renderer."""
    return Renderer()


class _TemplateProcess:
    """A running process; it ends with this one."""

    def __init__(self) -> None:
        script, limits = Path(__file__).with_name("renderer.py"), (SECONDS, MEMORY, LONGEST)
        threads = {"OMP_NUM_THREADS": "1"}  # else numpy reserves address space for every processor
        self._process = PipedProcess([str(script)], list(map(str, limits)), threads)
        try:
            self._process.connection.recv_bytes()
        except (EOFError, OSError) as error:
            raise RenderingError(f"the process that renders it can't be started ({self.end()})") from error

    def ask(self, request: dict[str, Any]) -> dict[str, str]:
        """The answer. Raises EOFError or OSError where the process has ended."""
        self._process.connection.send_bytes(json.dumps(request).encode())
        answer: dict[str, str] = json.loads(self._process.connection.recv_bytes())
        return answer

    def end(self) -> int:
        """End the process, by itself or by its limit; its exit code, or the signal's number below 0."""
        return self._process.end(5 * SECONDS)
