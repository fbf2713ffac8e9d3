"""Hostile files: data, completions, what is no file, models' folders. Beside them everything is as it should be."""

from __future__ import annotations

import functools
import itertools
import json
import os
import pickle
import random
import shutil
import struct
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
from support import tiny
from support.hostile_case import DEEP, HUGE, Case, Payload
from support.hostile_runs import stopped

Make = Callable[[Path], Case]

NO_OBJECTS = {
    "{": "not JSON", "[]": "not a JSON object", "1": "not a JSON object", '"text"': "not a JSON object",
    "null": "not a JSON object", DEEP: "nested too deeply", '{"a":' * 50_000: "nested too deeply", "\x00": "not JSON",
    HUGE: "not a JSON object", "b'\\xff'": "not JSON", "{} {}": "not JSON", "Infinity": "not a JSON object",
    '{"prompt": ' + HUGE: "not JSON",
    r'{"prompt": "\ud800", "answer": "a", "problem": "p0", "text": "\udfff"}': "half of a character",
    r'{"\ud800": 1}': "half of a character",
}  # fmt: skip
NO_PROBLEMS = {
    '{"prompt": 1, "answer": "a"}': "'prompt' should be text", '{"prompt": NaN, "answer": "a"}': "'prompt' should be",
    '{"answer": "a"}': "has no 'prompt'", '{"prompt": {}, "answer": []}': "should be text",
    '{"prompt": [[]], "answer": "a"}': "'prompt' should be", '{"prompt": "", "answer": "a"}': "'prompt' should be",
    '{"prompt": [{"role": 3}], "answer": "a"}': "'prompt' should be", '{"prompt": "a"}': "has no 'answer'",
    '{"prompt": "a", "answer": {"a": 1}}': "'answer' should be text",
    '{"prompt": "a", "answer": "a", "id": ["x"]}': "'id' should be text",
    '{"prompt": "a", "answer": "a", "band": {}}': "'band' should be text",
    '{"prompt": "a", "answer": "a", "demonstration": 1}': "'demonstration' should be text",
    '{"prompt": "a", "answer": "a", "id": "p1"}': "the id 'p1' is that of",
}  # fmt: skip
NO_COMPLETIONS = {
    '{"text": "a"}': "has no 'problem'", '{"problem": "p0"}': "has no 'text'",
    '{"problem": 1, "text": "a"}': "'problem' can't be 1", '{"problem": "p0", "text": []}': "'text' can't be",
    '{"problem": "p0", "text": "a", "sample": 0}': "sample 0 of 'p0' is there twice",
    '{"problem": "p0", "text": "a", "step": "x"}': "'step' can't be",
    '{"problem": "p0", "text": "a", "sample": {}}': "'sample' can't be",
    '{"problem": "p0", "text": "a", "tokens": "x"}': "'tokens' can't be",
}  # fmt: skip
LINE = {"stream": "train", "step": 0, "problem": "p0", "sample": 0, "tokens": [1], "truncated": False}
NO_REPLAYS = {
    json.dumps(LINE | change): f"not a completion: {says}"
    for change, says in (
        ({"problem": []}, "unhashable"), ({"tokens": 1}, "'int' object"), ({"tokens": ["x"]}, "'tokens' should be"),
        ({"tokens": [-1]}, "'tokens' should be"), ({"tokens": [1.5]}, "'tokens' should be"),
        ({"tokens": [2**40]}, "'tokens' should be"), ({"tokens": [True]}, "'tokens' should be"),
        ({"truncated": 7}, "'truncated' should be"), ({"logp": ["x"]}, "'logp' should be"),
        ({"logp": []}, "'logp' should be"), ({"stream": {}}, "unhashable"),
    )
}  # fmt: skip


def data() -> Iterator[tuple[str, Make]]:
    """A line of JSON lines that is no problem: the first, the last, and one between."""
    for (line, says), at in itertools.product({**NO_OBJECTS, **NO_PROBLEMS}.items(), (1, 5, 25)):
        if "is that of" in says and at == 1:
            continue

        def make(folder: Path, line: str = line, says: str = says, at: int = at) -> Case:
            good = tiny.recipe(folder, train={"steps": 1})
            insert(folder / "problems.jsonl", line, at)
            return Case(["run", str(good)], rf"problems\.jsonl:{at}: .*{says}")

        yield f"data, line {at}: {brief(line)}", make


