"""What people's files hold: numbers, byte order marks, content in parts, conversations by other names."""

from __future__ import annotations

import codecs
import datetime
import json
from pathlib import Path
from typing import Any

import numpy
import pyarrow
import pyarrow.parquet
import pytest
from support.data_sources import data, lines, parquet, training

from upge import InputError, Problem
from upge_parts.data.conversations import conversation_of
from upge_parts.data.texts import text_of


def of_line(folder: Path, line: str, **mapping: Any) -> Problem:
    path = folder / "rows.jsonl"
    path.write_text(line + "\n", encoding="utf-8")
    return training(data("jsonl", path=str(path), **mapping), 1)[0]


@pytest.mark.parametrize(
    ("written", "answer"),
    [
        ("4", "4"),
        ("4.0", "4"),
        ("-0.0", "0"),
        ("0.50", "0.5"),
        ("1e3", "1000"),
        ("1e-7", "0.0000001"),
        ("1e22", "1" + "0" * 22),
        ("123456789012345678901234567890", "123456789012345678901234567890"),
        ("0.12345678901234567890123", "0.12345678901234567890123"),
        ("1e400", "1" + "0" * 400),
        ('"4.0"', "4.0"),
        ('"NaN"', "NaN"),
        ("null", None),
    ],
)
def test_a_number_is_the_answer_that_a_person_would_write(tmp_path: Path, written: str, answer: str | None) -> None:
    assert of_line(tmp_path, f'{{"prompt": "?", "answer": {written}}}').answer == answer


@pytest.mark.parametrize("form", ["parquet", "huggingface"])
@pytest.mark.parametrize(("value", "answer"), [(4.0, "4"), (0.1, "0.1"), (1e-7, "0.0000001"), (2**62, str(2**62))])
def test_a_number_is_the_same_answer_in_every_format(tmp_path: Path, form: str, value: float, answer: str) -> None:
    file = parquet(tmp_path / "set", [{"prompt": "?", "answer": value}], "train.parquet")
    path = str(file.parent if form == "huggingface" else file)
    assert training(data(form, path=path), 1)[0].answer == answer
    assert of_line(tmp_path, json.dumps({"prompt": "?", "answer": value})).answer == answer


@pytest.mark.parametrize("form", ["parquet", "huggingface"])
@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("kind", [pyarrow.float16(), pyarrow.float32(), pyarrow.float64()], ids=str)
def test_a_short_float_has_the_digits_that_it_was_written_with(
    tmp_path: Path, form: str, streaming: bool, kind: pyarrow.DataType
) -> None:
    numbers = [0.5, None, 0.1]
    values = pyarrow.array([[numpy.float16(n) if n else None] for n in numbers], pyarrow.list_(pyarrow.float16()))
    values = values if kind == pyarrow.float16() else pyarrow.array([[n] for n in numbers], pyarrow.list_(kind))
    nested = pyarrow.StructArray.from_arrays([values], ["values"])
    pyarrow.parquet.write_table(pyarrow.table({"prompt": ["a", "b", "c"], "of": nested}), tmp_path / "train.parquet")
    path = str(tmp_path if form == "huggingface" else tmp_path / "train.parquet")
    settings: dict[str, Any] = {"streaming": True} if form == "huggingface" and streaming else {}
    found = training(data(form, path=path, answer="of.values.0", **settings), 3)
    assert {each.answer for each in found} == {"0.5", None, "0.1"}


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ("NaN", "'answer' is NaN, which is no number; null says that there is none"),
        ("-Infinity", "'answer' is -Infinity, which is no number; null says that there is none"),
        ("1e9999999", "'answer' is a number of more than 400 digits; in quotes it is read as text"),
        ("true", "'answer' should be text, not bool: put it in quotes, spelled as a response should say it"),
        ('["4"]', "'answer' should be text, not list: name an item of it, answer.0"),
        ('{"value": "4"}', "'answer' should be text, not dict: name a key of it, answer.value"),
    ],
)
def test_what_is_no_answer_is_refused_by_line_with_a_remedy(tmp_path: Path, written: str, said: str) -> None:
    with pytest.raises(InputError) as refused:
        of_line(tmp_path, f'{{"prompt": "?", "answer": {written}}}')
    assert str(refused.value).endswith(f"rows.jsonl:1: {said}")


def test_numbers_that_are_not_finite_are_refused_from_python_too() -> None:
    for value in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match="which is no number"):
            text_of(value, "answer")


def test_a_whole_number_names_a_choice_by_its_place_also_as_a_float(tmp_path: Path) -> None:
    for place in ("1", "1.0"):
        line = f'{{"prompt": "?", "options": ["x", "y"], "answer": {place}}}'
        assert of_line(tmp_path, line, choices="options").answer == "B"
    labelled = '{"prompt": "?", "options": {"text": ["x", "y"], "label": [1, 2]}, "answer": 2.0}'
    assert of_line(tmp_path, labelled, choices="options").answer == "B"


