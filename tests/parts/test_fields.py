"""What the fields that ship say of trajectories, compared with the same numbers made another way."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Iterator, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from support import tiny_models
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

import upge
from upge.model import Policy
from upge.part import SLOTS, BatchField, build
from upge.part import BuildContext as Workshop
from upge.testing import field_laws
from upge.testing.sessions import broken_laws
from upge.types import Context, Problem, Trajectory
from upge_parts.fields.tokens import ends_of_text

SUM = Problem("a", "2+2", "4", demonstration="four {prompt}", columns={"level": 3, "hint": "count", "sure": True})
GREETING = Problem("b", [{"role": "system", "content": "be kind"}, {"role": "user", "content": "hi"}], None)


def field(use: str, **parameters: Any) -> BatchField:
    return build(SLOTS["field"], {"use": use, **parameters}, Workshop())  # type: ignore[return-value]


def trajectory(problem: Problem, response: Sequence[int] = (20, 21, 1), text: str = "zz", **other: Any) -> Trajectory:
    known = {"prompt": (5, 9), "reward": 0.0, "demonstration": False, "sample": 0}
    return Trajectory(problem=problem, response=tuple(response), text=text, **(known | other))


def read(part: BatchField, trajectories: Sequence[Trajectory], context: Context | None = None, step: int = 0) -> Any:
    """What a session says of the trajectories: the same of all at once, and of each alone."""
    with part.open(context or Context(place="fields.own")) as session:
        if hasattr(session, "observe"):
            session.observe(step, trajectories)
        whole = session.read(step, trajectories)
        pieces = torch.cat([session.read(step, [each]) for each in reversed(trajectories)][::-1])
        torch.testing.assert_close(whole, pieces, equal_nan=True, atol=1e-4, rtol=0)
        assert len(session.read(step, [])) == 0
        return whole


# Log-probs of models.


@pytest.fixture(scope="module")
def policy() -> Policy:
    return tiny_models.policy(chat_template=tiny_models.CHAT)


@pytest.fixture
def asking(policy: Policy) -> Context:
    """A context in which models can be asked."""
    tokens = policy.templater().prompt
    beside = tiny_models.beside(policy)
    return Context(policy=policy, models=beside, tokens=tokens)


@pytest.fixture
def rows(policy: Policy) -> list[Trajectory]:
    """Two rollouts of a prompt and one of another, at different temperatures."""
    tokens = policy.templater().prompt
    return [
        trajectory(SUM, (20, 21, 1), "zz", prompt=tokens(SUM), temperature=0.7, reward=0.5),
        trajectory(GREETING, (22, 1), "yy", prompt=tokens(GREETING), group=1),
        trajectory(SUM, (23,), "ww", prompt=tokens(SUM), temperature=0.5, reward=0.5, sample=1),
    ]


def by_hand(model: Policy, prompts: Sequence[Sequence[int]], rows: Sequence[Trajectory]) -> torch.Tensor:
    """log π(y_t | x, y_<t) of each token: one row at a time, by plain softmax."""
    found = []
    for prompt, row in zip(prompts, rows, strict=True):
        logits = model.model(torch.tensor([[*prompt, *row.response]])).logits[0, len(prompt) - 1 : -1]
        logp = (logits / row.temperature).log_softmax(-1)
        found.append(logp.gather(1, torch.tensor(row.response)[:, None])[:, 0])
    return torch.cat(found).detach()


def saved(folder: Path, policy: Policy) -> Policy:
    """Another model with the policy's tokenizer, in a folder."""
    model = tiny_models.gpt2()
    model.save_pretrained(folder)
    policy.tokenizer.save_pretrained(folder)
    return Policy(model, policy.tokenizer)


def test_another_model_is_asked_at_the_temperature_that_each_row_was_drawn_at(
    asking: Context, rows: list[Trajectory], policy: Policy, tmp_path: Path
) -> None:
    teacher = saved(tmp_path, policy)
    logp = read(field("model_logp", path=str(tmp_path)), rows, asking)
    torch.testing.assert_close(logp, by_hand(teacher, [each.prompt for each in rows], rows))


def test_the_policy_itself_its_start_and_an_average_that_has_not_moved_agree(
    asking: Context, rows: list[Trajectory], policy: Policy
) -> None:
    expected = by_hand(policy, [each.prompt for each in rows], rows)
    for settings in ({"path": "policy"}, {"path": None}, {"path": "policy", "ema": {"decay": 0.9, "every": 1}}):
        torch.testing.assert_close(read(field("model_logp", **settings), rows, asking), expected)


