"""How text becomes tokens and tokens become text: for rollouts and demonstrations alike, whatever the tokenizer."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support import tiny, vocabularies
from support import tiny_models as models
from support.vocabularies import KINDS
from transformers import AddedToken, PreTrainedTokenizerBase

import upge
from upge import Completion, Context, ModelError, Policy, Problem, Request, Response, Sampling, registry
from upge.evaluate.evaluation import evaluate_completions
from upge.model import Templater
from upge.part import SLOTS
from upge.rollouts.sampler import Sampler
from upge.runs.folder import RunFolder
from upge.runs.reader import RunReader
from upge.runs.recipe_file import changed
from upge.train.run import train
from upge_parts.engines.transformers_engine import Transformers
from upge_parts.rewards.exact import Exact
from upge_parts.rewards.formatted import Format
from upge_parts.rewards.weighted import Weighted

TEXT = "<think>6 + 6</think> <answer>12</answer>"

CHAT = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content.split('</think>')[-1] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\nOPENING{% endif %}"
)
"""Qwen's form: turns in marks of their own, and what the generation prompt opens the response with."""


def problem(demonstration: str | None = TEXT, prompt: Any = "6 + 6", answer: str = "12") -> Problem:
    return Problem("p", prompt, answer, demonstration)


class Echo:
    """An engine that answers every request with the same tokens."""

    def __init__(self, *tokens: int, truncated: bool = False) -> None:
        self.completion = Completion(tokens, tuple(-0.5 for _ in tokens), truncated)

    def sample(self, requests: Sequence[object], sampling: Sampling) -> list[Completion]:
        return [self.completion for _ in requests]

    def sync(self, policy: Policy) -> None: ...


