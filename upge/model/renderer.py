"""The process that renders chat templates, which are programs: what one takes too much of ends this process alone.

Run as a script by `upge.model.template_process`: `python -P renderer.py <connection> <seconds> <bytes> <characters>`.
It says "" when it is ready, and then answers JSON by JSON: `{"text": …}`, or `{"refused": …}` with what is wrong. It
imports little, so that it starts in a second.
"""

from __future__ import annotations

import contextlib
import json
import resource
import sys
from multiprocessing.connection import Connection
from typing import Any

from transformers.utils.chat_template_utils import render_jinja_template


def main() -> None:
    """Serve requests until the connection is closed."""
    number, seconds, memory, longest = map(int, sys.argv[1:])
    outside: Connection[Any, Any] = Connection(number)
    _limit(resource.RLIMIT_CORE, 0)
    with contextlib.suppress(ValueError, OSError):  # not every system has this limit
        _limit(resource.RLIMIT_AS, memory)
    with contextlib.suppress(EOFError, OSError):  # the parent process has ended
        outside.send_bytes(b"")
        while True:
            request = json.loads(outside.recv_bytes())
            spent = resource.getrusage(resource.RUSAGE_SELF)
            _limit(resource.RLIMIT_CPU, int(spent.ru_utime + spent.ru_stime) + 1 + seconds)
            outside.send_bytes(json.dumps(_answer(request, longest)).encode())


def _limit(kind: int, most: int) -> None:
    """Set a limit that can be raised again."""
    _, hard = resource.getrlimit(kind)
    resource.setrlimit(kind, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard))


def _answer(request: dict[str, Any], longest: int) -> dict[str, str]:
    try:
        answered: Any = render_jinja_template(
            conversations=[request["turns"]],
            chat_template=request["template"],
            add_generation_prompt=request["generation"],
            **request["tokens"],
        )
    except MemoryError:
        return {"refused": "it needs too much memory"}
    except Exception as error:  # what a program raises is up to it
        return {"refused": (str(error)[:1000].splitlines() or [type(error).__name__])[0]}
    text: str = answered[0][0]  # of the first conversation; beside the texts is what a mask would need
    if len(text) > longest:
        return {"refused": f"it writes {len(text)} characters, and {longest} are taken"}
    return {"text": text}


if __name__ == "__main__":
    main()