@pytest.mark.parametrize(
    ("prompt", "asked"),
    [
        ("{prompt} \\frac{1}{2} {}\n{demonstration}", "2+2 \\frac{1}{2} {}\nfour {prompt}"),
        ("{level}) {hint}: {prompt} {prompt}", "3) count: 2+2 2+2"),
        ("{prompt}? not {success}", "2+2? not zz"),
        ("say ok", "say ok"),
    ],
)
def test_another_prompt_takes_the_place_of_the_last_user_message(
    asking: Context, rows: list[Trajectory], policy: Policy, prompt: str, asked: str
) -> None:
    logp = read(field("model_logp", path="policy", prompt=prompt), rows, asking)
    ids = policy.templater().prompt(Problem("", asked, None))
    torch.testing.assert_close(logp[[0, 1, 2, 5]], by_hand(policy, [ids, ids], [rows[0], rows[2]]))
    assert logp[3:5].isnan().all() == ("{" in prompt), "the other problem has nothing to fill in"


def test_the_rest_of_a_conversation_stays(asking: Context, rows: list[Trajectory], policy: Policy) -> None:
    logp = read(field("model_logp", path="policy", prompt="{prompt}!"), rows[1:2], asking)
    turns = [{"role": "system", "content": "be kind"}, {"role": "user", "content": "hi!"}]
    ids = policy.templater().prompt(Problem("", turns, None))
    torch.testing.assert_close(logp, by_hand(policy, [ids], rows[1:2]))


@pytest.mark.parametrize("prompt", ["{prompt} {sure}", "{prompt} {nothing}", "{prompt}" + "x" * 200])
def test_what_is_missing_or_leaves_no_room_is_nan(asking: Context, rows: list[Trajectory], prompt: str) -> None:
    logp = read(field("model_logp", path="policy", prompt=prompt), rows, asking)
    assert logp.shape == (6,)
    assert logp.isnan().all()


def test_the_best_rollout_is_the_first_with_the_largest_reward_above_0(asking: Context) -> None:
    first, best, later = (
        trajectory(SUM, text=text, reward=reward) for text, reward in (("first", 0.5), ("best", 1.0), ("later", 1.0))
    )
    again = trajectory(SUM, text="again", reward=0.2, time=1)
    with field("model_logp", path="policy", prompt="{success}").open(asking) as session:
        session.observe(3, [first, dataclasses.replace(best, opening="<think>"), later, again])
        assert session.success(3, first) == "<think>best"
        assert session.success(3, again) == "again", "the problem stands in the batch twice"
        assert session.success(4, first) is None, "what was seen in another rollout batch doesn't count"
        session.observe(4, [dataclasses.replace(each, reward=0.0) for each in (first, best)])
        assert session.success(4, first) is None, "none is right"


class Divided:
    """A model that takes all ranks."""

    sharded = True

    def __init__(self, policy: Policy) -> None:
        self.policy, self.passes = policy, 0

    def log_probs(self, sequences: Sequence[tuple[Sequence[int], Sequence[int]]], temperature: Any) -> torch.Tensor:
        self.passes += any(response for _, response in sequences)
        return torch.zeros(sum(len(response) for _, response in sequences))


def test_a_divided_model_makes_its_pass_though_nothing_can_be_asked(asking: Context, rows: list[Trajectory]) -> None:
    model = Divided(asking.policy)
    asking = dataclasses.replace(asking, models=type("", (), {"open": lambda *_, **__: model}))
    with field("model_logp", path="policy", prompt="{nothing}").open(asking) as session:
        for count, some in enumerate([rows, rows[:1], [dataclasses.replace(rows[0], response=())]], start=1):
            assert session.read(0, some).isnan().all()
            assert model.passes == count
        session.read(0, [])
        assert model.passes == 3, "ranks without rows aren't asked"


def test_only_the_policy_has_an_average() -> None:
    with pytest.raises(ValidationError, match="set 'path: policy'"):
        field("model_logp", path="upge_parts:data/lab/base", ema={"decay": 0.9, "every": 1})


@pytest.mark.parametrize("path", ["./nowhere", "teacher", "~/no/such/folder"])
def test_a_folder_that_is_not_there_is_refused(path: str) -> None:
    with pytest.raises(ValidationError, match="there is no folder"):
        field("model_logp", path=path)


def test_without_a_run_there_is_nobody_to_ask() -> None:
    with pytest.raises(upge.InputError, match="here is none"), field("model_logp", path="policy").open(Context()):
        pass


# Second scores.


def test_a_second_reward_scores_rollouts_and_demonstrations_alike() -> None:
    part = field("reward", reward={"use": "format", "pattern": "<a>.*"})
    some = [
        trajectory(SUM, text="<a>b"),
        trajectory(SUM, text="b"),
        trajectory(SUM, text="b", opening="<a>"),
        trajectory(GREETING, text="<a>", demonstration=True, sample=-1, truncated=True),
    ]
    assert read(part, some).tolist() == [1, 0, 1, 1]


