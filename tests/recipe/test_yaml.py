"""Reading YAML 1.2: what scalars mean, where things stand, and that whatever is wrong is refused at its place."""

import json
import math
import os
from collections.abc import Callable
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ruamel.yaml import YAML

from upge.recipe.faults import Fault, RecipeError
from upge.recipe.yaml import MAX_BYTES, MAX_NODES, Node, parse, plain, read

GOOD = """\
# A recipe.
extends: lab/base.yaml
name: hpt
estimator:
  switch: {use: success_rate, threshold: 0.0, above: rl, otherwise: sft}
  terms:
    rl:
      source: rollouts
      mask: [{use: clip, low: 0.2, high: 2e-1}, "none"]   # two of them
    sft: {source: 'demonstrations', weight: -1}
note: >
  folded
  text
"""


def data(text: str) -> Any:
    return plain(parse(text, "r.yaml"))


def faults(text: str) -> tuple[Fault, ...]:
    with pytest.raises(RecipeError) as caught:
        parse(text, "r.yaml")
    return caught.value.faults


def problems(reading: Callable[[], Node]) -> tuple[Fault, ...]:
    """The faults that reading ends with, if any; no other exception may come out."""
    try:
        assert isinstance(plain(reading()), dict)
    except RecipeError as error:
        return error.faults
    return ()


def node_at(node: Node, *path: str | int) -> Node:
    for step in path:
        node = node.value[step]  # type: ignore[index, assignment]
    return node


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-6", 1e-6),
        ("1E6", 1e6),
        ("1.", 1.0),
        (".5", 0.5),
        ("+.5e+1", 5.0),
        ("0.0", 0.0),
        ("10", 10),
        ("-3", -3),
        ("+3", 3),
        ("012", 12),
        ("0o17", 15),
        ("0xFf", 255),
        (".inf", math.inf),
        ("-.INF", -math.inf),
        ("true", True),
        ("False", False),
        ("null", None),
        ("~", None),
        ("", None),
        ("no", "no"),
        ("off", "off"),
        ("yes", "yes"),
        ("y", "y"),
        ("tRUE", "tRUE"),
        ("1_000", "1_000"),
        ("1:30", "1:30"),
        ("0b11", "0b11"),
        ("0o8", "0o8"),
        ("1e", "1e"),
        (".", "."),
        ("inf", "inf"),
        ("2024-01-01", "2024-01-01"),
        ("١", "١"),
        ("'1'", "1"),
        ('"true"', "true"),
        ("a b", "a b"),
        ("a#b", "a#b"),
        ('"\\ud83d\\ude00"', "😀"),
        ("|\n  a\n  b\n", "a\nb\n"),
    ],
)
def test_a_scalar_means_what_yaml_1_2_says(text: str, value: object) -> None:
    found = data(f"x: {text}")["x"]
    assert found == value
    assert type(found) is type(value)


def test_nan_is_a_float() -> None:
    assert math.isnan(data("x: .nan")["x"])


def test_lists_are_tuples_and_maps_keep_their_order() -> None:
    found = data("z: [1, [a, {b: c}]]\na: {}\ne: []\n")
    assert found == {"z": (1, ("a", {"b": "c"})), "a": {}, "e": ()}
    assert list(found) == ["z", "a", "e"]


def test_every_key_and_value_knows_its_place() -> None:
    root = parse(GOOD, "r.yaml")
    high = node_at(root, "estimator", "terms", "rl", "mask", 0, "high")
    assert (high.value, str(high.place), high.place.width) == (0.2, "r.yaml:9:42", 4)
    assert high.key is not None
    assert (str(high.key), high.key.width) == ("r.yaml:9:36", 4)
    assert high.place.text == GOOD.split("\n")[8]
    item = node_at(root, "estimator", "terms", "rl", "mask", 1)
    assert (str(item.place), item.place.width, item.key) == ("r.yaml:9:49", 6, None)
    assert str(node_at(root, "estimator", "terms").place) == "r.yaml:7:5"
    assert (str(root.place), root.place.text, root.key) == ("r.yaml:1:1", "# A recipe.", None)


