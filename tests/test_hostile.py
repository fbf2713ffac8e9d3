"""Five hundred hostile inputs: exit code 1 or 2, a message and no traceback, no hang, and nothing is executed.

The inputs come from a seeded generator, so that a failure can be had again by its number.
"""

from __future__ import annotations

import io
import json
import os
import pickle
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import pytest
import tiny
from test_wrong_recipes import GOOD

from upge.command import app
from upge.command.errors import reported
from upge.run.folder import masked

SECONDS = 10
COUNT = {"recipe": 240, "path": 60, "data": 100, "completions": 60, "model": 20, "run": 20}

DEEP = "[" * 100_000
LINES = [
    "{",
    "[]",
    "1",
    '"text"',
    "null",
    DEEP,
    '{"a":' * 50_000,
    "\ufeff",
    "\x00",
    "9" * 5000,
    '{"prompt": ' + "9" * 5000,
]
LINES += [
    '{"prompt": 1, "answer": "a"}',
    '{"prompt": NaN, "answer": "a"}',
    '{"answer": "a"}',
    '{"prompt": {}, "answer": []}',
]
LINES += [
    '{"prompt": [[]], "answer": "a"}',
    '{"prompt": [{"role": 3}], "answer": "a"}',
    "b'\\xff'",
    "{} {}",
    "Infinity",
]

TEXTS = [
    "!!python/object/apply:os.system ['touch CANARY']",
    "!!python/name:os.system",
    "!<tag:x> y",
    "&a [*a, *a]",
    "*a",
]
TEXTS += [
    '"\x00"',
    "\x1b[2J",
    "\ud800".encode("utf-16", "surrogatepass").decode("latin-1"),
    "9" * 5000,
    "[" * 3000,
    "{a: " * 3000,
]
TEXTS += [
    "{<<: {a: 1}}",
    "__import__('os').system('touch CANARY')",
    "${HOME}",
    "{{ 1 }}",
    "0x" + "f" * 5000,
    "1e999999",
    ".nan",
    "-.inf",
]
TEXTS += [
    "{use: file.py:Class}",
    "{use: os:system}",
    "{use: ../../x}",
    "{use: [1]}",
    "? [a]\n: b",
    "--- a\n--- b",
    "\u202egnp",
    "''",
    "~",
    "[]",
]
KEYS = ["name", "extends", "data", "reward", "rollout", "optimizer", "train", "eval", "log", "estimator", "nonsense"]


@contextmanager
def bounded() -> Iterator[None]:
    """Ends what hangs."""

    def stop(*_: object) -> None:
        raise TimeoutError(f"more than {SECONDS} seconds")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def refused(*words: str) -> str:
    """What `upge` says of a wrong input, held to its exit codes."""
    said = io.StringIO()
    with bounded(), redirect_stdout(said), redirect_stderr(said), pytest.raises(SystemExit) as ended, reported():
        app(list(words))
    assert ended.value.code in (1, 2), said.getvalue()[-500:]
    assert "Traceback" not in said.getvalue()
    return said.getvalue()


# The generators: each writes its input below a folder, and gives the command to try it with.


def recipe(draw: random.Random, folder: Path) -> list[str]:
    """A good recipe, a block of which is replaced by something hostile."""
    key, text = draw.choice(KEYS), draw.choice(TEXTS)
    blocks = [line for line in GOOD.splitlines() if not line.startswith(f"{key}:")]
    path = folder / "recipe.yaml"
    path.write_text(
        "\n".join([f"{key}: {text}", "nonsense: 1" if key != "nonsense" else "", *blocks]), errors="replace"
    )
    return ["validate", str(path)]


def special(draw: random.Random, folder: Path) -> Path:
    """What can be named and is no file that one can read."""
    pipe, loop, binary = folder / "pipe", folder / "loop", folder / "binary"
    os.mkfifo(pipe)
    loop.symlink_to(loop)
    binary.write_bytes(draw.randbytes(64) + b"\xff")
    return draw.choice(
        [pipe, loop, binary, folder, Path("/dev/zero"), Path("/dev/null"), folder / "no", folder / ("n" * 300)]
    )


def path(draw: random.Random, folder: Path) -> list[str]:
    """A pipe, a device, a link to itself or garbage where a recipe, data, a model or a run is named."""
    odd = str(special(draw, folder))
    good = str(tiny.recipe(folder, train={"steps": 1}))
    use = draw.choice(["jsonl", "parquet"])
    return draw.choice(
        [
            ["validate", odd],
            ["run", good, f"data={{use: {use}, path: '{odd}'}}", "eval.splits=[]"],
            ["run", good, f"model.path='{odd}'", "model.config=null"],
            ["run", good, f"model.tokenizer='{odd}'"],
            ["run", good, f"rollout.engine={{use: recorded, run: '{odd}'}}"],
            ["compare", odd, odd],
        ]
    )


