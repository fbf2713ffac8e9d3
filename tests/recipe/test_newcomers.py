"""What a newcomer writes, and what is said of it: the right name, the right slot, the right block."""

from __future__ import annotations

import io
import itertools
import re
from pathlib import Path

import pytest

import upge
from upge import registry
from upge.part import SLOTS
from upge.recipe import RecipeError, check
from upge.tables import folding


def said_of(folder: Path, text: str) -> str:
    path = folder / "mine.yaml"
    path.write_text(text)
    with pytest.raises(RecipeError) as refused:
        check(path)
    return str(refused.value)


GRPO = "extends: grpo.yaml\n"
TERM = GRPO + "estimator: {{terms: {{rl: {{{}}}}}}}\n"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            TERM.format("mask: group_norm"),
            "'group_norm' is an advantage: it belongs in estimator.terms.<term>.",
        ),
        (TERM.format("mask: group_nrom"), "did you mean 'group_norm'? it is an advantage"),
        (TERM.format("advantage: model_logp"), "'model_logp' is a field: it belongs in fields.<name>"),
        (TERM.format("advantage: kl_in_reward"), "'kl_in_reward' is a shaping: it belongs in estimator.shaping"),
        (TERM.format("denominator: rollouts"), "did you mean 'rollout'?"),
        (TERM.format("denominator: reference"), "reference_logp is a batch field, which the advantage kl"),
        (TERM.format("mask: {clip: {low: 0.2}}"), "a part is named by `use`, beside its parameters: {use: clip, ...}"),
        (TERM.format("mask: {_target_: clip}"), "a part is named by `use: NAME`"),
        (GRPO + "estimator: {mask: clip}\n", "'mask' belongs in a term: estimator.terms.<term>.mask"),
        (GRPO + "data: exact\n", "'exact' is a reward: it belongs in reward"),
        (GRPO + "model: ${MODEL}\n", "a recipe has no variables, and ${MODEL} would stay as it is"),
        (GRPO + "model: ${oc.env:MODEL,foo/bar}\n", "a recipe has no variables"),
        (GRPO + "train: {steps: ${STEPS}}\n", "a recipe has no variables, ${NAME}"),
        (GRPO + "log: {folder: 'runs/${USER}/x'}\n", "${USER} would stay as it is"),
        (GRPO + "model: {{ model }}\n", "a recipe isn't a template"),
        (GRPO + "train: !include t.yaml\n", "write extends: other.yaml, at the top"),
        ("defaults: [base]\n" + GRPO, "a recipe starts as another one with `extends: other.yaml`"),
        (GRPO + "optimizer: {learning_rate: 3e-4}\n", "it is called 'lr' here, in critic or optimizer"),
        (GRPO + "rollout: {num_generations: 8}\n", "it is called 'n' here, in rollout"),
        ("name: mine\ntrain: {steps: 3}\n", "`extends: other.yaml` takes it from another recipe"),
    ],
)
def test_a_wrong_word_is_met_with_the_right_one(tmp_path: Path, text: str, said: str) -> None:
    assert said in said_of(tmp_path, text)


def test_dollars_in_a_formula_are_no_variable(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(GRPO + "data: {use: lab, system: 'Write ${x}$, or ${\\boxed{y}}$.'}\n")
    assert check(path).recipe is not None


def test_the_base_is_told_of_once(tmp_path: Path) -> None:
    assert said_of(tmp_path, "name: mine\n").count("takes it from another recipe") == 1


def test_every_part_in_every_other_slot_is_sent_to_its_own() -> None:
    names = {slot: {offer.name for offer in registry.entries(slot)} for slot in SLOTS}
    for own, other in itertools.permutations(SLOTS, 2):
        for name in names[own] - names[other]:
            with pytest.raises(registry.UnknownPartError) as unknown:
                registry.find(SLOTS[other], name)
            assert f"'{name}' is " in unknown.value.hint
            assert own in unknown.value.hint or own == "data"


def test_a_line_on_a_parent_is_not_on_its_child(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(GRPO)
    assert upge.load("grpo").about
    assert upge.load(path).about == ""
    path.write_text(GRPO + "about: my own\n")
    assert upge.load(path).about == "my own"
    assert upge.load(path, ["about=from the command line"]).about == "from the command line"


@pytest.mark.parametrize("width", [20, 40, 80])
def test_a_narrow_table_folds_words_and_leaves_nothing_out(width: int) -> None:
    from rich.console import Console

    table, words = folding(), ("token_switching_mean", "a_rather_long_name_of_a_metric", "0.123456789")
    for word in words:
        table.add_column(word[:3])
    table.add_row(*words)
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(table)
    text = console.export_text()
    assert "…" not in text
    for word in words:
        assert sorted(set(word) - set(text)) == []


def test_no_table_of_a_command_is_made_in_another_way() -> None:
    files = (Path(upge.__file__).parent).rglob("*.py")
    assert [file for file in files if re.search(r"[^.\w]Table\((box|\))", file.read_text(encoding="utf-8"))] == []