def completions() -> Iterator[tuple[str, Make]]:
    """A line of completions that can't be read, for the engine `recorded` and for `upge eval --completions`."""
    for (line, says), at in itertools.product({**NO_OBJECTS, **NO_COMPLETIONS}.items(), (1, 7)):
        if "twice" in says and at == 1:
            continue

        def scored(folder: Path, line: str = line, says: str = says, at: int = at) -> Case:
            good, run = str(tiny.recipe(folder)), recording(folder)
            insert(run / "completions.jsonl", line, at)
            words = ["eval", "--recipe", good, "--completions", str(run / "completions.jsonl"), "eval.pass_at=[]"]
            return Case(words, rf"completions\.jsonl:{at}: .*{says}")

        yield f"scored, line {at}: {brief(line)}", scored
    for (line, says), at in itertools.product({**dict.fromkeys(NO_OBJECTS, "not a"), **NO_REPLAYS}.items(), (1, 7)):

        def replayed(folder: Path, line: str = line, says: str = says, at: int = at) -> Case:
            good, run = str(tiny.recipe(folder)), recording(folder)
            insert(run / "completions.jsonl", line, at)
            words = ["run", good, f"rollout.engine={{use: recorded, run: '{run}'}}"]
            return Case(words, rf"completions\.jsonl:{at}: {says}")

        yield f"replayed, line {at}: {brief(line)}", replayed


def brief(line: str) -> str:
    """A line, without its middle if it is long."""
    return line if len(line) < 60 else f"{line[:4]}…{line[-50:]}"


def recording(folder: Path) -> Path:
    """A run's folder with completions alone."""
    run = folder / "recorded"
    run.mkdir()
    line = {"stream": "eval/test", "step": 0, "sample": 0, "text": "a", "tokens": [2], "truncated": False}
    lines = [json.dumps(line | {"problem": f"p{index}"}) for index in range(6)]
    (run / "completions.jsonl").write_text("\n".join(lines) + "\n")
    return run


def insert(file: Path, line: str, at: int) -> None:
    lines = file.read_text().splitlines()
    lines.insert(at - 1, line)
    file.write_text("\n".join(lines) + "\n")


PEFT = '{"base_model_name_or_path": "BASE"}'

ODD: dict[str, Callable[[Path], Path]] = {
    "a pipe": lambda folder: _made(folder / "odd", os.mkfifo),
    "a loop": lambda folder: _made(folder / "odd", lambda path: path.symlink_to(path)),
    "bytes": lambda folder: _made(folder / "odd", lambda path: path.write_bytes(b"\xff\xfe\x00" * 20)),
    "a folder": lambda folder: _made(folder / "odd", Path.mkdir),
    "endless": lambda folder: Path("/dev/zero"),
    "nothing": lambda folder: Path("/dev/null"),
    "absent": lambda folder: folder / "no",
    "long": lambda folder: folder / ("n" * 300),
}
NAMED: dict[str, Callable[[str, str], list[str]]] = {
    "a recipe": lambda good, odd: ["validate", odd],
    "jsonl": lambda good, odd: ["run", good, f"data={{use: jsonl, path: '{odd}'}}", "eval.splits=[]"],
    "parquet": lambda good, odd: ["run", good, f"data={{use: parquet, path: '{odd}'}}", "eval.splits=[]"],
    "a model": lambda good, odd: ["run", good, f"model={{path: '{odd}', config: null}}"],
    "a tokenizer": lambda good, odd: ["run", good, f"model.tokenizer='{odd}'"],
    "a recorded run": lambda good, odd: ["run", good, f"rollout.engine={{use: recorded, run: '{odd}'}}"],
    "runs": lambda good, odd: ["compare", odd, odd],
    "a run to go on with": lambda good, odd: ["run", good, "--resume", odd],
    "completions": lambda good, odd: ["eval", "--recipe", good, "--completions", odd],
}


def _made(path: Path, make: Callable[[Path], object]) -> Path:
    make(path)
    return path


def odd_paths() -> Iterator[tuple[str, Make]]:
    """A pipe, a device, a link to itself or garbage where something is named."""
    for (kind, odd), (named, words) in itertools.product(ODD.items(), NAMED.items()):

        def make(folder: Path, odd: Any = odd, words: Any = words) -> Case:
            good, path = str(tiny.recipe(folder, train={"steps": 1})), str(odd(folder))
            end = path[-20:]
            says = rf"no (?:run )?folder '.*{end}|{end}.*(?:read|no |not |none|a file;)|file has so long a name"
            return Case(words(good, path), says)

        yield f"{kind} for {named}", make