class Reading:
    """A reward that keeps what it is asked to score."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def score(self, pairs: Sequence[tuple[Problem, str]]) -> list[float]:
        self.texts += [text for _, text in pairs]
        return [float(len(text)) for _, text in pairs]


def collector(templater: Templater, engine: Any = None, **changes: Any) -> Sampler:
    return Sampler(templater, engine or Echo(1), Reading(), changes.pop("demonstration_tokens", 64), **changes)


def opening_with(opening: str, tokenizer: PreTrainedTokenizerBase | None = None, **given: Any) -> Templater:
    """A templater whose chat template opens the response with this."""
    tokenizer = tokenizer or vocabularies.characters()
    tokenizer.chat_template = CHAT.replace("OPENING", opening)
    return Templater(tokenizer, **given)


# Text.


@pytest.mark.parametrize("kind", KINDS)
def test_special_tokens_are_part_of_the_text_that_is_scored(kind: Callable[[], PreTrainedTokenizerBase]) -> None:
    templater = Templater(kind(), "{prompt}\n")
    tokens = templater.response(TEXT)
    assert set(vocabularies.TAGS) <= set(templater.tokenizer.convert_ids_to_tokens(tokens))
    assert templater.text(tokens).replace(" ", "") == TEXT.replace(" ", ""), "and no end of sequence"


@pytest.mark.parametrize("kind", KINDS)
@given(st.lists(st.sampled_from(["<think>", "</think>", "12", "a b", " ", ".", "\n", "é", "<answer>"]), max_size=8))
def test_equal_tokens_have_equal_texts_and_scores(
    kind: Callable[[], PreTrainedTokenizerBase], words: list[str]
) -> None:
    templater = Templater(made(kind), "{prompt}\n")
    asked = collector(templater).prompted(problem("".join(words)), 0)
    ((shown, lack),) = collector(templater).demonstrations([asked])
    if shown is None:
        assert lack == "missing"
        return
    (drawn,) = collector(templater, Echo(*shown.response)).rollouts([asked], 1, Sampling(), stream="t", step=0)
    assert (drawn.response, drawn.text, drawn.reward) == (shown.response, shown.text, shown.reward)


def made(
    kind: Callable[[], PreTrainedTokenizerBase],
    kept: dict[Any, PreTrainedTokenizerBase] = {},  # noqa: B006
) -> PreTrainedTokenizerBase:
    """A tokenizer of this kind, one for all examples."""
    return kept.setdefault(kind, kind())


def test_end_of_sequence_and_padding_alone_have_no_text() -> None:
    tokenizer = vocabularies.characters()
    ids = tokenizer.convert_tokens_to_ids(["<|im_start|>", "4", "<pad>", "2", "<|im_end|>", "</s>"])
    assert Templater(tokenizer).text(ids) == "<|im_start|>42<|im_end|>"
    ends = [tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids("<|im_end|>")]
    assert Templater(tokenizer, stop_ids=ends).text(ids) == "<|im_start|>42"


def test_a_stop_token_that_is_a_word_like_others_is_part_of_the_text() -> None:
    tokenizer = vocabularies.characters()
    newline = tokenizer.convert_tokens_to_ids("\n")
    assert Templater(tokenizer, stop_ids=[tokenizer.eos_token_id, newline]).text((4, newline)) == "4\n"


def test_what_ends_a_turn_has_no_text_even_where_the_tokenizer_does_not_call_it_special() -> None:
    tokenizer = vocabularies.characters()
    tokenizer.add_tokens([AddedToken("<|end|>", special=False, normalized=False)])
    tokenizer.chat_template = CHAT.replace("<|im_end|>", "<|end|>").replace("OPENING", "")
    end = tokenizer.convert_tokens_to_ids("<|end|>")
    templater = Templater(tokenizer, stop_ids=[tokenizer.eos_token_id, end])
    asked = collector(templater).prompted(problem("12"), 0)
    with Exact().open(Context()) as reward:
        collecting = Sampler(templater, Echo(*templater.response("12", asked.put)), reward, 64)
        (drawn,) = collecting.rollouts([asked], 1, Sampling(), stream="t", step=0)
    assert drawn.response[-1] == end
    assert (drawn.text, drawn.reward) == ("12", 1.0)


def test_a_line_break_that_ends_turns_has_a_text() -> None:
    tokenizer = vocabularies.characters()
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }}\n{% endfor %}"
    newline = tokenizer.convert_tokens_to_ids("\n")
    templater = Templater(tokenizer, stop_ids=[tokenizer.eos_token_id, newline])
    assert templater.end_id == newline
    assert templater.text((4, newline)) == "4\n"


# What a template leaves out.

SILENT = "{% for m in messages if m.role in ('user', 'assistant') %}{{ m.content | trim }}\n{% endfor %}"


def test_a_template_that_leaves_out_a_turn_is_an_error() -> None:
    tokenizer = vocabularies.characters()
    tokenizer.chat_template = SILENT
    turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": " 6 + 6\n"}]
    assert Templater(tokenizer).put(problem(prompt=turns[1:])).text == "6 + 6\n"
    for templater, prompt in ((Templater(tokenizer, system="Be brief."), "6 + 6"), (Templater(tokenizer), turns)):
        with pytest.raises(ModelError, match="leaves out the turn by system of problem p; put it into the user's turn"):
            templater.put(problem(prompt=prompt))


def test_a_plain_template_without_room_for_a_system_prompt_is_an_error() -> None:
    turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "6 + 6"}]
    with pytest.raises(ModelError, match=r"problem p: data.template has no \{system\} for its system prompt"):
        Templater(vocabularies.characters(), "{prompt}\n").put(problem(prompt=turns))
    assert (
        Templater(vocabularies.characters(), "{system} {prompt}\n").put(problem(prompt=turns)).text[:9] == "Be brief."
    )


# What a template opens itself.


@pytest.mark.parametrize(
    "opening", ["<think>\n", "<think>", "<think>\n\n</think>\n\n", "[THINK]", "◁think▷", "Let me think.\n<think>"]
)
def test_the_opening_is_what_the_generation_prompt_adds_to_a_turns_head(opening: str) -> None:
    asked = collector(opening_with(opening)).prompted(problem(), 0)
    assert asked.opening == opening
    assert asked.put is not None
    assert asked.put.text.endswith("<|im_start|>assistant\n" + opening)


@pytest.mark.parametrize("opening", ["", "\n", " "])
def test_a_turns_head_and_white_space_are_no_opening(opening: str) -> None:
    assert collector(opening_with(opening)).prompted(problem(), 0).opening == ""


@pytest.mark.parametrize(
    "template",
    [
        models.CHAT,
        "{{ messages[-1].content }}",  # it has no head
        "{% for m in messages %}{{ raise_exception('no') if m.role == 'assistant' }}{{ m.content }}{% endfor %}<think>",
        # A turn that has ended gets a thought, so that the prompt is shorter than its head.
        "{% for m in messages %}{{ '<a><think></think>' if m.role == 'assistant' }}{{ m.content }}{% endfor %}<a>",
    ],
)
def test_where_the_head_of_a_turn_is_not_to_be_found_nothing_is_taken_for_an_opening(template: str) -> None:
    tokenizer = vocabularies.characters()
    tokenizer.chat_template = template
    assert collector(Templater(tokenizer)).prompted(problem(), 0).opening == ""


def test_a_template_that_gives_the_last_turn_a_thought_still_shows_its_opening() -> None:
    tokenizer = vocabularies.characters()
    tokenizer.chat_template = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' and loop.last %}<think>\n\n"
        "</think>\n\n{% endif %}{{ m.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}"
    )
    assert collector(Templater(tokenizer)).prompted(problem(), 0).opening == "<think>\n"


@pytest.mark.parametrize(
    ("template", "opening"),
    [
        ("{prompt}\nAssistant: Let me see.\n<think>", "<think>"),
        ("{prompt}\n<response><think>\n", "<response><think>\n"),
        ("<|user|>{prompt}<|assistant|>", ""),
        ("<user>{prompt}</user><assistant>", ""),
        ("<think>{prompt}", ""),
        ("{prompt}", ""),
    ],
)
def test_a_plain_template_opens_a_response_with_the_tags_that_it_ends_with(template: str, opening: str) -> None:
    assert Templater(vocabularies.characters(), template).put(problem(prompt="6 <think>")).opening == opening


@pytest.mark.parametrize(
    ("opening", "demonstration", "own"),
    [
        ("<think>\n", "<think>\nso 12</think>", "so 12</think>"),
        ("<think>\n", "<think>so 12</think>", "so 12</think>"),
        ("<think>\n", "\n <think> so 12", "so 12"),
        ("<think>\n", "<think>\n\nso", "\nso"),
        ("<think>", "<think>\nso", "\nso"),
        ("<think>\n", "so 12</think>", "so 12</think>"),
        ("<think>\n", "\nso", "\nso"),
        ("<think>\n", "<thinking>\nso", "<thinking>\nso"),
        ("<think>\n", "n<think>", "n<think>"),
        ("<think>\n\n</think>\n\n", "<think>\n\n</think>\n\n12", "12"),
        ("<think>\n\n</think>\n\n", "<think>so</think>12", "<think>so</think>12"),
        ("Let me see.\n<think>", "Let me see.\n<think>so", "so"),
        ("Let me see.\n<think>", "<think>so", "so"),
        ("a", "a + b", " + b"),
        ("a", "apple", "apple"),
    ],
)
def test_what_the_template_has_opened_is_taken_once(opening: str, demonstration: str, own: str) -> None:
    templater = opening_with(opening)
    asked = collector(templater).prompted(problem(demonstration), 0)
    assert templater.text(collector(templater).response(asked)) == own
    assert asked.repeated == (own != demonstration)


@pytest.mark.parametrize(
    ("template", "prompt", "demonstration", "own"),
    [
        ("{prompt}", "banana", "apple", "apple"),
        ("{prompt}", "a<think>", "<think>so", "<think>so"),
        ("{prompt}\nA", "6", "Apple", "Apple"),
        ("{prompt}\n", "6", "\n12", "\n12"),
        ("{prompt}<|assistant|>", "6", "<|assistant|>so", "<|assistant|>so"),
        ("{prompt}\nAssistant: Let me see.\n<think>", "6", "<think>so", "so"),
        ("{prompt}\nAssistant: Let me see.\n<think>", "6", "Let me see.\n<think>so", "so"),
    ],
)
def test_what_is_not_the_templates_opening_is_taken_as_it_is(
    template: str, prompt: str, demonstration: str, own: str
) -> None:
    templater = Templater(vocabularies.characters(), template)
    put = templater.put(problem(prompt=prompt))
    assert templater.text(templater.response(demonstration, put)) == own


@pytest.mark.parametrize("kind", KINDS)
def test_after_an_opening_rollouts_and_demonstrations_have_the_form(
    kind: Callable[[], PreTrainedTokenizerBase],
) -> None:
    templater = opening_with("<think>\n", kind())
    asked = collector(templater).prompted(problem(), 0)
    tokens = templater.response("6 + 6</think> <answer>12</answer>", asked.put)
    with Weighted(rewards=(Format(), Format(opening=False)), weights=(1.0, 0.5)).open(Context()) as reward:
        collecting = Sampler(templater, Echo(*tokens), reward, 64)
        (drawn,) = collecting.rollouts([asked], 1, Sampling(), stream="t", step=0)
        ((shown, _),) = collecting.demonstrations([asked])
        assert shown is not None
        assert shown.response == drawn.response == tokens
        assert (drawn.reward, shown.reward) == (1.0, 1.0), "and without the opening they haven't"
        assert drawn.opening == "<think>\n"
        assert "<think>" not in drawn.text


def test_a_response_that_has_the_form_without_its_opening_has_it() -> None:
    """As after a thought that the template closes."""
    with Format(pattern="<answer>.*</answer>").open(Context()) as reward:
        text = "<answer>12</answer>"
        assert reward.score([(problem(), Response(text, "<think></think>")), (problem(), text)]) == [1.0, 1.0]


def test_a_response_is_text_like_any_other() -> None:
    text = Response("so", "<think>\n")
    assert (text, text.whole, text.opening) == ("so", "<think>\nso", "<think>\n")
    assert Exact(after=None).score([(problem(answer="so"), text)]) == [1.0]


def test_a_run_and_what_scores_its_responses_again_see_the_opening(tmp_path: Path) -> None:
    tokenizer = opening_with("<think>").tokenizer
    tokenizer.save_pretrained(tmp_path / "thinking")
    path = tiny.recipe(tmp_path, model={"tokenizer": str(tmp_path / "thinking")}, train={"steps": 1})
    recipe = upge.load(path, ["reward={use: format, pattern: '<think>.*'}"])
    kept = train(recipe) / "completions.jsonl"
    lines = [json.loads(line) for line in kept.read_text().splitlines()]
    assert {(line["opening"], line["reward"]) for line in lines} == {("<think>", 1.0)}
    scored = evaluate_completions(recipe, tmp_path / "scored", kept)
    assert scored.scores["test"]["avg@2"].value == 1.0
    assert '"opening": "<think>"' in (scored.folder / "completions.jsonl").read_text()


# Nothing to learn.


@pytest.mark.parametrize("demonstration", [None, "", " ", "\n\t ", "</s>", "<pad>", "<think>\n", "<think>"])
def test_a_demonstration_with_nothing_in_it_is_missing(demonstration: str | None) -> None:
    collecting = collector(opening_with("<think>\n"))
    assert collecting.demonstrations([collecting.prompted(problem(demonstration), 0)]) == [(None, "missing")]
    assert collecting.reward.texts == []  # type: ignore[attr-defined]


def test_a_demonstration_says_which_limit_it_is_over() -> None:
    templater = Templater(vocabularies.characters())
    for changes, lack in (({"demonstration_tokens": 10}, "too_long"), ({"context": 15}, "no_room"), ({}, None)):
        collecting = collector(templater, **changes)
        assert collecting.demonstrations([collecting.prompted(problem(), 0)])[0][1] == lack


# Tokens that the model doesn't know.


def test_a_token_without_an_embedding_is_an_error_of_one_line() -> None:
    tokenizer = models.tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    policy = Policy(models.llama(), tokenizer)
    known = rf"the token '<image>' \({models.SIZE}\), which the model has no embedding for .* {models.SIZE - 1}\)"
    with pytest.raises(ModelError, match=f"problem p: its prompt has {known}"):
        policy.templater().put(problem(prompt="what is <image>?"))
    with pytest.raises(ModelError, match=f"problem p: its prompt has {known}"):
        policy.templater("<image>{prompt}").put(problem())
    collecting = collector(policy.templater())
    with pytest.raises(ModelError, match=f"problem p: its demonstration has {known}"):
        collecting.demonstrations([collecting.prompted(problem("an <image>"), 0)])


def test_an_end_of_sequence_without_an_embedding_ends_nothing() -> None:
    tokenizer = models.tokenizer()
    tokenizer.add_special_tokens({"eos_token": "<end>"})
    model = models.llama()
    model.generation_config.eos_token_id = None
    policy = Policy(model, tokenizer)
    assert policy.stop_ids == (1,), "the config's, which the model can draw"
    assert policy.templater().end_id == 1
    model.config.eos_token_id = None
    with pytest.raises(ModelError, match=r"nothing ends a response: .* end of sequence is the token '<end>'"):
        Policy(model, tokenizer).templater()


# Where a demonstration begins and ends.


@pytest.mark.parametrize("scheme", ["always", "first"])
@pytest.mark.parametrize("template", ["{prompt}\n", "Q: {prompt}\nA: <think>\n"])
def test_no_blank_comes_between_a_line_break_and_a_demonstration(scheme: str, template: str) -> None:
    tokenizer = vocabularies.pieces(scheme=scheme)
    templater = Templater(tokenizer, template)
    put = templater.put(problem())
    tokens = templater.response("12", put)
    assert tokenizer.convert_ids_to_tokens(tokens) == ["1", "2", "</s>"]
    assert (*put.tokens, *tokens[:-1]) == tuple(tokenizer.encode(put.text + "12", add_special_tokens=False))


@pytest.mark.parametrize("kind", KINDS)
@given(st.text("a6 \n+", max_size=6), st.text("a6 \n+", min_size=1, max_size=6))
def test_a_prompts_ids_are_its_own_whatever_follows(
    kind: Callable[[], PreTrainedTokenizerBase], prompt: str, demonstration: str
) -> None:
    """Where prompt and demonstration would merge into one token the demonstration is encoded by itself."""
    templater = Templater(made(kind), "Q{prompt}")
    put = templater.put(problem(prompt=prompt))
    tokens = templater.response(demonstration, put)
    whole = templater.tokenizer.encode(put.text + demonstration, add_special_tokens=False)
    alone = templater.tokenizer.encode(demonstration, add_special_tokens=False)
    joined = tuple(whole[: len(put.tokens)]) == put.tokens
    own = whole[len(put.tokens) :] if joined else alone
    assert tokens == ((*own, templater.end_id) if templater.text(own).strip() else ())


def test_a_demonstration_that_ends_its_turn_itself_has_one_end() -> None:
    templater = Templater(vocabularies.characters())
    once = templater.response("12")
    for ended in ("12</s>", "12</s>\n", "12</s> <pad>\n"):
        assert templater.response(ended) == once
    assert templater.text(templater.response("1</s>2")) == "12", "the rest is somebody's demonstration"


# Stop strings.


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("stop", ["</answer>", "12", "6", "er>12"])
def test_a_response_ends_with_the_token_that_completes_a_stop_string(
    kind: Callable[[], PreTrainedTokenizerBase], stop: str
) -> None:
    templater = Templater(kind(), "{prompt}\n")
    tokens = templater.response(TEXT + " and more")
    decoder = templater.decoder
    first = next((n for n in range(len(tokens) + 1) if stop in decoder.text(tokens[:n])), None)
    assert decoder.end(tokens, (stop,)) == first
    assert decoder.end(tokens, ("nowhere", stop)) == first
    assert decoder.end(tokens, ()) is None


def test_stop_strings_bound_a_response_whatever_the_engine_returns() -> None:
    templater = Templater(vocabularies.characters())
    tokens = templater.response("so 12. And more")[:-1]
    collecting = collector(templater, Echo(*tokens, truncated=True))
    sampling = Sampling(stop=("12.", "more"))
    (drawn,) = collecting.rollouts([collecting.prompted(problem(), 0)], 1, sampling, stream="t", step=0)
    assert (drawn.text, drawn.response, drawn.truncated) == ("so 12.", tokens[:6], False)
    assert drawn.rollout_logp == (-0.5,) * 6
    (drawn,) = collecting.rollouts([collecting.prompted(problem(), 0)], 1, Sampling(), stream="t", step=0)
    assert (drawn.response, drawn.truncated) == (tokens, True)


def letters(model: Any) -> Policy:
    """A policy whose tokens are characters, likely ones that are few, so that short strings come."""
    policy = models.policy(model)
    head = model.get_output_embeddings()
    head.bias = torch.nn.Parameter(torch.full((models.SIZE,), -20.0))
    with torch.no_grad():
        head.bias[policy.tokenizer.convert_tokens_to_ids(list("abc.;"))] = 0.0
        head.weight.mul_(0.1)
    return policy


@pytest.mark.parametrize("make", [models.llama, models.gemma2])
def test_the_engine_stops_where_the_run_would_cut(make: Callable[[], Any]) -> None:
    """Its own loop with one, `generate` with the other."""
    policy, stop = letters(make()), (".;", "abc", "c")
    wanted = [Request("train", 0, "p", sample, (9, 8, 7)) for sample in range(24)]
    with Transformers(batch_size=5).open(Context(seed=3, policy=policy)) as session:
        whole = session.sample(wanted, Sampling(max_tokens=24))
        ended = session.sample(wanted, Sampling(max_tokens=24, stop=stop))
    for all_of_it, short in zip(whole, ended, strict=True):
        end = policy.decoder.end(all_of_it.tokens, stop)
        assert short.tokens == all_of_it.tokens[:end]
        assert short.logp == pytest.approx(all_of_it.logp[:end], abs=1e-4)  # type: ignore[index]
        assert short.truncated == (all_of_it.truncated and end is None)
    assert sum(map(len, (each.tokens for each in ended))) < sum(map(len, (each.tokens for each in whole)))


def test_a_run_and_its_evaluation_stop_at_strings_and_are_replayed(tmp_path: Path) -> None:
    sizes = {"rollout": {"stop": ["b", "a="], "max_tokens": 12}, "train": {"steps": 2}}
    path = tiny.recipe(tmp_path, **sizes)
    folder = train(upge.load(path))
    lines = (folder / "completions.jsonl").read_text().splitlines()
    ended = [line for line in map(json.loads, lines) if "b" in line["text"] or "a=" in line["text"]]
    assert {line["stream"] for line in ended} == {"train", "eval/test"}
    for line in ended:
        assert line["text"].endswith(("b", "a="))
        assert (line["text"].count("b"), line["truncated"]) in {(0, False), (1, False)}
    assert upge.load(folder / "recipe.yaml").rollout.stop == ("b", "a=")
    replay = ["rollout.engine={use: recorded, run: " + str(folder) + "}", f"log.folder={tmp_path / 'again'}"]
    again = train(upge.load(path, replay))
    assert (again / "completions.jsonl").read_text().splitlines() == lines


def test_a_run_from_before_there_were_stop_strings_goes_on(tmp_path: Path) -> None:
    recipe = upge.load(tiny.recipe(tmp_path))
    kept = RunFolder(tmp_path / "old")
    kept.describe(recipe, None)
    file = tmp_path / "old" / "recipe.yaml"
    old = file.read_text().replace("  stop: []\n", "")
    assert old != file.read_text()
    file.write_text(old)
    assert changed(recipe, RunReader(kept.path)) == []
    other = upge.load(tiny.recipe(tmp_path), ["rollout.stop=[b]"])
    assert changed(other, RunReader(kept.path)) == ['  rollout.stop: not set there, ["b"] here']


def test_recorded_tokens_that_the_model_does_not_know_are_refused_by_line(tmp_path: Path) -> None:
    line = {"stream": "t", "step": 0, "problem": "p", "sample": 0, "truncated": False, "tokens": [1, models.SIZE]}
    (tmp_path / "completions.jsonl").write_text(json.dumps(line) + "\n")
    part = registry.find(SLOTS["engine"], "recorded").model_validate({"run": str(tmp_path)})
    known = rf"completions.jsonl:1: .* has {models.SIZE}, and the model's ids go up to {models.SIZE - 1}"
    with pytest.raises(upge.InputError, match=known), part.open(Context(policy=models.policy())):
        pass


@pytest.mark.parametrize("stop", ["''", "[1]", "['']", "b"])
def test_what_is_no_list_of_strings_is_refused(tmp_path: Path, stop: str) -> None:
    with pytest.raises(upge.RecipeError, match=r"rollout\.stop"):
        upge.load(tiny.recipe(tmp_path), [f"rollout.stop={stop}"])
