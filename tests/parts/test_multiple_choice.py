"""Multiple choice: from the columns that ARC, GPQA and others have to prompts with letters, and to the letter."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from support import tiny
from support.data_sources import data, lines, parquet, training
from typer.testing import CliRunner

import upge
from upge import Context, InputError, Problem
from upge.cli.main import app
from upge.train.run import train
from upge_parts.data.choices import Choices
from upge_parts.rewards.choice import Choice

ARC = [
    {
        "id": "Mercury_1",
        "question": "Which is a planet?",
        "choices": {"text": ["Sirius", "Mercury", "the Moon", "Halley"], "label": ["A", "B", "C", "D"]},
        "answerKey": "B",
    },
    {
        "id": "NYSEDREGENTS_2",
        "question": "Which is a gas at room temperature?",
        "choices": {"text": ["iron", "water", "neon"], "label": ["1", "2", "3"]},
        "answerKey": "3",
    },
]
"""Rows with the columns of ARC, the labels of the second in digits as some of ARC's are."""

GPQA = [
    {
        "Record ID": f"rec{index}",
        "Question": f"Question {index}?",
        "Correct Answer": f"right {index}",
        **{f"Incorrect Answer {wrong}": f"wrong {wrong}" for wrong in (1, 2, 3)},
        "Subdomain": "Physics",
    }
    for index in range(24)
]
"""Rows with the columns of GPQA."""

EVAL = Path(__file__).parents[2] / "recipes" / "eval"


def mapping(name: str) -> dict[str, Any]:
    """How a shipped recipe maps its columns."""
    block = upge.load(EVAL / f"{name}.yaml", ["abstract=false", "model.path=upge_parts:data/lab/base"]).data.dump()
    keys = ("prompt", "choices", "choices_seed", "answer", "id")
    return {key: block[key] for key in keys}


def problems(part: upge.Data, count: int) -> dict[str, Problem]:
    return {problem.id: problem for problem in training(part, count)}


def only(folder: Path, row: dict[str, Any], **parameters: Any) -> Problem:
    return training(data("jsonl", path=lines(folder, row), **parameters), 1)[0]


# The benchmarks' columns.


@pytest.mark.parametrize("form", ["jsonl", "parquet", "huggingface"])
def test_arc_gets_letters_whatever_its_labels_are(tmp_path: Path, form: str) -> None:
    path = lines(tmp_path, *ARC)
    if form != "jsonl":
        file = parquet(tmp_path / "set", ARC, "train.parquet")
        path = str(file if form == "parquet" else file.parent)
    found = problems(data(form, path=path, **mapping("arc_c")), 2)
    first, second = found["Mercury_1"], found["NYSEDREGENTS_2"]
    assert first.prompt == "Which is a planet?\n\nA. Sirius\nB. Mercury\nC. the Moon\nD. Halley"
    assert first.answer == "B"
    assert second.prompt == "Which is a gas at room temperature?\n\nA. iron\nB. water\nC. neon"
    assert second.answer == "C"
    with Choice().open(Context()) as session:
        assert session.score([(second, r"\boxed{C}"), (second, "The answer is (A).")]) == [1.0, 0.0]


def chosen(problem: Problem) -> str:
    """The text behind the letter that is a problem's answer."""
    assert isinstance(problem.prompt, str)
    return dict(line.split(". ", 1) for line in problem.prompt.splitlines()[2:])[problem.answer]


def test_gpqa_is_shuffled_by_the_problem_s_id_and_the_answer_moves_along(tmp_path: Path) -> None:
    settings = mapping("gpqa")
    file = parquet(tmp_path / "set", GPQA, "train.parquet")
    whole = problems(data("parquet", path=str(file), **settings), 24)
    assert {key: chosen(problem) for key, problem in whole.items()} == {f"rec{i}": f"right {i}" for i in range(24)}
    assert {problem.answer for problem in whole.values()} == set("ABCD")
    assert problems(data("jsonl", path=lines(tmp_path, *reversed(GPQA)), **settings), 24) == whole
    streamed = data("huggingface", path=str(file.parent), streaming=True, window=5, **settings)
    assert problems(streamed, 24) == whole
    assert training(streamed, 24, seed=3) != training(streamed, 24)
    assert problems(streamed, 24) == {problem.id: problem for problem in training(streamed, 24, seed=3)}
    other = problems(data("parquet", path=str(file), **{**settings, "choices_seed": 1}), 24)
    assert other != whole
    assert {key: chosen(problem) for key, problem in other.items()} == {f"rec{i}": f"right {i}" for i in range(24)}
    still = problems(data("parquet", path=str(file), **{**settings, "choices_seed": None}), 24)
    assert {problem.answer for problem in still.values()} == {"A"}