@functools.cache
def real_parquet() -> bytes:
    """A file of problems."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "problems.parquet"
        rows = [{"prompt": "abc"[index % 3] * 9 + "?", "answer": "abc"[index % 3]} for index in range(2000)]
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path, row_group_size=500)
        return path.read_bytes()


@functools.cache
def real_gguf() -> bytes:
    """The beginning of a GGUF file of version 3: its counts, a key, a tensor's description."""
    key = struct.pack("<Q", 20) + b"general.architecture" + struct.pack("<IQ", 8, 5) + b"llama"
    tensor = struct.pack("<Q", 17) + b"token_embd.weight" + struct.pack("<IQQIQ", 2, 16, 8, 0, 0)
    return b"GGUF" + struct.pack("<IQQ", 3, 1, 1) + key + tensor


def garbage(name: str) -> dict[str, bytes]:
    """What is no file of a format: nothing, noise, the format's mark and noise, a real one cut off."""
    draw = random.Random(name)
    magic, real = {"parquet": (b"PAR1", real_parquet()), "gguf": (b"GGUF", real_gguf())}[name]
    found = {"nothing": b"", "noise": draw.randbytes(500), "a mark": magic, "two marks": magic * 2}
    found |= {f"a mark and noise {i}": magic + draw.randbytes(200 * i) + magic for i in range(1, 5)}
    found |= {f"cut at {cut} %": real[: len(real) * cut // 100] for cut in (5, 25, 50, 75, 99)}
    found |= {f"without its {i} first bytes": real[i:] for i in (1, 4, 100)}
    if name == "parquet":  # the footer, its length, its mark: the length is wrong, or the footer
        found |= {f"a footer of {i} bytes": real[:-8] + struct.pack("<I", i) + magic for i in (0, 7, 2**31, 2**32 - 1)}
        found |= {
            f"pages of noise {i}": magic + draw.randbytes(len(real) // 2) + real[len(real) // 2 + 4 :] for i in (1, 2)
        }
        found |= {"a pickle": pickle.dumps({"a": 1})}
    else:
        counts = ((2**63, 1), (1, 2**63), (2**40, 2**40), (0, 0))
        found |= {f"{a} tensors, {b} keys": magic + struct.pack("<IQQ", 3, a, b) + real[24:] for a, b in counts}
        found |= {"a key of 2^62 characters": magic + struct.pack("<IQQQ", 3, 1, 1, 2**62) + b"x" * 64}
        found |= {f"version {i}": magic + struct.pack("<IQQ", i, 1, 1) for i in (0, 99)}
    return found


def formats() -> Iterator[tuple[str, Make]]:
    for name in ("parquet", "gguf"):
        for kind, content in garbage(name).items():

            def make(folder: Path, name: str = name, content: bytes = content) -> Case:
                good, path = str(tiny.recipe(folder, train={"steps": 1})), folder / f"odd.{name}"
                path.write_bytes(content)
                words = NAMED["parquet" if name == "parquet" else "a model"](good, str(path))
                return Case(words, rf"odd\.{name}: ")

            yield f"{name} of {kind}", make


def models() -> Iterator[tuple[str, Make]]:
    """A model's folder with a program in it, or with weights and settings that lie."""
    for kind, (_, says) in lying().items():
        for named in ("model", "reference", "tokenizer"):
            if (named == "tokenizer") != kind.startswith("tokenizer"):
                continue

            def make(folder: Path, kind: str = kind, says: str = says, named: str = named) -> Case:
                good, evil = str(tiny.recipe(folder, train={"steps": 1})), folder / "evil"
                shutil.copytree(folder / "tokenizer", evil)
                config: dict[str, Any] = tiny.LLAMA | {"vocab_size": 7, "architectures": ["LlamaForCausalLM"]}
                (evil / "config.json").write_text(json.dumps(config))
                for name, content in lying(folder / "CANARY")[kind][0].items():
                    write(evil / name, content.replace("BASE", str(stopped())) if content == PEFT else content)
                where = {
                    "model": [f"model={{path: '{evil}', config: null, tokenizer: null}}"],
                    "reference": [
                        f"reference.path='{evil}'",
                        "estimator.terms.rl.advantage={use: kl, coefficient: 0.1, estimator: k3}",
                    ],
                    "tokenizer": [f"model.tokenizer='{evil}'"],
                }
                return Case(["run", good, *where[named]], says)

            yield f"{kind}, as {named}", make


def write(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if content is None:
        path.unlink()
    elif content is os.mkfifo:
        path.unlink(missing_ok=True)
        os.mkfifo(path)
    else:
        path.write_bytes(content if isinstance(content, bytes) else str(content).encode())


def lying(canary: Path = Path("CANARY")) -> dict[str, tuple[dict[str, Any], str]]:
    """Kind → (file → what it holds, what is said)."""
    payload, evil = pickle.dumps(Payload(canary)), f"import os\nos.mkdir({str(canary)!r})\nclass Evil: pass\n"
    base = tiny.LLAMA | {"vocab_size": 7, "architectures": ["LlamaForCausalLM"]}
    auto = {"auto_map": dict.fromkeys(("AutoConfig", "AutoModelForCausalLM", "AutoModel"), "evil.Evil")}
    custom = json.dumps({"tokenizer_class": "Evil", "auto_map": {"AutoTokenizer": ["evil.Evil", None]}})
    index = {"metadata": {}, "weight_map": {"model.embed_tokens.weight": "../outside.safetensors"}}
    header = b'{"a":{"dtype":"F32","shape":[4611686018427387904],"data_offsets":[0,8]}}'
    weights = {
        "noise": random.Random(0).randbytes(100), "nothing": b"", "a pickle": payload,
        "a header of 2^63 bytes": (2**63).to_bytes(8, "little") + b"{}",
        "a header of 2^40 bytes": (2**40).to_bytes(8, "little") + b"{}",
        "a tensor of 2^64 bytes": len(header).to_bytes(8, "little") + header + b"\0" * 8,
        "no JSON": (2).to_bytes(8, "little") + b"[[",
    }  # fmt: skip
    own = {"config.json": json.dumps(base | {"model_type": "evil"} | auto), "evil.py": evil}
    found: dict[str, tuple[dict[str, Any], str]] = {
        "a pickle alone": ({"pytorch_model.bin": payload}, "evil: .*safetensors"),
        "an index of pickles": (
            {"pytorch_model.bin.index.json": json.dumps({"weight_map": {"a": "x.bin"}}), "x.bin": payload},
            "evil: .*safetensors",
        ),
        "code of an unknown type": (own, "requires code of its own|model type"),
        "code of a known type": ({"config.json": json.dumps(base | auto), "evil.py": evil}, "evil: .*safetensors"),
        "no weights": ({}, "evil: .*safetensors"),
        "weights elsewhere": ({"model.safetensors.index.json": json.dumps(index)}, "evil: "),
        "an index of nothing": ({"model.safetensors.index.json": "[]"}, "evil: "),
        "a deep config": ({"config.json": DEEP}, "evil: "),
        "a config of a list": ({"config.json": "[]"}, "evil: "),
        "a config of text for numbers": ({"config.json": json.dumps(base | {"hidden_size": "x"})}, "evil: "),
        "a negative size": ({"config.json": json.dumps(base | {"hidden_size": -16})}, "evil: "),
        "a huge size": ({"config.json": json.dumps(base | {"hidden_size": 2**60})}, "evil: "),
        "a pipe for a config": ({"config.json": os.mkfifo}, "no regular file"),
        "a pipe for settings": ({"generation_config.json": os.mkfifo}, "no regular file"),
        "an adapter's pickle": (
            {"adapter_config.json": PEFT, "adapter_model.bin": payload}, "other formats are programs"
        ),
        "an adapter of itself": ({"adapter_config.json": PEFT.replace("BASE", "evil")}, "is, in the end, itself"),
        "an adapter of nothing": ({"adapter_config.json": "[]"}, "doesn't name the model"),
        "tokenizer of code": ({"tokenizer_config.json": custom, "evil.py": evil, "tokenizer.json": None}, "evil: "),
        "tokenizer of deep JSON": ({"tokenizer.json": DEEP}, "evil: "),
        "tokenizer of noise": ({"tokenizer.json": b"\xff\xfe\0"}, "evil: "),
        "tokenizer of a list": ({"tokenizer_config.json": "[]"}, "evil: "),
        "tokenizer of a pipe": ({"tokenizer_config.json": os.mkfifo}, "no regular file"),
        "tokenizer without an end": ({"tokenizer_config.json": "{}", "special_tokens_map.json": "{}"}, "end-of-seq"),
    }  # fmt: skip
    return found | {f"weights of {kind}": ({"model.safetensors": x}, "evil: ") for kind, x in weights.items()}