def data(draw: random.Random, folder: Path) -> list[str]:
    """Lines of data, one of which can't be used."""
    good = tiny.recipe(folder, train={"steps": 1})
    _spoil(draw, folder / "problems.jsonl")
    return ["run", str(good)]


def completions(draw: random.Random, folder: Path) -> list[str]:
    """Completions, one of which can't be read, for the engine `recorded` and for `upge eval --completions`."""
    good = str(tiny.recipe(folder, train={"steps": 1}))
    run = folder / "recorded"
    run.mkdir()
    line = {
        "stream": "eval/test",
        "step": 0,
        "problem": "p0",
        "sample": 0,
        "text": "a",
        "tokens": [2],
        "truncated": False,
    }
    (run / "completions.jsonl").write_text(json.dumps(line) + "\n")
    _spoil(draw, run / "completions.jsonl")
    replay = ["run", good, f"rollout.engine={{use: recorded, run: '{run}'}}"]
    return draw.choice([replay, ["eval", good, "--completions", str(run / "completions.jsonl")]])


def _spoil(draw: random.Random, file: Path) -> None:
    lines = file.read_text().splitlines()
    lines.insert(draw.randint(0, len(lines)), draw.choice([line for line in LINES if line != "\ufeff"]))
    file.write_text("\n".join(lines) + "\n")


class Payload:
    """Makes a file where it is unpickled."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return os.mkdir, (str(self.canary),)


def model(draw: random.Random, folder: Path) -> list[str]:
    """A model's folder with a program in it, or with weights that lie."""
    good = str(tiny.recipe(folder, train={"steps": 1}))
    evil = folder / "evil"
    shutil.copytree(folder / "tokenizer", evil)
    config: dict[str, Any] = tiny.LLAMA | {"vocab_size": 7, "architectures": ["LlamaForCausalLM"]}
    kind = draw.choice(["pickle", "code", "header", "config", "pipe"])
    if kind == "pickle":
        (evil / "pytorch_model.bin").write_bytes(pickle.dumps(Payload(folder / "CANARY")))
    elif kind == "code":
        config |= {"model_type": "evil", "auto_map": {"AutoConfig": "evil.Evil", "AutoModelForCausalLM": "evil.Evil"}}
        (evil / "evil.py").write_text(f"import os\nos.mkdir({str(folder / 'CANARY')!r})\n")
    elif kind == "header":
        size = draw.choice([2**63, 2**40, 8, 0])
        (evil / "model.safetensors").write_bytes(size.to_bytes(8, "little") + draw.randbytes(32))
    elif kind == "pipe":
        (evil / "tokenizer_config.json").unlink()
        os.mkfifo(evil / "tokenizer_config.json")
    (evil / "config.json").write_text(DEEP if kind == "config" else json.dumps(config))
    return ["run", good, f"model.path='{evil}'", "model.config=null", "model.tokenizer=null"]


def run(draw: random.Random, folder: Path) -> list[str]:
    """A run's folder, edited."""
    for name in ("metrics.jsonl", "manifest.json"):
        (folder / name).write_text(draw.choice(LINES) + "\n")
    return ["compare", str(folder), str(folder)]


KINDS = {"recipe": recipe, "path": path, "data": data, "completions": completions, "model": model, "run": run}


@pytest.mark.parametrize(
    ("kind", "number"), [(kind, number) for kind, count in COUNT.items() for number in range(count)]
)
def test_hostile_input_is_refused(kind: str, number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    draw = random.Random(f"{kind} {number}")  # a seed that is text is the same in every process
    words = KINDS[kind](draw, tmp_path)
    refused(*words)
    assert not (tmp_path / "CANARY").exists()


@pytest.mark.parametrize("kind", KINDS)
def test_a_process_of_its_own_refuses_it_too(kind: str, tmp_path: Path) -> None:
    words = KINDS[kind](random.Random(f"{kind} 0"), tmp_path)
    command = [sys.executable, "-m", "upge", *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=6 * SECONDS, cwd=tmp_path, check=False)
    assert done.returncode in (1, 2), done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "CANARY").exists()


def test_there_are_five_hundred() -> None:
    assert sum(COUNT.values()) == 500


@pytest.mark.parametrize(
    ("word", "kept"),
    [
        ("http://me:secret@host/x", "http://***@host/x"),
        ("log.trackers.0.password=a\nb", "log.trackers.0.password=***"),
        ("x.api_key=abc", "x.api_key=***"),
        ("rollout.max_tokens=16", "rollout.max_tokens=16"),
    ],
)
def test_secrets_on_the_command_line_are_not_kept(word: str, kept: str) -> None:
    assert masked(word) == kept