@given(texts=st.lists(st.text(min_size=1), min_size=2, max_size=26), key=st.text(), data=st.data())
def test_a_shuffle_keeps_the_choices_and_which_is_right(texts: list[str], key: str, data: st.DataObject) -> None:
    right = data.draw(st.integers(0, len(texts) - 1))
    shuffled = Choices(texts, right).shuffled(key)
    assert sorted(shuffled.texts) == sorted(texts)
    assert shuffled.right is not None
    assert shuffled.texts[shuffled.right] == texts[right]
    assert shuffled == Choices(texts, right).shuffled(key)


# Other rows.


@pytest.mark.parametrize(
    ("row", "letter"),
    [
        ({"choices": ["x", "y", "z"], "answer": "y"}, "B"),
        ({"choices": ["x", "y", "z"], "answer": "C"}, "C"),
        ({"choices": ["x", "y", "z"], "answer": 0}, "A"),
        ({"choices": [3, 4.5], "answer": "4.5"}, "B"),
        ({"choices": [{"label": "1", "text": "x"}, {"label": "2", "text": "y"}], "answer": 2}, "B"),
        ({"choices": ["A", "y"], "answer": "A"}, "A"),
    ],
)
def test_the_answer_is_a_choice_its_letter_its_label_or_its_place(
    tmp_path: Path, row: dict[str, Any], letter: str
) -> None:
    assert only(tmp_path, {"prompt": "?", **row}, choices="choices").answer == letter


def test_columns_of_choices_may_have_the_answer_beside_them(tmp_path: Path) -> None:
    row = {"prompt": "?", "a": "x", "b": "y", "answer": "so: B", "demonstration": "It is y."}
    settings = {"choices": ("a", "b"), "answer_after": ":", "demonstration_template": "{demonstration} {answer}"}
    assert only(tmp_path, row, **settings) == Problem("rows-1", "?\n\nA. x\nB. y", "B", "It is y. B")
    assert only(tmp_path, row, choices=("a", "b"), answer=None).answer is None


def test_templates_say_how_choices_are_put_and_braces_within_a_text_stay(tmp_path: Path) -> None:
    row = {"prompt": "Is {choices} {prompt}?", "choices": ["{letter}", "{choice}"], "answer": 1}
    settings = {"choices_template": "{choices}\n{prompt} {x}", "choice_template": "({letter}) {choice}"}
    asked = only(tmp_path, row, choices="choices", **settings)
    assert asked.prompt == "(A) {letter}\n(B) {choice}\nIs {choices} {prompt}? {x}"
    turns = [{"role": "system", "content": "Choose."}, {"role": "user", "content": "Which?"}]
    asked = only(tmp_path, {**row, "prompt": turns}, choices="choices", choice_template="{letter}) {choice}")
    assert asked.prompt == [turns[0], {"role": "user", "content": "Which?\n\nA) {letter}\nB) {choice}"}]


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"choices": ["x", "y"], "answer": "z"}, "'answer' is none of the choices, their letters and their places: z"),
        ({"choices": ["x", "y"], "answer": "C"}, "is none of the choices"),
        ({"choices": ["x", "y"], "answer": 2}, "is none of the choices"),
        ({"choices": ["x", "x"], "answer": "x"}, "'answer' is more than one of the choices"),
        ({"choices": ["B", "y"], "answer": "B"}, "'answer' is more than one of the choices"),
        ({"choices": ["x"], "answer": "x"}, "'choices' has 1 choices; there can be 2 to 26"),
        ({"choices": ["x"] * 27, "answer": 0}, "'choices' has 27 choices"),
        ({"choices": ["x", ""], "answer": 0}, "'choices' should be texts to choose from, none of them empty"),
        ({"choices": ["x", True], "answer": 0}, "'choices' should be texts"),
        ({"choices": "xy", "answer": 0}, "'choices' should be texts"),
        ({"choices": {"text": ["x", "y"], "label": ["A"]}, "answer": "A"}, "two lists of one length"),
        ({"choices": {"text": ["x", "y"], "label": ["A", "B"]}, "answer": "x"}, "none of the labels A, B: x"),
        ({"choices": {"text": ["x", "y"], "label": ["A", "A"]}, "answer": "A"}, "none of the labels"),
        ({"choises": ["x", "y"], "answer": 0}, "has no 'choices'; did you mean 'choises'?"),
    ],
)
def test_rows_that_can_not_be_chosen_from_are_named(tmp_path: Path, row: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError) as refused:
        only(tmp_path, {"prompt": "?", **row}, choices="choices")
    assert said in str(refused.value)
    assert "rows.jsonl:1:" in str(refused.value)