def test_what_the_reward_refuses_is_nan() -> None:
    part = field("reward", reward={"use": "exact", "after": None})
    scores = read(part, [trajectory(GREETING), trajectory(SUM, text="4"), trajectory(SUM, text="5")])
    assert scores[0].isnan()
    assert scores[1:].tolist() == [1, 0]


# Columns.


@pytest.mark.parametrize(("value", "number"), [(3, 3.0), (-0.25, -0.25), (True, 1.0), (False, 0.0), (2**70, 2.0**70)])
def test_a_column_is_its_number(value: float, number: float) -> None:
    numbers = read(field("column", column="level"), [trajectory(Problem("a", "a", None, columns={"level": value}))] * 2)
    assert numbers.tolist() == [number, number]


@pytest.mark.parametrize("columns", [{}, {"level": None}, {"level": math.nan}, {"Level": 1}])
def test_a_column_that_is_not_there_is_nan(columns: dict[str, Any]) -> None:
    assert read(field("column", column="level"), [trajectory(Problem("a", "a", None, columns=columns))]).isnan().all()


@pytest.mark.parametrize("value", ["3", "", [1], math.inf, 10**400, Decimal(3)])
def test_what_is_no_number_is_refused_with_its_row(value: object) -> None:
    problem = Problem("sum-1", "a", None, place="train.jsonl:7", columns={"level": value})
    with pytest.raises(
        upge.InputError, match=r"fields.own: train.jsonl:7: the problem 'sum-1': its column 'level' is "
    ):
        read(field("column", column="level"), [trajectory(problem)])


# Histories.


def visits(*steps: dict[str, list[float]]) -> Iterator[list[Trajectory]]:
    for step in steps:
        yield [trajectory(Problem(name, name, None), reward=reward) for name, some in step.items() for reward in some]


def told(session: Any, step: int, *names: str) -> list[list[float | None]]:
    """What a history says, None for NaN."""
    numbers = session.read(step, [trajectory(Problem(name, name, None)) for name in names]).tolist()
    return [[None if math.isnan(number) else number for number in row] for row in numbers]


def test_a_history_has_the_mean_rewards_of_a_problems_last_visits_newest_first() -> None:
    first, second, third = visits({"a": [0, 1], "b": [1]}, {"b": [0.5, 0, 0.5, 1]}, {"a": [1, 1], "b": [0]})
    with field("reward_history", last=2).open(Context()) as session:
        assert told(session, 0, "a") == [[None, None]]
        session.observe(0, first)
        assert told(session, 0, "a", "b") == [[None, None], [None, None]], "not of the rollout batch itself"
        session.observe(1, second)
        assert told(session, 1, "a", "b") == [[0.5, None], [1, None]]
        session.observe(2, third)
        assert told(session, 2, "b", "a", "b") == [[0.5, 1], [0.5, None], [0.5, 1]]
        assert told(session, 3, "a", "b", "c") == [[1, 0.5], [0, 0.5], [None, None]]


@given(
    st.lists(st.dictionaries(st.sampled_from("abc"), st.lists(st.integers(-2, 2), min_size=1, max_size=4)), max_size=9)
)
def test_its_state_goes_through_json_and_on(steps: list[dict[str, list[float]]]) -> None:
    part = field("reward_history", last=3)
    means = {name: [sum(step[name]) / len(step[name]) for step in steps if name in step][::-1] for name in "abc"}
    expected = [[*means[name], None, None, None][:3] for name in "abc"]
    for cut in {0, len(steps) // 2, len(steps)}:
        with part.open(Context()) as before, part.open(Context()) as after:
            for step, some in enumerate(visits(*steps)):
                if step == cut:
                    after.restore(json.loads(json.dumps(before.state())))
                (before if step < cut else after).observe(step, some)
            if cut == len(steps):
                after.restore(json.loads(json.dumps(before.state())))
            for row, wanted in zip(told(after, len(steps), *"abc"), expected, strict=True):
                assert row == pytest.approx(wanted)


# Marks of tokens.


def tokenizer(kind: str) -> PreTrainedTokenizerFast:
    """A tokenizer whose tokens are bytes and pieces of them, or words with their blank."""
    corpus = ["aa ab aba é éé 你好 wait, wait ab"] * 3
    made = Tokenizer(models.BPE(byte_fallback=kind == "words", unk_token=None))
    if kind == "bytes":
        made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
    else:
        made.pre_tokenizer, made.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
        alphabet = []
    made.train_from_iterator(
        corpus, trainers.BpeTrainer(vocab_size=290, initial_alphabet=alphabet, special_tokens=["</s>"])
    )
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token="</s>")


TOKENIZERS: dict[str, PreTrainedTokenizerFast] = {kind: tokenizer(kind) for kind in ("bytes", "words")}