def test_an_empty_value_stands_where_its_key_does() -> None:
    root = parse("a:\n\n\nb: 1\n", "r.yaml")
    assert str(node_at(root, "a").place) == "r.yaml:1:1"


@pytest.mark.parametrize("line_break", ["\n", "\r\n", "\r"])
def test_lines_are_counted_as_yaml_counts_them(line_break: str) -> None:
    root = parse(line_break.join(["\ufeffa: '\u2028'", "# c", "b: 2", ""]), "r.yaml")
    assert str(node_at(root, "a").place) == "r.yaml:1:4"
    assert (str(node_at(root, "b").place), node_at(root, "b").place.text) == ("r.yaml:3:4", "b: 2")


@pytest.mark.parametrize(
    ("text", "where", "message", "hint"),
    [
        ("a: 1\nb: 2\na: 3\n", "3:1", "duplicate key 'a'; the first is at line 1, column 1", ""),
        ("x: {a: 1, 'a': 2}", "1:11", "duplicate key 'a'; the first is at line 1, column 5", ""),
        ("a: &x 1", "1:4", "anchors (&x)", "remove"),
        ("a: &x {b: 1}", "1:4", "anchors (&x)", "remove"),
        ("a: [*x]", "1:5", "aliases (*x)", "write the value out"),
        ("*x : 1", "1:1", "aliases (*x)", "write the value out"),
        ("<<: {a: 1}", "1:1", "merge keys", "extends"),
        ("a: !!str 1", "1:4", "tags", "remove"),
        ("a: ! 1", "1:4", "tags", "remove"),
        ("a: !x [1]", "1:4", "tags (!x)", "remove"),
        ("a: !e!x 1", "1:4", "tags", "remove"),
        ("a:\n  1: x", "2:3", "a key must be a text, not the number 1", "'1'"),
        ("true: x", "1:1", "a key must be a text, not the truth value true", "'true'"),
        ("null: x", "1:1", "a key must be a text, not null", "'null'"),
        (": x", "1:1", "a key must be a text, not null", ""),
        ("? [a]\n: x", "1:3", "a key must be a text, not a list", ""),
        ("{{a: b}: x}", "1:2", "a key must be a text, not a map", ""),
        ("a: 1\n---\nb: 2", "2:1", "one document", "remove"),
        ("a: 1\n---\n", "2:1", "one document", "remove"),
        ("a: " + "[" * 32 + "]" * 32, "1:35", "deeper than 32", ""),
        ("a: " + "[" * 100000, "1:35", "deeper than 32", ""),
        ("a: [" + "1," * 20000, f"1:{2 * MAX_NODES - 1}", "more than 10000 keys and values", ""),
        ("", "1:1", "empty", "write"),
        ("# nothing\n\n", "1:1", "empty", "write"),
        ("- a", "1:1", "not a list of 1", ""),
        ("just text", "1:1", "not the text 'just text'", ""),
        ("---\n", "1:4", "not null", ""),
        ("a:\n\tb: 1", "2:1", "a tab", "spaces"),
        ("a:\n  b: 1\n\tc: 2\n", "3:1", "a tab", "spaces"),
        ("\ta: 1", "1:1", "a tab", "spaces"),
        ("a: [1, 2\nb: 3", "2:2", "expected ',' or ']' in the list that opens at line 1", "close it with ']'"),
        ("a: {b: [1}", "1:10", "expected ',' or ']' in the list that opens at line 1", ""),
        ("x: 1\na: {b: 1\n\n", "2:9", "expected ',' or '}' in the map that opens at line 2", ""),
        ("a: 'x\nb: 1", "1:4", "a quote that is never closed", ""),
        ("a: b: c", "1:5", "a ':' where no value can start", "quote"),
        ("a: - b", "1:4", "a '-' where no list can start", "[a, b]"),
        ("a: 1\n  b: 2", "2:3", "indented deeper than the line above, which has its value", "both lines"),
        (
            "a:\n  b: 1\n c: 2",
            "3:2",
            "isn't part of the block",
            "in column 2, what is above it in 1 (line 1) or 3 (line 2)",
        ),
        (" a: 1\nb: 2", "2:1", "doesn't fit the lines above", "same column"),
        ("a: {b: 1}}", "1:10", "a '}' that no bracket was opened for", ""),
        ("a: 'x' y", "1:8", "a second text", "quotes"),
        ("a: 1\nb\n", "2:2", "a line without ':'", "key: value"),
        ("a: @b", "1:4", "cannot start with this character", "quotes"),
        ('a: "\\q"', "1:6", "unknown escape", "single quotes"),
        ('a: "\\UFFFFFFFF"', "1:2", "not YAML", ""),
        ('a: "\\ud83d"', "1:4", "half of a character", ""),
        ("a:\n  - x\n  b: 1", "3:3", "isn't part of the list", "indentation"),
        ("a: x\x07", "1:5", "U+0007", "escape"),
        ("a: \x00", "1:4", "U+0000", "escape"),
        ("a: \ud800", "1:4", "U+D800", "escape"),
        ("a: 'x\x85y'", "1:6", "U+0085", "escape"),
        ("a: 1e999", "1:4", "too large", ""),
        ("a: " + "9" * 5000, "1:4", "5000 characters", ""),
        ("%YAML 1.1\n---\na: 1", "1:1", "YAML 1.2", "remove"),
        ("%YAML 1.3\n---\na: 1", "1:1", "not YAML", ""),
        ("a: {?b: 1}", "1:6", "cannot start with '?'", "quotes"),
        ("a: [?b]", "1:6", "cannot start with '?'", "quotes"),
        ("a: {low:0.1}", "1:5", "key 'low:0.1' has no value", "low: 0.1"),
    ],
)
def test_what_a_recipe_may_not_hold_is_refused_at_its_place(text: str, where: str, message: str, hint: str) -> None:
    (fault,) = faults(text)
    assert str(fault.place) == f"r.yaml:{where}"
    assert message in fault.message
    assert hint in (fault.hint or "")


