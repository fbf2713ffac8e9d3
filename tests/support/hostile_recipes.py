"""Hostile recipes: each is a valid recipe with one hostile thing in it, whose place (▶) and reason must be reported."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from support.good_recipe import GOOD
from support.hostile_case import Case

Make = Callable[[Path], Case]

SPOTS = (
    "about: a recipe", "model: upge_parts", "data: lab", "engine: transformers", "temperature: 1.0", "lr: 1e-4",
    "steps: 10", "splits: [test]", "folder: runs/good", "switch: {use", "low: 0.2", "denominator: old",
)  # fmt: skip
"""Where something can stand right before a value."""

VALUES = ("steps: 10", "lr: 1e-4", "low: 0.2")

PROPERTIES = {
    "!!python/object/apply:os.system": r"tags \(", "!!python/name:os.system": r"tags \(", "!!int": r"tags \(",
    "!<tag:yaml.org,2002:python/module:os>": r"tags \(", "!local": r"tags \(", "&a": r"anchors \(&a\)",
}  # fmt: skip

SLOTS = (
    ("data: lab", "data: ▶{}"),
    ("{use: exact", "{{use: ▶'{}'"),
    ("engine: transformers", "engine: ▶'{}'"),
    ("{use: success_rate", "{{use: ▶'{}'"),
    ("{use: clip", "{{use: ▶'{}'"),
    ("denominator: old", "denominator: ▶'{}'"),
    ("{use: group_norm", "{{use: ▶'{}'"),
    ("reduction: constant", "reduction: ▶'{}'"),
)
"""Where a recipe names a part."""

CODE_SAYS = "is code.*allow it with --allow-code"
CODE = ("mine.py:Mine", "../mine.py:Mine", "/tmp/mine.py:Mine")
NO_PARTS = ("os:system", "os.system", "../../x", "__import__(chr(111))", "upge.train.run:train")
CHARACTERS = ("\0", "\x07", "\x1b", "\x7f", "\x85", "\x9b", "\ufffe", "\uffff")
NUMBERS = ("9" * 500, "9" * 5000, "0x" + "f" * 500, "1e999", "-1e999")
OUTSIDE = (
    "/etc/upge", "../out", "~/out", "a/../../out", "./../out", "'{name}/../../out'", "//tmp/out", "~root/out",
    "link/out", "a/../link/out",
)  # fmt: skip
NAMES = (
    "../evil", "..", ".", "/etc/x", ".hidden", "a/b", "a\\b", '"a\\nb"', '"\\e[2J"', '"a\\0"', "'{name}'", "''",
    "a:b", '"\\u202Ea"',
)  # fmt: skip
ACCOUNT = "https://me:hunter2@host/x"


def made(piece: str, replacement: str, says: str, *, text: str = GOOD) -> Make:
    """A case that replaces a piece of a good recipe; ▶ stands right before the place to be reported."""
    assert text.count(piece) == 1, piece
    whole = text.replace(piece, replacement)
    before = whole.partition("▶")[0]
    line, column = before.count("\n") + 1, len(before) - (before.rfind("\n") + 1) + 1
    place = rf"recipe\.yaml:{line}:{column}: [^\n]*" if "▶" in whole else ""
    return written(whole.replace("▶", ""), f"{place}(?:{says})")


def written(text: str, says: str) -> Make:
    """A case whose recipe is this text."""

    def make(folder: Path) -> Case:
        surroundings(folder)
        path = folder / "recipes" / "recipe.yaml"
        path.write_bytes(text.encode("utf-8", "surrogatepass"))
        return Case(["validate", str(path)], says)

    return make


def surroundings(folder: Path) -> None:
    """What a hostile recipe may find beside it: code that leaves a trace, links, a pipe."""
    home = folder / "recipes"
    home.mkdir()
    for place in (home, folder):
        (place / "mine.py").write_text(f"import os\nos.mkdir({str(folder / 'CANARY')!r})\n")
    (folder / "outside.yaml").write_text("about: outside\n")
    (home / "link").symlink_to(folder)
    (folder / "link").symlink_to("/tmp")
    (home / "loop.yaml").symlink_to(home / "loop.yaml")
    (home / "circle.yaml").write_text("extends: recipe.yaml\n")
    os.mkfifo(home / "pipe.yaml")
    (home / "folder.yaml").mkdir()
    (home / "bytes.yaml").write_bytes(b"\xff\xfe")
    for index in range(40):
        (home / f"chain{index}.yaml").write_text(f"extends: chain{index + 1}.yaml\n")


def before(spot: str, what: str) -> str:
    """The spot with something right before its value."""
    key, value = spot.split(": ", 1)
    return f"{key}: ▶{what} {value}"


def instead(spot: str, what: str) -> str:
    return f"{spot.split(': ', 1)[0]}: ▶{what}"


def syntax() -> Iterator[tuple[str, Make]]:
    for spot, (what, says) in itertools.product(SPOTS, PROPERTIES.items()):
        yield f"{what} at {spot}", made(spot, before(spot, what), says)
    for spot in ("data: lab", *VALUES, "engine: transformers", "denominator: old", "folder: runs/good"):
        yield f"alias at {spot}", made(spot, instead(spot, "*a"), r"aliases \(\*a\)")
    for piece, key in (("train:\n", "  ▶<<: {}\n"), ("  terms:\n", "    ▶<<: {}\n"), ("    rl:\n", "      ▶<<: {}\n")):
        yield f"merge key in {piece.strip()}", made(piece, piece + key, "merge keys")
    for piece in ("low: 0.2", "lr: 1e-4", "n: 4, temperature", "folder: runs/good", "splits: [test]"):
        yield f"twice {piece}", made(piece, f"{piece.split(',')[0]}, ▶{piece}", "duplicate key")
    for character in CHARACTERS:
        says = f"the character U\\+{ord(character):04X}"
        yield f"{character!a} in a text", made("about: a", f"about: ▶{character}a", says)
        yield f"{character!a} in a comment", made("data: lab", f"data: lab #▶{character}", says)
    for key in ("7", "true", "null", "1.5", "[a]", "{a: b}"):
        yield f"the key {key}", made("data: lab\n", f"data: lab\n? ▶{key}\n: x\n", "a key must be a text")
    yield "documents", made("data: lab\n", "▶---\ndata: lab\n", "a second starts here")
    yield "YAML 1.1", made("name: good", "▶%YAML 1.1\n---\nname: good", "recipes are YAML 1.2")


def sizes() -> Iterator[tuple[str, Make]]:
    for spot, number in itertools.product(VALUES, NUMBERS):
        yield (
            f"{number[:6]}…, {len(number)} long, for {spot}",
            made(spot, instead(spot, number), "a number that cannot be used"),
        )
    for spot, number in itertools.product(
        ("lr: 1e-4", "low: 0.2", "epsilon: 1e-6", "temperature: 1.0", "threshold: 0.0"), (".nan", ".inf", "-.inf")
    ):
        yield f"{number} for {spot}", made(spot, instead(spot, number), "should be a finite number")
    for half in (r'"\ud800"', r'"\udfff\ud800"', r'"a\udc00"'):
        yield f"half a character {half}", made('after: "="', f"after: ▶{half}", "half of a character")
    model = ("model: upge_parts:data/lab/base", "model: {{path: upge_parts:data/lab/base, overrides: {{a: {}}}}}")
    for depth in (40, 1000, 5000):
        for opening, closing in (("[", "]"), ("{a: ", "}")):
            deep = opening * depth + closing * depth
            yield f"{depth} of {opening}", made(model[0], model[1].format(deep), "nest deeper than 32")
    yield "many values", made(model[0], model[1].format(f"[{'0, ' * 10_000}0]"), "more than 10000 keys and values")
    yield "a long text", made("about: a recipe", f"about: a{'a' * 140_000}", "it is larger than 131072 bytes")


def code() -> Iterator[tuple[str, Make]]:
    for (piece, slot), name in itertools.product(SLOTS, CODE):
        yield f"{name} for {piece}", made(piece, slot.format(name), CODE_SAYS)
    for (piece, slot), name in itertools.product(SLOTS, NO_PARTS):
        yield f"{name} for {piece}", made(piece, slot.format(name), "no [a-z]+ is called")
    python = "{use: python, function: ▶mine.py:mine}"
    yield "a function", made('{use: exact, after: "="}', python, CODE_SAYS)


def places() -> Iterator[tuple[str, Make]]:
    extended = {
        "../outside.yaml": "leads out of", "/etc/passwd": "leads out of", "link/outside.yaml": "leads out of",
        "../../../../etc/passwd": "leads out of", "loop.yaml": "no file", "no.yaml": "no file", "pipe.yaml": "no file",
        "folder.yaml": "no file", "/dev/zero": "leads out of", "recipe.yaml": "a circle", "[1]": "names a file",
        '"a\\0"': "names a file", "''": "names a file", f"[{', '.join(['x.yaml'] * 33)}]": "more than 32 files",
    }  # fmt: skip
    for name, says in extended.items():
        mark = "" if says == "more than 32 files" else "▶"
        bracketed = name.replace("[1", "[▶1") if name == "[1]" else f"{mark}{name}"
        yield f"extends {name[:30]}", made("name: good", f"name: good\nextends: {bracketed}", says)
    yield "a circle of two", made("name: good", "name: good\nextends: circle.yaml", r"circle\.yaml:1:10: a circle")
    yield "a chain", made("name: good", "name: good\nextends: chain0.yaml", "more than 32 files extend one another")
    yield "not text", made("name: good", "name: good\nextends: bytes.yaml", r"bytes\.yaml:1:1: byte 0xff is not UTF-8")
    for folder in OUTSIDE:
        yield f"the folder {folder}", made("folder: runs/good", f"folder: ▶{folder}", "leads out of the working folder")
    for name in NAMES:
        yield (
            f"the name {name}",
            made("name: good", f"name: ▶{name}", "'name' should (?:match pattern|have at least 1 character)"),
        )


def secrets() -> Iterator[tuple[str, Make]]:
    says = "a name or a password in an address"
    for spot in ("about: a recipe without faults", "model: upge_parts:data/lab/base", "folder: runs/good"):
        yield f"account at {spot}", made(spot, instead(spot, ACCOUNT), says)
    for data in (f"{{use: jsonl, path: ▶{ACCOUNT}}}", "{use: parquet, path: [a, ▶'s3://key:word@bucket/x']}"):
        yield f"account in {data}", made("data: lab", f"data: {data}", says)
    server = "{use: vllm_server, url: ▶'http://token@gpu1:8000'}"
    yield "account of a server", made("engine: transformers", f"engine: {server}", says)


def overrides() -> Iterator[tuple[str, Make]]:
    given = {
        "about=!!python/name:os.system x": r"command line:1:7: tags \(", "about=&a x": r"command line:1:7: anchors",
        "about=*a": r"command line:1:7: aliases", "train.steps=" + "9" * 5000: "a number that cannot be used",
        "about=\x1b[2J": r"command line:1:7: the character U\+001B", f"about={ACCOUNT}": "a name or a password",
        "data=mine.py:Mine": CODE_SAYS, "estimator.terms.rl.mask.9999999.low=1": "command line:1:",
        "model.overrides=" + "[" * 50 + "]" * 50: "nest deeper than 32", "..=1": "command line:1:",
        "name=../evil": "command line:1:6: .*name", "__class__=1": "command line:1:1: ", "=1": "command line:1:",
    }  # fmt: skip
    for word, says in given.items():

        def make(folder: Path, word: str = word, says: str = says) -> Case:
            surroundings(folder)
            path = folder / "recipes" / "recipe.yaml"
            path.write_text(GOOD)
            return Case(["validate", str(path), word], says)

        yield f"override {word[:30]}", make


def recipes() -> Iterator[tuple[str, Make]]:
    """Every case by its name."""
    yield from itertools.chain(syntax(), sizes(), code(), places(), secrets(), overrides())