def ends(text: str, whole: str) -> list[int]:
    return [at for at in range(1, len(whole) + 1) if whole[:at].endswith(text)]


def marked(kind: str, text: str, ids: Sequence[int]) -> list[float]:
    """The rule word by word: the first token with which the decoded response goes as far as the occurrence does."""

    def decode(some: Sequence[int]) -> str:
        spoken = [token for token in some if token != 0]
        return str(TOKENIZERS[kind].decode(spoken, clean_up_tokenization_spaces=False))

    whole, marks = decode(ids), [0.0] * len(ids)
    for end in ends(text, whole):
        marks[next(n for n in range(len(ids)) if decode(ids[: n + 1])[:end] == whole[:end])] = 1.0
    return marks


def with_tokenizer(kind: str) -> Context:
    policy = Policy(tiny_models.llama(vocab_size=len(TOKENIZERS[kind])), TOKENIZERS[kind])
    return Context(policy=policy, place="fields.own")


PLACES: dict[str, Context] = {kind: with_tokenizer(kind) for kind in TOKENIZERS}


@pytest.mark.parametrize("kind", TOKENIZERS)
@given(st.data())
def test_a_token_is_marked_where_an_occurrence_of_the_text_ends(kind: str, data: st.DataObject) -> None:
    ids = data.draw(st.lists(st.integers(0, len(TOKENIZERS[kind]) - 1), max_size=12))
    words = data.draw(st.lists(st.sampled_from(["aa", "ab", " wait", ",", "你", "éé", "a"]), max_size=4))
    ids = [*ids[:3], *TOKENIZERS[kind].encode("".join(words), add_special_tokens=False), *ids[3:], 0]
    text = data.draw(st.sampled_from(["a", "aa", "aba", " wait", "你", "é", "b a", "你好"]))
    numbers = read(field("tokens", text=text), [trajectory(SUM, ids)], PLACES[kind])
    assert numbers.tolist() == marked(kind, text, ids)


@given(st.lists(st.integers(1, 3), max_size=9), st.lists(st.integers(1, 3), min_size=1, max_size=3))
def test_a_token_is_marked_where_the_ids_end(response: list[int], ids: list[int]) -> None:
    numbers = read(field("tokens", ids=tuple(ids)), [trajectory(SUM, response), trajectory(SUM, [])], None)
    assert numbers.tolist() == [float(response[: at + 1][-len(ids) :] == ids) for at in range(len(response))]


def test_a_character_of_several_tokens_ends_in_the_last_of_them() -> None:
    ids = TOKENIZERS["bytes"].convert_tokens_to_ids(
        list("ä½łä½ł")
    )  # the bytes of 你 twice, as the vocabulary writes them
    part = field("tokens", text="你")
    assert read(part, [trajectory(SUM, ids)], PLACES["bytes"]).tolist() == [0, 0, 1, 0, 0, 1]


@pytest.mark.parametrize("given_", [{}, {"text": "a", "ids": (1,)}, {"text": ""}, {"ids": (-1,)}])
def test_there_is_a_text_or_there_are_ids(given_: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        field("tokens", **given_)


def test_an_id_beyond_the_vocabulary_is_refused() -> None:
    with pytest.raises(upge.InputError, match=r"fields\.own: there is no token 5000"):
        read(field("tokens", ids=(1, 5000)), [], PLACES["bytes"])


def test_long_responses_are_read_in_a_moment() -> None:
    """How often a response is decoded grows with the occurrences, and with the logarithm of its length."""
    calls = []

    def decode(ids: Sequence[int]) -> str:
        calls.append(len(ids))
        return "".join(chr(97 + each) for each in ids)

    counted: Callable[[Sequence[int]], str] = decode
    assert ends_of_text("abc", [0, 1, 2, 3] * 2048, counted) == set(range(2, 4 * 2048, 4))
    assert sum(calls) < 8192 * 2 * 16


# The laws of fields.


@pytest.mark.parametrize(
    ("use", "parameters"),
    [
        ("model_logp", {"path": "policy"}),
        ("model_logp", {"prompt": "{prompt} {demonstration} {success}"}),
        ("reward", {"reward": "exact"}),
        ("column", {"column": "level"}),
        ("reward_history", {"last": 3}),
        ("tokens", {"text": "="}),
        ("tokens", {"ids": (3, 4)}),
    ],
)
def test_each_keeps_the_laws_of_fields(
    use: str, parameters: dict[str, Any], asking: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(field_laws, "context", lambda: asking)
    part = field(use, **parameters)
    with part.open(asking):
        pass
    findings = list(broken_laws([part], 5))
    assert {law for law, *_ in findings} == set(field_laws.LAWS)
    assert [finding for finding in findings if finding[1] is not None] == []