def test_all_faults_are_found_at_once_even_before_a_syntax_error() -> None:
    found = faults("a: &x 1\na: *x\n1: !t y\nb: [")
    assert [fault.place and fault.place.line for fault in found] == [1, 2, 2, 3, 3, 4]


def test_what_looks_like_trouble_and_is_none() -> None:
    assert data("%YAML 1.2\n---\na: 1\n...\n# end\n") == {"a": 1}
    assert data("'<<': 1\n'1': 2\n? c\n: 3\n") == {"<<": 1, "1": 2, "c": 3}
    assert data("a: " + "[" * 31 + "]" * 31)["a"] is not None
    assert data("a: {'b:c': 1, d: }") == {"a": {"b:c": 1, "d": None}}


@pytest.mark.parametrize(
    ("content", "where", "message"),
    [
        (b"a: 1\nb: caf\xe9\n", "2:7", "byte 0xe9 is not UTF-8"),
        ("a: 1".encode("utf-16"), "1:1", "byte 0xff is not UTF-8"),
        (b"a: 1\n" + b"#" * MAX_BYTES, "1:1", f"larger than {MAX_BYTES} bytes"),
        (b"", "1:1", "empty"),
    ],
)
def test_a_file_that_is_no_recipe(tmp_path: Path, content: bytes, where: str, message: str) -> None:
    path = tmp_path / "r.yaml"
    path.write_bytes(content)
    with pytest.raises(RecipeError) as caught:
        read(path)
    (fault,) = caught.value.faults
    assert str(fault.place) == f"{path}:{where}"
    assert message in fault.message


