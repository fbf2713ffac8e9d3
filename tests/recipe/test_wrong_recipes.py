"""Wrong recipes: exit 2, no traceback, the place that the fault has, and a suggestion where one is near.

A case replaces a piece of a good recipe; ▶ stands right before the place that must be reported, and is taken out.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from support.good_recipe import GOOD
from typer.testing import CliRunner

import upge
from upge.cli.app import is_about_input
from upge.cli.main import app
from upge.recipe import RecipeError
from upge.recipe.resolve import check

# what is wrong: (piece of GOOD, its replacement, words of the message or hint)
CASES = {
    "unknown block": ("log: {", "▶logs: {", "did you mean 'log'?"),
    "typo in model": ("model: upge_parts:data/lab/base", "model: {▶pth: x}", "did you mean 'path'?"),
    "typo in data": ("data: lab", "data: {use: lab, ▶band: [never]}", "did you mean 'bands'?"),
    "typo in reward": ('after: "="', '▶aftr: "="', "did you mean 'after'?"),
    "typo in rollout": ("max_tokens: 16", "▶max_token: 16", "did you mean 'max_tokens'?"),
    "typo in optimizer": ("clip_norm", "▶clipnorm", "did you mean 'clip_norm'?"),
    "typo in train": ("  prompts: 8", "  ▶prompt: 8", "did you mean 'prompts'?"),
    "typo in eval": ("pass_at", "▶pass_a", "did you mean 'pass_at'?"),
    "typo in log": ("folder:", "▶foldr:", "did you mean 'folder'?"),
    "typo in estimator": ("  switch:", "  ▶swich:", "did you mean 'switch'?"),
    "typo in switch": ("threshold:", "▶treshold:", "did you mean 'threshold'?"),
    "typo in a term": ("      denominator: old", "      ▶denominater: old", "did you mean 'denominator'?"),
    "typo in a mask": ("high: 0.2", "▶hgih: 0.2", "did you mean 'high'?"),
    "typo in an advantage": ("epsilon: 1e-6", "▶eps: 1e-6", "epsilon"),
    "a truth for a number": (
        "mask: {use: clip, low: 0.2, high: 0.2}",
        "mask: {use: entropy_weight, sign: ▶true, scale: 1.0}",
        "'sign' should be -1 or 1, not true",
    ),
    "a fraction for a whole number": (
        "mask: {use: clip, low: 0.2, high: 0.2}",
        "mask: {use: entropy_weight, sign: ▶1.0, scale: 1.0}",
        "'sign' should be -1 or 1, not 1.0",
    ),
    "unknown mask": ("use: clip", "use: ▶clipp", "did you mean 'clip'?"),
    "unknown denominator": ("denominator: old", "denominator: ▶odl", "did you mean 'old'?"),
    "unknown advantage": ("use: group_norm", "use: ▶group_nrom", "did you mean 'group_norm'?"),
    "unknown reduction": ("reduction: constant", "reduction: ▶constnat", "did you mean 'constant'?"),
    "unknown switch": ("use: success_rate", "use: ▶sucess_rate", "did you mean 'success_rate'?"),
    "unknown reward": ("use: exact", "use: ▶exat", "did you mean 'exact'?"),
    "unknown engine": ("engine: transformers", "engine: ▶tranformers", "did you mean 'transformers'?"),
    "unknown data": ("data: lab", "data: ▶labb", "did you mean 'lab'?"),
    "unknown source": ("source: rollouts", "source: ▶rollout", "did you mean 'rollouts'?"),
    "unknown package": ("use: clip", "use: ▶nobody/clip", "no mask"),
    "text for a number": ("n: 4, temperature", "n: ▶four, temperature", "integer"),
    "quoted number": ("low: 0.2", 'low: ▶"0.2"', "number"),
    "float for an integer": ("steps: 10", "steps: ▶10.5", "integer"),
    "truth for a number": ("steps: 10", "steps: ▶true", "integer"),
    "negative bound": ("low: 0.2", "low: ▶-0.2", "greater than or equal to 0"),
    "zero prompts": ("prompts: 8", "prompts: ▶0", "greater than or equal to 1"),
    "zero temperature": ("temperature: 1.0", "temperature: ▶0.0", "> 0"),
    "infinite rate": ("lr: 1e-4", "lr: ▶.inf", "finite"),
    "a list where a map belongs": ("train:\n  steps: 10\n  prompts: 8", "train: ▶[10, 8]", "a map"),
    "a map where a list belongs": ("splits: [test]", "splits: ▶{test: 1}", "a list"),
    "a number where a map belongs": ("{lr: 1e-4, clip_norm: 1.0}", "▶3", "a map"),
    "a number where a part belongs": ("denominator: old", "denominator: ▶7", "name of a denominator"),
    "a part without use": ("advantage: {use: group_norm, ", "▶advantage: {", "'use' is missing"),
    "typo in use": ("{use: group_norm", "{▶ues: group_norm", "did you mean 'use'?"),
    "a number for a name": ("use: group_norm", "use: ▶3", "name of an advantage"),
    "a key of another block": (
        "      denominator: old",
        "      denominator: old\n      ▶n: 4",
        "'n' belongs in rollout",
    ),
    "missing parameter": (
        "mask: {use: clip, low: 0.2, high: 0.2}",
        "▶mask: {use: clip, low: 0.2}",
        "'high' is missing",
    ),
    "missing block": ("optimizer: {lr: 1e-4, clip_norm: 1.0}\n", "", "'optimizer' is missing"),
    "missing rate": ("optimizer: {lr: 1e-4, clip_norm: 1.0}", "▶optimizer: {clip_norm: 1.0}", "'lr' is missing"),
    "missing factor": ("      denominator: old\n", "", "'denominator' is missing"),
    "duplicate key": ("  prompts: 8", "  prompts: 8\n  ▶steps: 11", "steps"),
    "anchor": ("data: lab", "data: ▶&x lab", "anchor"),
    "alias": ("data: lab", "data: ▶*x", "alias"),
    "merge key": ("train:\n", "train:\n  ▶<<: {}\n", "merge"),
    "tag": ("steps: 10", "steps: ▶!!int 10", "tag"),
    "key that is no text": ("log: {folder: runs/good}", "▶7: 8", "key"),
    "tab": ("  steps: 10", "▶\tsteps: 10", "tab"),
    "unclosed bracket": ("splits: [test]", "splits: [test", ""),
    "unclosed quote": ('after: "="', 'after: "=', ""),
    "colon too many": ("data: lab", "data: lab: x", ""),
    "switch names no term": ("above: rl", "above: ▶lr", "no term 'lr'"),
    "count_with names no term": ("source: rollouts", "source: rollouts\n      count_with: ▶sfft", "no term 'sfft'"),
    "pass@k without samples": ("pass_at: [4]", "pass_at: [▶8]", "n is 4"),
    "more minibatches than prompts": ("  prompts: 8", "  prompts: 8\n  minibatches: ▶9", "whole prompts"),
    "cut sampling": ("n: 4, temperature", "top_p: ▶0.9, n: 4, temperature", "not samples of the policy"),
    "no critic for its values": (
        "advantage: {use: group_norm, epsilon: 1e-6}",
        "advantage: ▶{use: gae}",
        "add a critic",
    ),
    "correcting twice": (
        "mask: {use: clip, low: 0.2, high: 0.2}\n      denominator: old",
        "mask: [none, ▶{use: truncated_importance, cap: 2.0}]\n      denominator: rollout",
        "counts twice",
    ),
    "refill without rounds": ("n: 4, temperature", "▶refill: {}, n: 4, temperature", "'rounds' is missing"),
    "soft limit beyond the limit": (
        "estimator:",
        "estimator:\n  shaping: {use: overlong, soft_limit: ▶16}",
        "below the limit 16",
    ),
    "reserved word misspelt": (
        "advantage: {use: group_norm, epsilon: 1e-6}",
        "advantage: {use: gae, ▶lamda: 1.0}",
        "did you mean 'lambda'?",
    ),
    "a phase of nothing": (
        "switch: {use: success_rate, threshold: 0.0, above: rl, otherwise: sft}",
        "switch: {use: phases, first: ▶[], then: rl, steps: 3}",
        "at least 1 item",
    ),
    "a weight of no term": (
        "switch: {use: success_rate, threshold: 0.0, above: rl, otherwise: sft}",
        "switch: {use: always, weights: {rl: 1.0, ▶sfft: 0.5}}",
        "no term 'sfft'",
    ),
    "a phase that names no term": (
        "switch: {use: success_rate, threshold: 0.0, above: rl, otherwise: sft}",
        "switch: {use: phases, first: ▶sfft, then: rl, steps: 3}",
        "no term 'sfft'",
    ),
    "missing reference folder": ("log: {", "reference: ▶./nowhere\nlog: {", "no folder './nowhere'"),
    "typo in the critic": ("log: {", "critic: {lr: 1e-4, ▶clp: 0.2}\nlog: {", "did you mean 'clip'?"),
    "missing model folder": ("upge_parts:data/lab/base", "▶./nowhere", "no folder './nowhere'"),
    "a Hub id without its owner": ("upge_parts:data/lab/base", "▶gpt2", "the Hub is named owner/name"),
    "missing tokenizer folder": (
        "model: upge_parts:data/lab/base",
        "model: {path: upge_parts:data/lab/base, tokenizer: ▶./nowhere}",
        "no folder './nowhere'",
    ),
    "a home that nobody has": ("upge_parts:data/lab/base", "▶~nobody_at_all/base", "no folder '~nobody_at_all/base'"),
    "a name too long for a folder": ("upge_parts:data/lab/base", f"▶./{'x' * 5000}", "no folder"),
    "no path": ("folder: runs/good", r'folder: ▶"a\0b"', "no path can contain"),
    "model twice": (
        "model: upge_parts:data/lab/base",
        "model: {path: a/b, ▶config: {model_type: llama}, tokenizer: a/b}",
        "not both",
    ),
    "no model at all": ("model: upge_parts:data/lab/base", "▶model: {dtype: float32}", "(random weights) is missing"),
    "random weights alone": ("model: upge_parts:data/lab/base", "▶model: {config: {a: b}}", "'tokenizer' is missing"),
    "a schedule that leaves its bounds": (
        "lr: 1e-4",
        "lr: {start: 1.0, end: ▶-1.0, steps: 5}",
        "'end' should be ≥ 0",
    ),
    "a number for the truth": ("name: good", "name: good\nabstract: ▶0", "true or false"),
    "half a schedule misspelt": ("lr: 1e-4", "lr: {start: 1.0, end: 0.0, ▶stps: 5}", "did you mean 'steps'?"),
    "setting among the terms": ("    sft: {source", "    ▶mask: clip\n    sft: {source", "is a term's setting"),
    "code in a file": ("use: clip", "use: ▶mine.py:Clip", "--allow-code"),
    "bad name": ("name: good", "name: ▶'a b'", "pattern"),
    "half a schedule": ("lr: 1e-4", "▶lr: {start: 1e-4, end: 0}", "'steps' is missing"),
    "extends nothing": ("name: good", "name: good\nextends: ▶bse.yaml", ""),
    "extends itself": ("name: good", "name: good\nextends: ▶wrong.yaml", ""),
}
# Cases whose place is another than the replacement's own: the enclosing block's key, or where the parser noticed.
PLACES = {
    "missing block": (1, 1),
    "missing factor": (16, 5),
}


def wrong(case: str) -> tuple[str, tuple[int, int] | None]:
    """The recipe of a case, and the line and column that must be reported, if the case fixes them."""
    piece, replacement, _ = CASES[case]
    assert GOOD.count(piece) == 1, f"{piece!r} should stand once in the good recipe"
    text = GOOD.replace(piece, replacement)
    if "▶" not in text:
        return text, PLACES.get(case)
    before = text[: text.index("▶")]
    return text.replace("▶", ""), (before.count("\n") + 1, len(before) - before.rfind("\n"))


def test_there_are_at_least_forty() -> None:
    assert len(CASES) >= 40


def test_the_good_recipe_is_good(tmp_path: Path) -> None:
    recipe = tmp_path / "good.yaml"
    recipe.write_text(GOOD)
    assert upge.load(recipe).name == "good"


@pytest.mark.parametrize("case", CASES)
def test_a_wrong_recipe_is_refused_with_its_place(case: str, tmp_path: Path) -> None:
    text, place = wrong(case)
    path = tmp_path / "wrong.yaml"
    path.write_text(text)
    with pytest.raises(RecipeError) as caught:
        upge.load(path)
    places = [(fault.place.line, fault.place.column) for fault in caught.value.faults if fault.place]
    assert CASES[case][2].lower() in str(caught.value).lower()
    if place is not None:
        assert place in places, str(caught.value)


def test_refilling_needs_a_switch_that_looks_at_rewards(tmp_path: Path) -> None:
    text = GOOD.replace("n: 4, temp", "refill: {rounds: 2}, n: 4, temp").replace("  switch: {use: success_rate", "  #")
    path = tmp_path / "wrong.yaml"
    path.write_text(text)
    with pytest.raises(RecipeError, match="nothing is ever refilled") as caught:
        upge.load(path)
    assert [(fault.place.line, fault.place.column) for fault in caught.value.faults if fault.place] == [(6, 41)]


def test_two_terms_teach_the_critic_one_thing(tmp_path: Path) -> None:
    text = GOOD.replace("{use: group_norm, epsilon: 1e-6}", "gae").replace(
        "advantage: one", "advantage: {use: gae, gamma: 0.9}"
    )
    path = tmp_path / "wrong.yaml"
    path.write_text(text + "critic: {lr: 1e-4}\n")
    with pytest.raises(RecipeError, match="teaches the critic other returns than the term 'rl'"):
        upge.load(path)


def test_all_faults_are_reported_at_once(tmp_path: Path) -> None:
    text = GOOD.replace("high: 0.2", "hgih: 0.2").replace("steps: 10", "steps: ten").replace("use: exact", "use: exat")
    path = tmp_path / "wrong.yaml"
    path.write_text(text)
    with pytest.raises(RecipeError) as caught:
        upge.load(path)
    assert {fault.place.line for fault in caught.value.faults if fault.place} == {5, 9, 18}


@pytest.mark.parametrize("content", [b"", b"# nothing\n", b"- a\n- b\n", b"\xff\xfe", b"\x00", b"a: " + b"[" * 40])
def test_what_is_no_recipe_at_all(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "wrong.yaml"
    path.write_bytes(content)
    with pytest.raises(RecipeError):
        upge.load(path)


@pytest.mark.parametrize("arguments", [["nowhere.yaml"], ["."], ["grpo", "train.steps"], ["grpo", "train.step=3"]])
@pytest.mark.parametrize("verb", ["run", "validate", "explain"])
def test_the_command_names_the_fault_without_a_traceback(verb: str, arguments: list[str]) -> None:
    result = CliRunner().invoke(app, [verb, *arguments])
    assert result.exception is not None
    assert isinstance(result.exception, SystemExit) or is_about_input(result.exception)


def test_an_abstract_recipe_is_not_run() -> None:
    with pytest.raises(RecipeError, match="abstract: another recipe must extend it"):
        upge.load(Path(__file__).parents[2] / "recipes" / "lab" / "base.yaml")


@pytest.mark.parametrize("model", ["{dtype: bfloat16}", "{config: {a: b}}", "{lora: {rank: 4}}"])
def test_a_fragment_may_lack_what_a_block_needs(model: str, tmp_path: Path) -> None:
    path = tmp_path / "fragment.yaml"
    path.write_text(f"abstract: true\nmodel: {model}\n")
    assert check(path).recipe is None
    with pytest.raises(RecipeError, match=r"'(path|tokenizer)'.* is missing"):
        check(path, ["abstract=false"])


def test_a_fragment_holds_nothing_that_contradicts_itself(tmp_path: Path) -> None:
    path = tmp_path / "fragment.yaml"
    path.write_text("abstract: true\nmodel: {path: a, config: {b: c}}\n")
    with pytest.raises(RecipeError, match="and not both"):
        check(path)


def test_a_wrong_part_within_another_is_one_problem_at_its_own_place(tmp_path: Path) -> None:
    path = tmp_path / "nested.yaml"
    within = "rewards: [{use: exact, aftr: '='}], weights: [1.0]"
    path.write_text(f"extends: grpo.yaml\nname: nested\nreward: {{use: weighted, {within}}}\n")
    with pytest.raises(RecipeError) as raised:
        upge.load(path)
    (fault,) = raised.value.faults
    assert str(fault.place) == f"{path}:3:48"
    assert fault.message == "unknown key 'aftr' in reward.rewards.0"
    assert fault.hint == "did you mean 'after'?"
