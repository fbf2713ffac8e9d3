"""Processes with ranks, forked from one that has imported what they need: importing costs more than they do.

    forked.py SCRIPT COUNTS FOLDER [WORDS]    # COUNTS: 1,2

For each of the counts, so many processes call the `main` of a script with FOLDER/<count> and the words, and find
themselves in the environment that torchrun would have made. The first that fails ends the others of its count.
"""

from __future__ import annotations

import importlib
import os
import signal
import socket
import sys
import traceback
from collections.abc import Callable
from pathlib import Path


def ranks(count: int, work: Callable[[], None]) -> bool:
    """Fork so many processes, and wait for them; whether all have done their work."""
    waiting = {_forked(environment, work) for environment in environments_of(count)}
    done = True
    while waiting:
        process, status = os.wait()
        waiting.discard(process)
        if status != 0:
            done = False
            for other in waiting:
                os.kill(other, signal.SIGKILL)
    return done


def environments_of(count: int) -> list[dict[str, str]]:
    """What torchrun sets for each of so many processes of this machine."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    alike = {"WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    return [
        {name: str(value) for name, value in (alike | {"RANK": rank, "LOCAL_RANK": rank}).items()}
        for rank in range(count)
    ]


def _forked(environment: dict[str, str], work: Callable[[], None]) -> int:
    process = os.fork()
    if process:
        return process
    os.environ |= environment
    status = 1
    try:
        work()
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)  # what the process that imports has registered for its end is its own


if __name__ == "__main__":
    script, counts, folder, *words = sys.argv[1:]
    sys.path.insert(0, str(Path(__file__).parents[1]))
    main = importlib.import_module(f"support.{Path(script).stem}").main
    for each in map(int, counts.split(",")):
        place = Path(folder) / str(each)
        place.mkdir()
        if not ranks(each, lambda place=place: main(place, *words)):  # type: ignore[misc]
            raise SystemExit(1)
