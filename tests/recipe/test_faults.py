"""Faults show where and what; errors show all of them in reading order."""

import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from upge.recipe.faults import Fault, Place, RecipeError
from upge.suggestions import nearest


def place(file: str = "r.yaml", line: int = 1, column: int = 1, text: str = "key: value", width: int = 1) -> Place:
    return Place(file, line, column, text, width)


def test_a_fault_draws_its_line_and_a_caret_below_the_text_it_means() -> None:
    line = "    mask: {use: clip, hgih: 0.2}"
    fault = Fault("unknown key 'hgih' in clip", place("recipes/grpo.yaml", 12, 23, line, 4), "did you mean 'high'?")
    assert str(fault).split("\n") == [
        "recipes/grpo.yaml:12:23: unknown key 'hgih' in clip",
        "   12 |     mask: {use: clip, hgih: 0.2}",
        " " * (8 + 22) + "^^^^",
        "   did you mean 'high'?",
    ]


@pytest.mark.parametrize(
    ("text", "column", "width", "caret"),
    [
        ("a: b", 4, 1, "   ^"),
        ("a: b", 4, 50, "   ^"),
        ("a: b", 4, 0, "   ^"),
        ("a: b", 5, 1, "    ^"),
        ("\ta: b", 5, 1, "\t   ^"),
        ("漢字: b", 5, 1, "      ^"),
        ("漢字: b", 1, 2, "^^^^"),
        ("हं: b", 5, 1, "   ^"),
        ("e\u0301: b", 5, 1, "   ^"),
    ],
)
def test_the_caret_stands_below_its_text(text: str, column: int, width: int, caret: str) -> None:
    assert str(Fault("m", place(text=text, column=column, width=width))).split("\n")[2] == "       " + caret


def test_a_fault_without_place_or_text_is_just_its_message() -> None:
    assert str(Fault("nothing to read", None)) == "nothing to read"
    assert str(Fault("empty", place(text="  "), "write")) == "r.yaml:1:1: empty\n   write"


def test_a_long_line_is_cut_around_the_caret() -> None:
    text = "a" * 500 + "X" + "b" * 500
    _, line, caret = str(Fault("m", place(text=text, column=501))).split("\n")
    assert len(line) < 120
    assert line[caret.index("^")] == "X"


def test_a_long_message_is_cut_and_of_many_faults_the_first_are_shown() -> None:
    assert len(str(Fault("m" * 5000, None, "h" * 5000))) < 2100
    shown = str(RecipeError(Fault("m", place(line=line)) for line in range(1, 2000)))
    assert shown.count("key: value") == 50
    assert shown.endswith("1999 problems, of which these are the first 50")


def test_terminal_escapes_are_not_passed_on() -> None:
    shown = str(Fault("bad \x1b[31m", place("r\x1b.yaml", text="a: \x1b[2J")))
    assert "\x1b" not in shown


def test_an_error_sorts_by_line_and_column_counts_and_says_each_fault_once() -> None:
    late, early, nowhere = Fault("c", place(line=9)), Fault("b", place(line=2, column=7)), Fault("a", None)
    error = RecipeError([late, early, nowhere, early])
    assert error.faults == (nowhere, early, late)
    assert str(error).startswith("a\nr.yaml:2:7: b\n")
    assert str(error).endswith("\n3 problems")
    assert isinstance(error, ValueError)


def test_an_error_keeps_a_file_s_faults_together_in_the_order_files_were_given() -> None:
    faults = [Fault("1", place("z", 5)), Fault("2", place("a", 1)), Fault("3", place("z", 1))]
    assert [fault.message for fault in RecipeError(faults).faults] == ["3", "1", "2"]


def test_one_fault_is_not_counted() -> None:
    assert str(RecipeError([Fault("a", None)])) == "a"


def test_an_error_survives_pickling() -> None:
    error = RecipeError([Fault("a", place())])
    assert pickle.loads(pickle.dumps(error)).faults == error.faults


@pytest.mark.parametrize(
    ("word", "options", "meant"),
    [
        ("hgih", ["low", "high"], "high"),
        ("HIGH", ["low", "high"], "high"),
        ("grpo", ["GRPO", "ppo"], "GRPO"),
        ("temp", ["temperature", "top_p"], "temperature"),
        ("max", ["max_tokens", "max_norm"], None),
        ("zebra", ["low", "high"], None),
        ("x", [], None),
        ("", ["low"], None),
    ],
)
def test_nearest(word: str, options: list[str], meant: str | None) -> None:
    assert nearest(word, options) == meant


@given(st.text(), st.integers(1, 300), st.integers(0, 300))
def test_any_line_can_be_drawn(text: str, column: int, width: int) -> None:
    lines = str(Fault("m", place(text=text, column=min(column, len(text) + 1), width=width))).split("\n")
    assert len(lines) in (1, 3)