def test_a_missing_file_names_the_nearest_and_a_folder_or_a_pipe_is_refused(tmp_path: Path) -> None:
    (tmp_path / "grpo.yaml").write_text("a: 1")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(RecipeError, match=r"there is no such file\n.*grpo\.yaml"):
        read(tmp_path / "gpro.yaml")
    with pytest.raises(RecipeError, match="it is a folder"):
        read(tmp_path)
    with pytest.raises(RecipeError, match="no regular file"):
        read(tmp_path / "pipe")


def test_a_file_may_be_called_something_else(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_bytes(b"\xef\xbb\xbfa: 1")
    root = read(tmp_path / "r.yaml", name="mine")
    assert (plain(root), str(root.place)) == ({"a": 1}, "mine:1:1")


TEXTS = st.text(st.characters(codec="utf-8"), max_size=20)
# ruamel writes U+0085 as it is, reads it as a line break, and we refuse it.
RUAMEL_TEXTS = TEXTS.filter(lambda text: "\x85" not in text)
NUMBERS = st.none() | st.booleans() | st.integers(-(10**20), 10**20) | st.floats(allow_nan=False)


def maps(texts: st.SearchStrategy[str]) -> st.SearchStrategy[dict[str, Any]]:
    """Nested data under a map."""

    def around(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
        return st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4)

    return st.dictionaries(texts, st.recursive(NUMBERS | texts, around), min_size=1, max_size=4)


def tuples(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: tuples(inner) for key, inner in value.items()}
    return tuple(map(tuples, value)) if isinstance(value, list) else value


def as_json(value: Any) -> str:
    # JSON has no infinities and its names for them are strings in YAML; the data keeps to what both can say.
    return json.dumps(value).replace("-Infinity", "-.inf").replace("Infinity", ".inf")


def as_yaml(value: Any) -> str:
    stream = StringIO()
    yaml = YAML(typ="safe", pure=True)
    # Its flow style writes texts like "?0" so that it cannot read them itself.
    yaml.default_flow_style = False
    yaml.dump(value, stream)
    return stream.getvalue()


@settings(deadline=None, max_examples=60)
@given(maps(TEXTS).filter(lambda value: "Infinity" not in repr(value)))
def test_json_reads_as_the_data_it_was_written_from(value: dict[str, Any]) -> None:
    assert data(as_json(value)) == tuples(value)


@settings(deadline=None, max_examples=60)
@given(maps(RUAMEL_TEXTS))
def test_what_ruamel_writes_reads_as_the_data_it_was_written_from(value: dict[str, Any]) -> None:
    assert data(as_yaml(value)) == tuples(value)


EDITS = st.lists(
    st.tuples(
        st.integers(0, len(GOOD)), st.integers(0, 4), st.binary(max_size=3) | st.sampled_from(list(b"\t:{}[]&*!-#'\n"))
    ),
    min_size=1,
    max_size=4,
)


@settings(deadline=None, max_examples=150)
@given(EDITS)
def test_an_edited_recipe_parses_or_is_refused(tmp_path_factory: pytest.TempPathFactory, edits: list[Any]) -> None:
    content = GOOD.encode()
    for start, length, insert in edits:
        new = bytes([insert]) if isinstance(insert, int) else insert
        content = content[:start] + new + content[start + length :]
    path = tmp_path_factory.getbasetemp() / "edited.yaml"
    path.write_bytes(content)
    assert all(str(fault) and fault.place is not None for fault in problems(lambda: read(path)))


@settings(deadline=None, max_examples=150)
@given(st.text(st.sampled_from(" \n\ta1:-[]{},&*!|>'\"%@`#?.\\u\ufeff\x85\u2028"), max_size=30))
def test_any_text_parses_or_is_refused(text: str) -> None:
    assert all(str(fault) and fault.place is not None for fault in problems(lambda: parse(text, "r.yaml")))
