"""`upge eval --completions`: responses that are there already, their scores and their votes."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from support import tiny
from support.evaluations import FILES, call, done, given_completions, lines, measured_run, refused, same

import upge
from upge.train.run import train


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run that took no step; its folder's parent is the working folder."""
    monkeypatch.chdir(tmp_path)
    return measured_run(tmp_path)


def test_given_completions_are_scored_twice_alike(run: Path) -> None:
    file = given_completions({"p0": ["a", "b", "a"], "p1": ["c", "c", "b"], "p2": [" c", "b", "a"]})
    for name in ("one", "other"):
        done("--completions", file, "--recipe", "recipe.yaml", "eval.limit=3", "eval.pass_at=[2]", "--output", name)
    assert same(Path("one"), Path("other"), *FILES)
    scores = json.loads(Path("one/summary.json").read_text())["scores"]["test"]
    assert scores["avg@3"]["value"] == pytest.approx((2 + 1 + 1) / 9)
    assert scores["pass@2"]["value"] == pytest.approx((1 + 2 / 3 + 2 / 3) / 3)
    assert scores["maj@3"]["value"] == pytest.approx((1 + 0 + 1 / 3) / 3)
    assert "length" not in scores
    assert [each["right"] for each in lines(Path("one/problems.jsonl"))] == [2, 1, 1]


def test_an_evaluation_scored_again_is_the_same(run: Path) -> None:
    done(run, "--output", "first")
    done("--completions", "first/completions.jsonl", "--chunk", "5", "--output", "again")
    assert same(Path("first"), Path("again"), "completions.jsonl", "problems.jsonl")


def test_of_a_run_the_last_measurement_is_scored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder = train(upge.load(tiny.recipe(tmp_path), ["train.steps=2"]))
    done("--completions", folder / "completions.jsonl", "--output", "last")
    assert {each["step"] for each in lines(Path("last/completions.jsonl"))} == {2}


def test_cut_responses_score_what_the_recipe_says(run: Path) -> None:
    file = given_completions({"p0": ["a"]}, truncated=True)
    rest = ("eval.limit=1", "eval.pass_at=[]", "--output")
    done("--completions", file, "--recipe", "recipe.yaml", *rest, "kept")
    done("--completions", file, "--recipe", "recipe.yaml", "rollout.truncated=zero_reward", *rest, "zeroed")
    assert [lines(Path(name) / "problems.jsonl")[0]["rewards"] for name in ("kept", "zeroed")] == [[1.0], [0.0]]


def test_a_reward_without_answers_gives_no_majority(run: Path) -> None:
    Path("plain.py").write_text(PLAIN)
    file = given_completions({"p0": ["a", "b"]})
    reward = ("reward={use: 'plain.py:Plain'}", "--allow-code")
    result = done("--completions", file, "--recipe", "recipe.yaml", "eval.limit=1", *reward, "--output", "out")
    assert "the reward's session has no `answer`" in result.stderr
    assert "maj@2" not in (Path("out") / "summary.json").read_text()
    assert "answers" not in lines(Path("out/problems.jsonl"))[0]


PLAIN = '''
from contextlib import contextmanager
import upge

class Session:
    def score(self, pairs):
        return [0.5 for _ in pairs]

class Plain(upge.Reward):
    """Half."""

    @contextmanager
    def open(self, context):
        yield Session()
'''


def test_an_answer_that_is_no_text_is_the_rewards_fault(run: Path) -> None:
    Path("plain.py").write_text(
        PLAIN.replace("    def score", "    answer = len\n    def score", 1).replace("len", ANSWER)
    )
    file = given_completions({"p0": ["a", "b"]})
    reward = ("reward={use: 'plain.py:Plain'}", "--allow-code")
    result = call("--completions", file, "--recipe", "recipe.yaml", "eval.limit=1", *reward)
    assert type(result.exception).__name__ == "PartError"
    assert "Plain (reward) answered 1" in str(result.exception)
    assert "command line:" in str(result.exception)


ANSWER = "staticmethod(len)"


CLASSES = """
    def answer(self, text):
        return text

    def classes(self, problem, answers):
        return [len(answer) for answer in answers]

    def score"""


