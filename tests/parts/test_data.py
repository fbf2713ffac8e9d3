"""Data sources: what of a row is what of a problem, what comes when, and what is said of data that are wrong."""

from __future__ import annotations

import datetime
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from support import tiny
from support.data_sources import LETTERS, MAPPED, data, lines, parquet, training

import upge
from upge import Context, InputError, Problem
from upge.train.run import train
from upge_parts.data.columns import value_at
from upge_parts.data.order import positions
from upge_parts.data.streamed import Streamed


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The library `datasets` keeps what it made of files: here, with the test."""
    try:
        import datasets
    except ModuleNotFoundError:
        return
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def only(part: upge.Data) -> Problem:
    return training(part, 1)[0]


# The mapping.


def test_nested_columns_are_mapped_alike_from_every_format(tmp_path: Path) -> None:
    rows = parquet(tmp_path / "set", LETTERS, "train.parquet")
    held = [
        data("jsonl", path=lines(tmp_path, *LETTERS), **MAPPED),
        data("parquet", path=str(rows), **MAPPED),
        data("huggingface", path=str(rows.parent), **MAPPED),
    ]
    first, *others = [training(part, 20) for part in held]
    assert sorted(first, key=lambda problem: int(problem.id))[1] == Problem("1", "aa?", "b", "a")
    assert others == [first, first]


COLUMNS = [
    {
        "prompt": "a",
        "answer": "b",
        "level": 3,
        "share": 0.1,
        "hard": True,
        "topic": "sums",
        "steps": ["x"],
        "near": None,
    },
    {"prompt": "c", "answer": "d", "level": 2**40, "share": 5.0, "hard": False, "topic": "", "steps": [], "near": 1.5},
]


@pytest.mark.parametrize("form", ["jsonl", "parquet", "huggingface", "streamed", "mixture"])
def test_a_problem_has_the_numbers_and_texts_of_its_row(tmp_path: Path, form: str) -> None:
    table = parquet(tmp_path / "set", COLUMNS, "train.parquet")
    rows = data("jsonl", path=lines(tmp_path, *COLUMNS))
    part = {
        "jsonl": lambda: rows,
        "parquet": lambda: data("parquet", path=str(table)),
        "huggingface": lambda: data("huggingface", path=str(table.parent)),
        "streamed": lambda: data("huggingface", path=str(table.parent), streaming=True),
        "mixture": lambda: data("mixture", sources={"one": rows}),
    }[form]()
    wanted = [{k: x for k, x in row.items() if k != "steps" and x is not None} for row in COLUMNS]
    found = sorted((dict(problem.columns) for problem in training(part, 2)), key=lambda columns: str(columns["prompt"]))
    assert found == wanted
    assert [list(map(type, columns.values())) for columns in found] == [list(map(type, row.values())) for row in wanted]


def test_a_number_that_is_none_is_no_column(tmp_path: Path) -> None:
    row = {"prompt": "a", "answer": None, "level": float("nan"), "when": datetime.date(2026, 1, 2), "raw": b"x"}
    part = data("parquet", path=str(parquet(tmp_path, [row])))
    assert dict(only(part).columns) == {"prompt": "a"}
    beyond = '{"prompt": "a", "answer": "b", "level": 1e999, "rank": ' + "9" * 5000 + "}"
    assert set(only(data("jsonl", path=lines(tmp_path, beyond))).columns) == {"prompt", "answer"}


def test_by_default_columns_are_called_what_they_are(tmp_path: Path) -> None:
    row = {"prompt": "2+2", "answer": 4, "demonstration": "it is 4", "id": 7, "band": 1}
    assert only(data("jsonl", path=lines(tmp_path, row))) == Problem("7", "2+2", "4", "it is 4", "1")
    row = {"messages": [{"role": "user", "content": "2+2"}], "answer": "4"}
    assert only(data("jsonl", path=lines(tmp_path, row))) == Problem("rows-1", row["messages"], "4")


@pytest.mark.parametrize("form", ["jsonl", "parquet"])
def test_a_conversation_that_ends_with_the_assistant_is_a_prompt_and_its_demonstration(
    tmp_path: Path, form: str
) -> None:
    asked = [{"role": "system", "content": "Add."}, {"role": "user", "content": "2+2", "name": "pupil"}]
    row = {"messages": [*asked, {"role": "assistant", "content": "4"}]}
    path = lines(tmp_path, row) if form == "jsonl" else str(parquet(tmp_path, [row]))
    problem = only(data(form, path=path, answer=None))
    assert problem == Problem("rows-1", asked, None, "4"), "what Arrow fills with null is no key"


def test_an_answer_may_stand_behind_a_mark_and_a_demonstration_in_a_template(tmp_path: Path) -> None:
    path = lines(tmp_path, {"prompt": "6*7", "answer": "seven times #### six is\n#### 42"})
    part = data(
        "jsonl",
        path=path,
        answer_after="####",
        demonstration="answer",
        demonstration_template="{demonstration}\nThe answer is {answer}",
    )
    shown = "seven times #### six is\n#### 42\nThe answer is 42"
    assert only(part) == Problem("rows-1", "6*7", "42", shown)


@pytest.mark.parametrize(
    ("row", "mapping", "said"),
    [
        ({"prompt": "?", "answr": "1"}, {}, "has no 'answer'; did you mean 'answr'?"),
        ({"prompt": "?", "x": {"truth": 1}}, {"answer": "x.thruth"}, "has no 'thruth'; did you mean 'truth'?"),
        ({"prompt": "?", "x": ["1"]}, {"answer": "x.1"}, "has no item 1 where there are 1"),
        ({"prompt": "?", "x": "1"}, {"answer": "x.y"}, "has no 'y'"),
        ({"question": "?", "answer": "1"}, {}, "has no 'prompt'; there are answer, question"),
        ({"prompt": "", "answer": "1"}, {}, "'prompt' should be text, or a list of messages"),
        ({"prompt": [{"role": "user"}], "answer": "1"}, {}, "'prompt' should be text, or a list of messages"),
        ({"prompt": "?", "answer": True}, {}, "'answer' should be text, not bool"),
        ({"prompt": "?", "answer": "1", "demonstration": 1}, {}, "'demonstration' should be text, not int"),
        ({"prompt": "?", "answer": "1"}, {"answer_after": "####"}, "'answer' has no '####'"),
        ({"prompt": "?", "answer": "1"}, {"band": "level"}, "has no 'level'"),
        ("[1]", {}, "not a JSON object"),
        ("{", {}, "not JSON"),
    ],
)
def test_a_row_that_can_not_be_mapped_is_named_with_the_nearest_column(
    tmp_path: Path, row: Any, mapping: dict[str, str], said: str
) -> None:
    path = lines(tmp_path, {"prompt": "?", "answer": "1 #### 1", "x": {"truth": "1"}, "level": 1}, "", row)
    if mapping.get("answer") in ("x.1", "x.y"):
        path = lines(tmp_path, row)
    with pytest.raises(InputError) as refused:
        training(data("jsonl", path=path, **mapping), 1)
    assert said in str(refused.value)
    assert str(refused.value).startswith(f"{path}:")


def test_every_malformed_line_is_told_and_a_flood_is_counted(tmp_path: Path) -> None:
    with pytest.raises(InputError) as refused:
        training(data("jsonl", path=lines(tmp_path, "{", {"prompt": "?"}, {"prompt": "?", "answer": "1"})), 1)
    assert [line.partition(".jsonl:")[2][0] for line in str(refused.value).splitlines()] == ["1", "2"]
    with pytest.raises(InputError, match="and 10 more"):
        training(data("jsonl", path=lines(tmp_path, *["{"] * 30)), 1)


def test_two_problems_of_one_name_are_refused(tmp_path: Path) -> None:
    row = {"prompt": "?", "answer": "1", "id": "x"}
    with pytest.raises(InputError, match=r"rows.jsonl:2: the id 'x' is that of .*rows.jsonl:1 too"):
        training(data("jsonl", path=lines(tmp_path, row, row)), 1)


def test_a_template_that_shows_nothing_is_refused() -> None:
    with pytest.raises(ValidationError, match=r"has no \{demonstration\}"):
        data("jsonl", path="x", demonstration_template="The answer is {answer}")


def test_a_column_with_dots_in_its_name_is_found() -> None:
    assert value_at({"a.b": 1, "a": {"b": 2}}, "a.b") == 1
    assert value_at({"a": {"b.c": 3}}, "a.b.c") == 3


# Files.


def test_a_pattern_or_a_list_names_several_files(tmp_path: Path) -> None:
    for name, rows in (("a", LETTERS[:5]), ("b", LETTERS[5:12])):
        lines(tmp_path, *rows, name=f"{name}.jsonl")
    mapping = {key: value for key, value in MAPPED.items() if key != "id"}
    pattern = data("jsonl", path=str(tmp_path / "*.jsonl"), **mapping)
    listed = data("jsonl", path=(str(tmp_path / "a.jsonl"), str(tmp_path / "b.jsonl")), **mapping)
    assert training(pattern, 12) == training(listed, 12)
    assert {problem.id for problem in training(listed, 12)} == {f"a-{i}" for i in range(1, 6)} | {
        f"b-{i}" for i in range(1, 8)
    }
    with pytest.raises(InputError, match="no file has such a name"):
        training(data("jsonl", path=str(tmp_path / "*.json")), 1)


def test_files_of_one_name_in_two_folders_name_their_problems_apart(tmp_path: Path) -> None:
    for folder in ("x", "y"):
        (tmp_path / folder).mkdir()
        lines(tmp_path / folder, {"prompt": folder, "answer": "1"})
    ids = {problem.id for problem in training(data("jsonl", path=str(tmp_path / "*" / "rows.jsonl")), 2)}
    assert ids == {(tmp_path / folder / "rows").as_posix() + "-1" for folder in ("x", "y")}


@pytest.mark.parametrize("form", ["jsonl", "parquet"])
def test_files_that_can_not_be_read_are_named(tmp_path: Path, form: str) -> None:
    (tmp_path / "broken").write_bytes(b"\xff\xfe nonsense")
    for path in ("nowhere", "broken"):
        with pytest.raises(InputError, match=f"{path}: can't be read"):
            training(data(form, path=str(tmp_path / path)), 1)


def test_a_parquet_file_without_a_column_says_which_are_near(tmp_path: Path) -> None:
    path = parquet(tmp_path, LETTERS)
    with pytest.raises(InputError, match=r"rows.parquet: there is no column 'questoin'; did you mean 'question'\?"):
        training(data("parquet", path=str(path), prompt="questoin", answer=None), 1)


# What comes when.


@given(size=st.integers(1, 30), window=st.integers(1, 12), count=st.integers(1, 7), seed=st.integers(0, 3))
def test_a_stream_gives_every_row_once_an_epoch_however_it_is_asked(
    size: int, window: int, count: int, seed: int
) -> None:
    def opened() -> Streamed:
        made = lambda row, number: Problem(f"{number}", row["prompt"], "")  # noqa: E731
        return Streamed(lambda: iter([{"prompt": f"q{i}"} for i in range(size)]), made, {}, seed, window)

    steps = -(-2 * size // count)
    straight = opened()
    taken = [problem for step in range(steps) for problem in straight.take(step, count)]
    for epoch in (taken[:size], taken[size : 2 * size]):
        assert sorted(int(problem.id) for problem in epoch) == list(range(size))
    for start in range(0, size - window, window):
        ids = {int(problem.id) for problem in taken[start : start + window]}
        assert ids == set(range(start, start + window)), "a window is shuffled within itself"
    for step in reversed(range(steps)):  # as a resumed run asks, without having seen what went before
        assert opened().take(step, count) == straight.take(step, count) == taken[step * count : (step + 1) * count]
    assert [opened().take(place, 1)[0] for place in range(steps * count)] == taken


def test_a_stream_of_nothing_is_refused() -> None:
    with pytest.raises(InputError, match="has no problems"):
        Streamed(lambda: iter([]), lambda row, number: Problem("", "", ""), {}, 0, 4).take(3, 2)


@pytest.mark.parametrize("seed", [0, 5])
def test_a_streamed_data_set_holds_what_the_whole_one_holds(tmp_path: Path, seed: int) -> None:
    path = str(parquet(tmp_path / "set", LETTERS, "train.parquet").parent)
    whole, streamed = (data("huggingface", path=path, streaming=s, window=6, **MAPPED) for s in (False, True))
    by_id = {problem.id: problem for problem in training(whole, 20)}
    assert {problem.id: problem for problem in training(streamed, 20, seed)} == by_id
    assert training(streamed, 40, seed) == training(streamed, 40, seed)
    assert training(streamed, 20, seed) != training(streamed, 20, seed + 1)
    with (
        whole.open(Context(seed=seed)) as one,
        data("huggingface", path=path, **MAPPED).open(Context(seed=seed)) as two,
    ):
        assert one.take(3, 4) == two.take(3, 4)


def test_the_stream_s_own_order_is_a_window_of_one(tmp_path: Path) -> None:
    path = str(parquet(tmp_path / "set", LETTERS, "train.parquet").parent)
    taken = training(data("huggingface", path=path, streaming=True, window=1, **MAPPED), 25)
    assert [int(problem.id) for problem in taken] == [*range(20), *range(5)]


def test_one_by_one_or_in_batches_the_order_is_the_same() -> None:
    assert [positions(7, 3, place, 1)[0] for place in range(21)] == positions(7, 3, 0, 21)


# Hugging Face.


def test_splits_are_taken_by_name_and_by_slice(tmp_path: Path) -> None:
    for split in ("train", "test"):
        parquet(tmp_path / "set", LETTERS if split == "train" else LETTERS[:3], f"{split}.parquet")
    mapping = {key: value for key, value in MAPPED.items() if key != "id"}
    slices = {"train": "train[:80%]", "evaluation": {"held": "train[80%:]", "test": "test"}}
    with data("huggingface", path=str(tmp_path / "set"), **slices, **mapping).open(Context()) as session:
        assert session.splits() == ("held", "test")
        assert [len(session.split(name)) for name in session.splits()] == [4, 3]
        assert {problem.id for problem in session.take(0, 16)} == {f"train[:80%]-{i}" for i in range(16)}
        assert [problem.id for problem in session.split("test")] == ["test-0", "test-1", "test-2"]


def test_what_save_to_disk_wrote_is_read(tmp_path: Path) -> None:
    import datasets

    rows = datasets.Dataset.from_list(LETTERS)
    rows.save_to_disk(tmp_path / "one")
    datasets.DatasetDict({"train": rows, "dev": rows.select(range(4))}).save_to_disk(tmp_path / "two")
    one = data("huggingface", path=str(tmp_path / "one"), **MAPPED)
    two = data("huggingface", path=str(tmp_path / "two"), evaluation={"dev": "dev"}, **MAPPED)
    streamed = data("huggingface", path=str(tmp_path / "one"), streaming=True, **MAPPED)
    assert training(one, 20) == training(two, 20)
    assert {problem.id for problem in training(streamed, 20)} == {str(i) for i in range(20)}
    with two.open(Context()) as session:
        assert len(session.split("dev")) == 4
    with pytest.raises(InputError, match="no split 'test'; there are train, dev"):
        training(data("huggingface", path=str(tmp_path / "two"), train="test", **MAPPED), 1)
    with pytest.raises(InputError, match="no split 'test'"):
        training(data("huggingface", path=str(tmp_path / "one"), train="test", **MAPPED), 1)


@pytest.mark.parametrize("streaming", [False, True])
def test_a_data_set_that_can_not_be_had_is_an_error_about_the_input(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, streaming: bool
) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.is_offline_mode", lambda: True)
    path = str(parquet(tmp_path / "set", LETTERS, "train.parquet").parent)
    wrong = [{"path": "nobody/nothing"}, {"path": str(tmp_path / "nowhere")}, {"path": path, "train": "tets"}]
    for parameters in wrong:
        given = {"train": "train", **parameters, "streaming": streaming}
        with pytest.raises(InputError, match=f"{given['path']}: the split '{given['train']}' can't be had"):
            training(data("huggingface", **given, **MAPPED), 1)
    with pytest.raises(InputError, match=r"set, train: there is no column 'quest'; did you mean 'question'\?"):
        training(data("huggingface", path=path, streaming=streaming, **{**MAPPED, "prompt": "quest"}), 1)
    with pytest.raises(InputError, match="set, train, row 0: has no 'truth'"):
        training(data("huggingface", path=path, streaming=streaming, **{**MAPPED, "answer": "solution.truth"}), 1)


def test_code_of_a_data_set_is_never_run(tmp_path: Path) -> None:
    folder = tmp_path / "evil"
    folder.mkdir()
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    with pytest.raises(InputError, match="can't be had"):
        training(data("huggingface", path=str(folder)), 1)
    assert not (tmp_path / "ran").exists()


# Runs.


def chosen(folder: Path, source: str) -> dict[str, Any]:
    file = str(parquet(folder / "set", LETTERS, "train.parquet"))
    whole = {"path": str(Path(file).parent), "evaluation": {"test": "train[:4]"}, **MAPPED}
    return {
        "jsonl": lambda: {"path": lines(folder, *LETTERS), **MAPPED},
        "parquet": lambda: {"path": file, "evaluation": {"test": file}, **MAPPED},
        "huggingface": lambda: whole,
        "streamed": lambda: {"use": "huggingface", **whole, "streaming": True, "window": 8},
        "mixture": lambda: {"sources": {"one": {"use": "huggingface", **whole}}, "weights": {"one": 2.0}},
    }[source]()


@pytest.mark.parametrize("source", ["jsonl", "parquet", "huggingface", "streamed", "mixture"])
def test_a_run_on_each_source_resumes_to_the_same_bytes(tmp_path: Path, source: str) -> None:
    block = {"use": source, **chosen(tmp_path, source)}
    splits = ["one/test"] if source == "mixture" else list(block.get("evaluation", []))
    path = tiny.recipe(tmp_path, train={"save_every": 2}, eval={"splits": splits})
    made = json.loads(path.read_text())
    path.write_text(json.dumps({**made, "data": block}))
    whole = train(upge.load(path, [f"log.folder={tmp_path / 'whole'}"]))
    half = train(upge.load(path, [f"log.folder={tmp_path / 'half'}", "train.steps=4"]))
    shutil.rmtree(half / "checkpoints" / "step-000004")
    train(upge.load(path, [f"log.folder={tmp_path / 'half'}"]), resume=half)
    assert (whole / "completions.jsonl").read_bytes() == (half / "completions.jsonl").read_bytes()
    assert (whole / "metrics.jsonl").read_bytes() == (half / "metrics.jsonl").read_bytes()