@pytest.mark.parametrize(
    ("key", "template", "said"),
    [
        ("choices_template", "{prompt}", r"has no \{choices\}"),
        ("choice_template", "{choice}", r"has no \{letter\}"),
        ("choice_template", "{letter}", r"has no \{choice\}"),
    ],
)
def test_templates_that_leave_something_out_are_refused(key: str, template: str, said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        data("jsonl", path="x", choices="choices", **{key: template})


def test_a_parquet_file_without_a_choice_s_column_says_which_are_near(tmp_path: Path) -> None:
    path = parquet(tmp_path, GPQA)
    wrong = {**mapping("gpqa"), "choices": ("Correct Answer", "Incorrect Anser 1")}
    with pytest.raises(InputError, match="there is no column 'Incorrect Anser 1'; did you mean 'Incorrect Answer 1'"):
        training(data("parquet", path=str(path), **wrong), 1)


# Runs and evaluations.


def task(folder: Path) -> Path:
    """The tiny recipe on choices between letters."""
    rows = [{"question": f"{letter}?", "options": ["a", "b", "c"], "truth": letter} for letter in "abcab"]
    path = tiny.recipe(folder)
    block = {"path": lines(folder, *rows), "prompt": "question", "choices": "options", "answer": "truth"}
    both = {"use": "jsonl", **block, "evaluation": {"test": block["path"]}, "choices_template": "{prompt}{choices}"}
    path.write_text(json.dumps({**json.loads(path.read_text()), "data": both, "reward": "choice"}))
    return path


@pytest.mark.parametrize(("options", "shared"), [(["a", "b", "c"], 5), (["a", "b", "?"], 0)])
def test_prompts_are_compared_with_their_choices(tmp_path: Path, options: list[str], shared: int) -> None:
    recipe = task(tmp_path)
    rows = [{"question": f"{letter}?", "options": options, "truth": 0} for letter in "abc"]
    (tmp_path / "held.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    overrides = [f"data.evaluation.test={tmp_path / 'held.jsonl'}", "train.steps=1", "eval.splits=[]"]
    folder = train(upge.load(recipe, overrides))
    first = json.loads((folder / "metrics.jsonl").read_text().splitlines()[0])
    assert (first["data/problems"], first["data/overlap/test"]) == (5, shared)


def test_an_evaluation_scores_choices_from_given_responses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    recipe = task(tmp_path)
    texts = ["The answer is A", "(A)", "C.", r"\boxed{B}", "B"]
    said = [{"problem": f"rows-{index}", "text": text} for index, text in enumerate(texts, start=1)]
    (tmp_path / "given.jsonl").write_text("".join(json.dumps(line) + "\n" for line in said))
    overrides = ["eval.n=1", "eval.pass_at=[1]", "eval.limit=null", "--output", "out"]
    result = CliRunner().invoke(
        app, ["eval", "--completions", "given.jsonl", "--recipe", str(recipe), *overrides], catch_exceptions=False
    )
    assert result.exit_code == 0, result.output
    kept = [json.loads(line) for line in (tmp_path / "out" / "problems.jsonl").read_text().splitlines()]
    assert [line["right"] for line in kept] == [1, 0, 1, 0, 1]
    assert [line["answers"] for line in kept] == [["A"], ["A"], ["C"], ["B"], ["B"]]