# Encodings.


def test_byte_order_marks_are_no_part_of_a_line(tmp_path: Path) -> None:
    row = json.dumps({"prompt": "é?", "answer": "1"}, ensure_ascii=False).encode()
    path = tmp_path / "rows.jsonl"
    for written in (codecs.BOM_UTF8 + row, row + b"\r\n" + codecs.BOM_UTF8 + row):
        path.write_bytes(written)
        assert training(data("jsonl", path=str(path)), 1)[0].prompt == "é?"


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ("{}\n".encode("utf-16"), "rows.jsonl: can't be read: it is UTF-16 or UTF-32; save it as UTF-8"),
        (b'{}\n{"prompt": "\xe9"}', "rows.jsonl:2: can't be read: byte 0xe9 is not UTF-8; save the file as UTF-8"),
    ],
)
def test_a_file_in_another_encoding_is_refused_with_its_line(tmp_path: Path, written: bytes, said: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(written)
    with pytest.raises(InputError) as refused:
        training(data("jsonl", path=str(path)), 1)
    assert str(refused.value).endswith(said)


# Conversations.

ASKED = [{"role": "system", "content": "Add."}, {"role": "user", "content": "2+2"}]


@pytest.mark.parametrize(
    "turns",
    [
        [*ASKED, {"role": "assistant", "content": "4"}],
        [{"from": "system", "value": "Add."}, {"from": "human", "value": "2+2"}, {"from": "gpt", "value": "4"}],
        [
            {"role": "system", "content": "Add."},
            {"role": "user", "content": [{"type": "text", "text": "2+"}, {"type": "text", "text": "2"}]},
            {"role": "assistant", "content": [{"type": "output_text", "text": "4"}]},
        ],
        [
            {"from": "system", "value": "Add.", "role": None, "content": None},
            {"from": None, "value": None, "role": "user", "content": [{"text": "2+2"}]},
            {"from": "gpt", "value": "4"},
        ],
    ],
    ids=["messages", "ShareGPT", "parts", "mixed, as Arrow fills them"],
)
@pytest.mark.parametrize("column", ["prompt", "messages", "conversations"])
def test_a_conversation_is_read_as_people_write_it(tmp_path: Path, turns: list[Any], column: str) -> None:
    found = of_line(tmp_path, json.dumps({column: turns, "answer": "4"}))
    assert found == Problem("rows-1", ASKED, "4", "4")


def test_conversations_by_other_names_are_read_from_parquet(tmp_path: Path) -> None:
    turns = [{"from": "human", "value": "2+2"}, {"from": "gpt", "value": "4"}]
    path = str(parquet(tmp_path, [{"conversations": turns, "answer": "4", "unread": 1}]))
    assert training(data("parquet", path=path), 1)[0] == Problem(
        "rows-1", [{"role": "user", "content": "2+2"}], "4", "4"
    )


@pytest.mark.parametrize(
    ("turn", "said"),
    [
        (
            {"role": "user", "content": [{"type": "image_url", "image_url": "x"}]},
            "turn 1, 'content', part 1 is of type 'image_url'; only parts of text are read",
        ),
        ({"role": "user", "content": 7}, "turn 1, 'content' should be text, or a list of parts of text, not int"),
        (
            {"role": "user", "content": "q", "images": ["a.png"]},
            "turn 1 has 'images', which isn't read; only text is",
        ),
        (
            {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f"}}]},
            "turn 1 has 'tool_calls', which isn't read; only text is",
        ),
        ({"role": "assistant", "content": "4"}, "turn 1 is the assistant's, and no prompt comes before it"),
        (
            {"role": "user", "content": None},
            "turn 1 should have 'role' and 'content', or 'from' and 'value'; it has role",
        ),
        (
            {"speaker": "a", "text": "b"},
            "turn 1 should have 'role' and 'content', or 'from' and 'value'; it has speaker",
        ),
    ],
)
def test_a_turn_that_is_not_read_says_what_would_be(turn: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match="'messages' should be text, or a list of messages") as refused:
        conversation_of([turn], "messages")
    assert said in str(refused.value)


@pytest.mark.parametrize("key", ["reasoning_content", "reasoning", "thinking", "thought"])
def test_a_demonstration_whose_thought_stands_elsewhere_is_refused(key: str) -> None:
    turns = [{"role": "user", "content": "2+2"}, {"role": "assistant", "content": "4", key: "two and two"}]
    with pytest.raises(ValueError, match=f"turn 2 has its thought in '{key}', where it isn't read; write it into"):
        conversation_of(turns, "messages")
    assert conversation_of([turns[0], {**turns[1], key: " "}], "messages")[1] == "4"
    assert conversation_of([turns[0], {"role": "assistant", "content": "4", "tool_calls": []}], "messages")[1] == "4"


@pytest.mark.parametrize("content", ["", " \n", None])
def test_an_assistants_turn_without_words_shows_nothing(tmp_path: Path, content: str | None) -> None:
    turns = [{"role": "user", "content": "2+2"}, {"role": "assistant", "content": content}]
    shown = of_line(tmp_path, json.dumps({"messages": turns, "answer": "4"})).demonstration
    assert not (shown or "").strip()


@pytest.mark.parametrize(
    ("speaker", "name"),
    [("Human", "user"), (" USER ", "user"), ("chatgpt", "assistant"), ("GPT", "assistant"), ("critic", "critic")],
)
def test_speakers_are_who_they_are_however_they_are_written(speaker: str, name: str) -> None:
    turns, _ = conversation_of([{"from": speaker, "value": "q"}, {"from": "human", "value": "q"}], "conversations")
    assert isinstance(turns, list)
    assert turns[0]["role"] == name


@pytest.mark.parametrize("form", ["jsonl", "parquet", "huggingface"])
@pytest.mark.parametrize("said", ["Add.", None, " "])
def test_a_system_prompt_may_stand_beside_a_conversation(tmp_path: Path, form: str, said: str | None) -> None:
    turns = [{"from": "human", "value": "2+2"}, {"from": "gpt", "value": "4"}]
    own = [{"from": "system", "value": "Own."}, *turns]
    rows = [{"system": said, "conversations": each, "answer": "4"} for each in (turns, own)]
    path = lines(tmp_path, *rows) if form == "jsonl" else str(parquet(tmp_path / "set", rows, "train.parquet"))
    found = training(data(form, path=str(Path(path).parent) if form == "huggingface" else path), 2)
    heads = {each.prompt[0]["content"] for each in found if not isinstance(each.prompt, str)}
    assert heads == {"Add." if said == "Add." else "2+2", "Own."}
    assert {each.demonstration for each in found} == {"4"}


def test_a_system_prompt_beside_a_conversation_is_text(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"rows.jsonl:1: 'system' should be text, not int"):
        of_line(tmp_path, json.dumps({"system": 7, "messages": ASKED, "answer": "4"}))
    assert of_line(tmp_path, json.dumps({"system": "Add.", "prompt": "2+2", "answer": "4"})).prompt == "2+2"


def test_of_the_columns_of_prompts_the_first_that_is_not_null_is_read(tmp_path: Path) -> None:
    assert of_line(tmp_path, json.dumps({"prompt": None, "messages": ASKED, "answer": "4"})).prompt == ASKED


@pytest.mark.parametrize(
    ("written", "said"),
    [
        (
            '{"prompt": "?", "answer": "1", "answer": "2"}',
            ":1: not JSON that can be read: the key 'answer' occurs twice",
        ),
        (
            '{"prompt": "?", "answer": {"x": 1, "x": 1}}',
            ":1: not JSON that can be read: the key 'x' occurs twice in one",
        ),
        ('{"prompt": "?", "answer": %s}' % ("9" * 5000), ":1: 'answer' is a number of more than 400 digits; in quotes"),
        ('\n[{"prompt": "?", "answer": "1"}]', r":2: one JSON list, where each line should be an object; write a line"),
        ('{"prompt": "\t"}', ":1: not JSON: Invalid control character at column 13"),
        ('{"prompt": " ", "answer": "1"}', ":1: 'prompt' should be text, or a list of messages"),
    ],
)
def test_a_line_that_can_not_be_read_in_one_way_only_is_refused(tmp_path: Path, written: str, said: str) -> None:
    with pytest.raises(InputError) as refused:
        of_line(tmp_path, written)
    assert f"rows.jsonl{said}" in str(refused.value)


def test_a_date_is_no_answer_and_says_what_is(tmp_path: Path) -> None:
    path = parquet(tmp_path, [{"prompt": "?", "answer": datetime.date(2020, 1, 1)}])
    with pytest.raises(InputError, match="'answer' should be text, not date: store it as text, spelled as a response"):
        training(data("parquet", path=str(path)), 1)


def test_what_the_library_finds_wrong_with_a_file_is_told(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_text('{"prompt": "?", "answer": "1", "answer": "2"}\n')
    with pytest.raises(InputError, match=r"the split 'train' can't be had: .*specified twice"):
        training(data("huggingface", path=str(tmp_path)), 1)


def test_one_line_of_a_file_is_what_it_was(tmp_path: Path) -> None:
    path = lines(tmp_path, {"prompt": "2+2", "answer": "4", "id": 7.0, "band": 1})
    assert training(data("jsonl", path=path), 1)[0] == Problem("7", "2+2", "4", None, "1")
