"""reasoning_gym's generators as a source, and its scorers as a reward, which makes an entry again from its name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from support import tiny
from support.data_sources import data, training

import upge
from upge import Context, InputError, Problem, registry
from upge.part import SLOTS
from upge.train.run import train
from upge_parts.data.gym import configured, entry_of, name_of

SUMS = {"generator": "chain_sum", "configuration": {"min_terms": 2, "max_terms": 3}, "size": 12}
STORIES = {"generator": "gsm_symbolic", "size": 6, "demonstration": "metadata.answer_cot"}


def score(problem: Problem, *texts: str, **parameters: Any) -> list[float]:
    part = registry.find(SLOTS["reward"], "reasoning_gym").model_validate(parameters)
    with part.open(Context()) as session:
        return session.score([(problem, text) for text in texts])


def test_names_lead_back() -> None:
    configuration = {"size": 3, "seed": 0, "words": ["a/b", "c#d", "e&f=g?"], "nested": {"x": None}, "share": 0.5}
    name = name_of("a_generator", configuration, 17)
    assert "/" not in name
    assert name == name_of("a_generator", dict(reversed(configuration.items())), 17)
    for written in (name, f"puzzles/{name}", f"outer/inner/{name}"):
        assert (configured(entry_of(written)[0]), entry_of(written)[1]) == (("a_generator", configuration), 17)


@pytest.mark.parametrize("name", ["p0", "sum#1", "a?b=1", "a?b=1#x", ""])
def test_other_names_name_no_entry(name: str) -> None:
    with pytest.raises(InputError, match="names no entry of reasoning_gym; the reward 'reasoning_gym' is for"):
        score(Problem(name, "?", "1"), "1")


@pytest.mark.needs("reasoning_gym")
def test_a_generator_s_problems_are_those_of_its_configuration_and_seed() -> None:
    import reasoning_gym as gym

    problems = {problem.id: problem for problem in training(data("reasoning_gym", **SUMS, seed=5), 12)}
    assert len(problems) == 12
    for index, entry in enumerate(gym.create_dataset("chain_sum", min_terms=2, max_terms=3, seed=5, size=12)):
        name = f"chain_sum?max_terms=3&min_terms=2&seed=5&size=12#{index}"
        assert problems[name] == Problem(name, entry["question"], entry["answer"])


@pytest.mark.needs("reasoning_gym")
def test_a_problem_has_the_numbers_and_texts_of_its_entry() -> None:
    for problem in training(data("reasoning_gym", **SUMS), 4):
        columns = problem.columns
        assert (columns["question"], columns["answer"]) == (problem.prompt, problem.answer)
        assert columns["num_terms"] in (2, 3)
        assert all(isinstance(x, str | int | float) for x in columns.values())


@pytest.mark.needs("reasoning_gym")
def test_worked_solutions_are_demonstrations() -> None:
    part = data("reasoning_gym", **STORIES, demonstration_template="{demonstration}\nThe answer is {answer}")
    for problem in training(part, 6):
        assert problem.demonstration is not None
        assert problem.demonstration.endswith(f"#### {problem.answer}\nThe answer is {problem.answer}")
        assert score(problem, problem.demonstration, after="The answer is") == [1.0]
    with pytest.raises(InputError, match=r"gsm_symbolic\?.*#0: has no 'answer_cott'; did you mean 'answer_cot'\?"):
        training(data("reasoning_gym", **{**STORIES, "demonstration": "metadata.answer_cott"}), 1)


@pytest.mark.needs("reasoning_gym")
def test_its_own_scorer_scores_and_what_is_partly_right_is_wrong_unless_asked() -> None:
    import reasoning_gym as gym

    # Any expression that makes the target is right, and the metadata, which are no part of a problem, say which.
    problem = training(data("reasoning_gym", generator="countdown", size=3), 1)[0]
    other = f"0 + {problem.answer}"
    assert score(problem, problem.answer, "1") == [1.0, 0.0]
    written, index = entry_of(problem.id)
    dataset = gym.create_dataset("countdown", **configured(written)[1])
    expected = [dataset.score_answer(text, dataset[index]) for text in (problem.answer, other, "1")]
    assert score(problem, problem.answer, other, "1", partial=True) == expected
    assert 0 < expected[-1] < 1, "the scorer gives something for any number"
    assert score(problem, f"So it is: {problem.answer}", problem.answer, after="it is:") == [1.0, 0.0]


@pytest.mark.needs("reasoning_gym")
def test_a_response_that_the_scorer_can_not_read_is_wrong() -> None:
    import reasoning_gym as gym

    problem = training(data("reasoning_gym", generator="prime_factorization", size=2), 1)[0]
    written, index = entry_of(problem.id)
    dataset = gym.create_dataset("prime_factorization", **configured(written)[1])
    with pytest.raises(ValueError, match="invalid literal"):
        dataset.score_answer("two and three", dataset[index])
    assert score(problem, "two and three", problem.answer) == [0.0, 1.0]


@pytest.mark.needs("reasoning_gym")
def test_a_puzzle_of_many_solutions_has_no_answer_and_is_scored_all_the_same() -> None:
    problem = training(data("reasoning_gym", generator="rush_hour", size=2), 1)[0]
    assert problem.answer is None
    assert score(problem, "nonsense") == [0.0]


@pytest.mark.needs("reasoning_gym")
def test_splits_may_be_harder_and_are_never_of_training_s_seeds() -> None:
    splits = {"test": {"seed": 100, "size": 4}, "hard": {"seed": 200, "size": 5, "min_terms": 6, "max_terms": 6}}
    with data("reasoning_gym", **SUMS, evaluation=splits).open(Context(seed=1)) as session:
        assert [len(session.split(name)) for name in session.splits()] == [4, 5]
        operators = [sum(problem.prompt.count(sign) for sign in "+-") for problem in session.split("hard")]
        assert min(operators) >= 5
        assert {problem.prompt for problem in session.take(0, 12)}.isdisjoint(p.prompt for p in session.split("test"))


@pytest.mark.parametrize(
    ("parameters", "said"),
    [
        ({"evaluation": {"test": {"seed": 11, "size": 5}}}, "training's, which have the seeds 0 to 11"),
        ({"seed": 3, "evaluation": {"test": {"seed": 0, "size": 4}}}, "training's, which have the seeds 3 to 14"),
        ({"evaluation": {"test": {"size": 5}}}, "needs 'seed', a whole number of at least 0"),
        ({"evaluation": {"test": {"seed": 99, "size": True}}}, "needs 'size', a whole number of at least 1"),
        ({"configuration": {"seed": 1}}, "'seed' is a setting of its own"),
    ],
)
def test_settings_that_would_mix_training_and_evaluation_are_refused(parameters: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        data("reasoning_gym", **{**SUMS, **parameters})


def test_neighbouring_seeds_are_not_training_s() -> None:
    assert data("reasoning_gym", **SUMS, evaluation={"test": {"seed": 12, "size": 5}})
    assert data("reasoning_gym", **SUMS, seed=5, evaluation={"test": {"seed": 0, "size": 5}})


@pytest.mark.needs("reasoning_gym")
@pytest.mark.parametrize(
    ("parameters", "said"),
    [
        ({"generator": "chain_sums"}, "no generator 'chain_sums'; did you mean 'chain_sum'"),
        ({"configuration": {"terms": 3}}, "chain_sum refuses its configuration: .*'terms'"),
        ({"configuration": {"min_terms": 9, "max_terms": 2}}, "chain_sum refuses its configuration: max_terms must"),
    ],
)
def test_what_it_has_not_got_is_an_error_about_the_input(parameters: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        training(data("reasoning_gym", **{**SUMS, **parameters}), 1)


def test_without_the_package_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "reasoning_gym", None)
    with pytest.raises(InputError, match=r"pip install 'upge\[reasoning-gym\]'"):
        training(data("reasoning_gym", **SUMS), 1)


@pytest.mark.needs("reasoning_gym")
def test_a_run_in_a_mixture_is_scored_by_it(tmp_path: Path) -> None:
    puzzles = {
        **SUMS,
        "use": "reasoning_gym",
        "evaluation": {"test": {"seed": 50, "size": 3}},
        "demonstration": "answer",
    }
    path = tiny.recipe(
        tmp_path,
        train={"steps": 2},
        eval={"splits": ["sums/test"], "n": 2},
        model={"config": {**tiny.LLAMA, "max_position_embeddings": 256}},
    )
    made = json.loads(path.read_text())
    made |= {"data": {"use": "mixture", "sources": {"sums": puzzles}}, "reward": {"use": "reasoning_gym"}}
    path.write_text(json.dumps(made))
    folder = train(upge.load(path))
    looked, measured, *_ = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert looked["data/overlap/sums/test"] == 0
    assert measured["sums/test/avg@2"] == 0
    completions = [json.loads(line) for line in (folder / "completions.jsonl").read_text().splitlines()]
    assert {line["problem"].partition("?")[0] for line in completions} == {"sums/chain_sum"}


@pytest.mark.needs("reasoning_gym")
def test_what_evaluation_asks_can_be_left_out_of_training() -> None:
    digits = {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1}
    parameters = {"generator": "chain_sum", "configuration": digits, "evaluation": {"test": {"seed": 9999, "size": 60}}}
    kept = {}
    for disjoint in (False, True):
        with data("reasoning_gym", **parameters, size=200, disjoint=disjoint).open(Context()) as session:
            asked = {each.prompt for each in session.split("test")}
            kept[disjoint] = {each.prompt for each in session.training}
    assert kept[False] & asked
    assert kept[True] == kept[False] - asked
    every = parameters | {"evaluation": {"test": {"seed": 9999, "size": 4000}}}
    with pytest.raises(InputError, match=r"raise data\.size"):
        training(data("reasoning_gym", **every, size=20, disjoint=True), 1)


@pytest.mark.needs("reasoning_gym")
@pytest.mark.parametrize(
    ("text", "right"),
    [("{}", True), (" {}\n\nAnd so on: 1", True), ("\n{}\n", True), ("It is\n{}", False), ("{} 5", False), ("", False)],
)
def test_only_the_first_line_may_be_read(text: str, right: bool) -> None:
    (problem,) = training(data("reasoning_gym", generator="chain_sum", size=1), 1)
    assert score(problem, text.format(problem.answer), first_line=True) == [float(right)]