def test_a_vote_is_for_all_answers_that_the_reward_takes_for_the_same(run: Path) -> None:
    Path("plain.py").write_text(
        PLAIN.replace("    def score", CLASSES.lstrip("\n"), 1).replace("0.5", "float(_[1] == 'bb')")
    )
    file = given_completions({"p0": ["a", "a", "bb", "cc", "dd"], "p1": ["a", "a", "b", "bb", "cc"]})
    reward = ("reward={use: 'plain.py:Plain'}", "--allow-code")
    done("--completions", file, "--recipe", "recipe.yaml", "eval.limit=2", *reward, "--output", "out")
    first, second = lines(Path("out/problems.jsonl"))
    assert first["answers"] == ["a", "a", "bb", "bb", "bb"]
    assert second["answers"] == ["a", "a", "a", "bb", "bb"]
    assert [line["answer"] for line in lines(Path("out/completions.jsonl"))][2:5] == ["bb", "cc", "dd"]
    scores = json.loads(Path("out/summary.json").read_text())["scores"]["test"]
    assert scores["maj@5"]["value"] == pytest.approx((1 / 3 + 0) / 2)


@pytest.mark.parametrize("wrong", ["[1]", "None", "[answers, answers]"])
def test_classes_that_are_none_are_the_rewards_fault(run: Path, wrong: str) -> None:
    source = PLAIN.replace("    def score", CLASSES.lstrip("\n"), 1).replace(
        "[len(answer) for answer in answers]", wrong
    )
    Path("plain.py").write_text(source)
    file = given_completions({"p0": ["a", "bb"]})
    reward = ("reward={use: 'plain.py:Plain'}", "--allow-code")
    result = call("--completions", file, "--recipe", "recipe.yaml", "eval.limit=1", *reward)
    assert type(result.exception).__name__ == "PartError"
    assert "Plain (reward) returned" in str(result.exception)


@pytest.mark.parametrize(("score", "said"), [("'a'", "'a'"), ("float('nan')", "nan"), ("None", "None")])
def test_a_reward_within_weighted_answers_for_its_own_scores(run: Path, score: str, said: str) -> None:
    Path("plain.py").write_text(PLAIN.replace("0.5", score))
    reward = ("reward={use: weighted, rewards: [{use: 'plain.py:Plain'}, format], weights: [1, 1]}", "--allow-code")
    file = given_completions({"p0": ["a", "bb"]})
    result = call("--completions", file, "--recipe", "recipe.yaml", "eval.limit=1", *reward)
    assert type(result.exception).__name__ == "PartError"
    assert f"Plain (reward, one of 'weighted') returned {said}" in str(result.exception)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("not JSON", "given.jsonl:1: not JSON"),
        ("[1]", "given.jsonl:1: not a JSON object"),
        ('{"problem": "p0"}', "given.jsonl:1: has no 'text'"),
        ('{"problem": "p0", "text": 3}', "given.jsonl:1: 'text' can't be 3"),
        ('{"problem": "p7", "text": "a"}', "no response to a problem of 'test'"),
        ('{"problem": "p0", "text": "a"}', "has 0 responses to 'p13' of 'test' and 1 to others"),
        ('{"problem": "p0", "text": "a", "sample": 4}\n' * 2, "given.jsonl:2: sample 4 of 'p0' is there twice"),
        ('{"problem": "p0", "text": "a"}\n{"problem": "p1", "text": "a"}', "1 responses .* needs 2"),
    ],
)
def test_wrong_completions(run: Path, content: str, said: str) -> None:
    Path("given.jsonl").write_text(content)
    message = refused("--completions", "given.jsonl", "--recipe", "recipe.yaml", "eval.limit=2", "--output", "out")
    assert re.search(said, message), message
    assert not Path("out").exists()


def test_several_splits_need_streams(run: Path) -> None:
    file = given_completions({"p0": ["a"]})
    two = ["data.evaluation.more=problems.jsonl", "eval.splits=[test, more]"]
    assert "has no 'stream'; with several splits" in refused("--completions", file, "--recipe", "recipe.yaml", *two)
