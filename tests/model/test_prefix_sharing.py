"""One prompt, one pass: responses that share a row have the log-probs and gradients of rows of their own."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from support import half_precision as preparing
from support import tiny_models as models
from torch import Tensor
from transformers import (
    GPT2LMHeadModel,
    GPTNeoConfig,
    GPTNeoForCausalLM,
    LlamaForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
)
from transformers.modeling_outputs import CausalLMOutput

from upge.model import Policy, log_probs, recompute
from upge.model.log_probs import reach
from upge.model.padding import PrefixSharing, collate, layout, width
from upge.rollouts.batching import micro_batches
from upge.types import Problem, Trajectory

Sequences = list[tuple[list[int], list[int]]]
FAR = PrefixSharing(1e9, branching=True)
WHOLE = PrefixSharing(3456.0, branching=False)
CPU = torch.device("cpu")
TOKEN = st.integers(0, models.SIZE - 1)
GROUP = st.tuples(st.lists(TOKEN, min_size=1, max_size=4), st.lists(st.lists(TOKEN, max_size=4), max_size=5))
GROUPS = st.lists(GROUP, min_size=1, max_size=3).map(lambda groups: [(p, r) for p, rs in groups for r in rs])

RAGGED: Sequences = [
    *(([5, 6, 7], response) for response in ([1], [2, 3, 4, 8], [], [2, 3])),
    *(([9], response) for response in ([9, 9], [4])),
    ([5, 6, 7], [8, 1]),
]


def gpt2(attention: str = "sdpa") -> PreTrainedModel:
    model = models.gpt2().double()
    model.set_attn_implementation(attention)
    return model


def llama(attention: str = "sdpa") -> PreTrainedModel:
    model = models.llama()
    model.set_attn_implementation(attention)
    return model


def both(model: PreTrainedModel, sequences: Sequences, *, entropy: bool = True) -> tuple[list[Tensor], list[Tensor]]:
    """Shared and not: log-probs, entropies and all gradients, end to end."""
    heat = torch.linspace(0.5, 1.5, len(sequences), dtype=model.dtype)
    made = []
    for sharing in (True, False):
        answer = [x for x in log_probs(model, sequences, heat, entropy=entropy, sharing=sharing) if x is not None]
        weights = torch.linspace(-1, 2, len(answer[0])).to(answer[0])
        trained = [each for each in model.parameters() if each.requires_grad]
        slopes = torch.autograd.grad(sum((x * weights).sum() for x in answer), trained, allow_unused=True)
        made.append([*answer, *(torch.zeros(1) if slope is None else slope for slope in slopes)])
    return made[0], made[1]


def same(model: PreTrainedModel, sequences: Sequences, tolerance: float) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert reach(model) is not None
    shared, plain = both(model, sequences)
    scale = max(1.0, *(float(x.abs().max()) for x in plain if x.numel()))
    torch.testing.assert_close(shared, plain, atol=tolerance * scale, rtol=0)


@given(GROUPS.filter(lambda sequences: any(response for _, response in sequences)))
@example(RAGGED)
@example([([1], [2])])
@example([([1, 2], [3]), ([1, 2], [3])])
@settings(max_examples=25)
def test_a_shared_prompt_is_a_repeated_prompt(sequences: Sequences) -> None:
    same(GPT2, sequences, 1e-10)


GPT2 = gpt2()


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize(("make", "tolerance"), [(gpt2, 1e-10), (llama, 1e-6)], ids=["gpt2", "llama"])
def test_in_either_attention(make: Callable[[str], PreTrainedModel], tolerance: float, attention: str) -> None:
    same(make(attention), RAGGED, tolerance)


def test_with_layers_computed_again() -> None:
    model = llama()
    with recompute.recomputed(model):
        same(model, RAGGED, 1e-6)


@pytest.mark.needs("peft")
def test_with_lora() -> None:
    from peft import LoraConfig, get_peft_model

    adapted: Any = get_peft_model(models.llama(), LoraConfig(target_modules=["q_proj", "down_proj"], r=2))
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    same(adapted.base_model.model.eval(), RAGGED, 1e-5)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_under_autocast(attention: str) -> None:
    model = llama(attention)
    assert reach(model) is not None
    with torch.autocast("cpu", torch.bfloat16):
        shared, plain = both(model, RAGGED)
    torch.testing.assert_close(shared[0], plain[0], atol=0.1, rtol=0)


@pytest.mark.parametrize("prepared", [False, True], ids=["within", "prepared"])
def test_the_proof_is_not_made_in_half_precision(prepared: bool) -> None:
    """Whose rounding would pass for a fault: neither a context nor what accelerate puts round a model's forward."""
    model, seen = llama(), []
    head = model.get_output_embeddings()
    assert isinstance(head, torch.nn.Module)
    head.register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    if prepared:
        preparing.prepared(model)
    with torch.autocast("cpu", torch.bfloat16, enabled=not prepared):
        assert reach(model) is not None
    assert set(seen) == {torch.float32}


def test_the_prompt_is_run_once_and_the_last_tokens_not_at_all() -> None:
    """Seven sequences, one without a response, in three rows: 3 + 0 + 3 + 1, 1 + 1 + 0 and 3 + 1 tokens."""
    batch = collate(RAGGED, 0, CPU, reach=FAR)
    assert batch.tokens.tolist() == [[5, 6, 7, 2, 3, 4, 2], [9, 9, 0, 0, 0, 0, 0], [5, 6, 7, 8, 0, 0, 0]]
    assert batch.positions[0].tolist() == [0, 1, 2, 3, 4, 5, 3]
    assert batch.rows.tolist() == [2, 2, 3, 4, 5, 2, 6, 7, 8, 7, 16, 17]
    assert batch.targets.tolist() == [1, 2, 3, 4, 8, 2, 3, 9, 9, 4, 8, 1]
    last = batch.mask[0, 0, 6]
    assert last.tolist() == [True, True, True, False, False, False, True]


def test_rows_of_their_own_keep_the_plain_mask() -> None:
    batch = collate([([1, 2], [3]), ([1], [3, 4])], 0, CPU, reach=FAR)
    assert batch.mask.tolist() == [[1, 1], [1, 1]]
    assert batch.positions.tolist() == [[0, 1], [0, 1]]


@given(
    prompt=st.integers(1, 50),
    lengths=st.lists(st.integers(1, 200), min_size=1, max_size=16),
    reach=st.sampled_from(
        [None, PrefixSharing(1.0, branching=False), PrefixSharing(100.0, branching=True), WHOLE, FAR]
    ),
)
def test_a_layout_has_every_sequence_once_in_order(
    prompt: int, lengths: list[int], reach: PrefixSharing | None
) -> None:
    sequences = [([1] * prompt, length) for length in lengths]
    assert [member for tree in layout(sequences, reach) for member in tree] == list(range(len(lengths)))


def test_long_responses_to_a_short_prompt_keep_rows_of_their_own() -> None:
    """A row of all would save 7 × 10 tokens of 8,000, and look at 64 times as many pairs as eight rows do each."""
    long, short = [([1] * 10, 1000)] * 8, [([1] * 100, 10)] * 8
    assert len(layout(long, WHOLE)) == 8
    assert len(layout(short, WHOLE)) == 1
    assert width(short) == 100 + 8 * 9


def test_branches_share_however_long_they_are_until_the_mask_grows_too_large() -> None:
    branching = PrefixSharing(3456.0, branching=True)
    assert len(layout([([1] * 10, 1000)] * 8, branching)) == 1
    assert [len(row) for row in layout([([1] * 10, 1000)] * 16, branching)] == [8, 8]
    assert len(layout([([1] * 9000, 1000)], branching)) == 1


# Models that can't.


class Inlining(LlamaForCausalLM):  # type: ignore[misc]
    """Projects by its head's weights, and not by calling its head."""

    def forward(self, input_ids: Any = None, attention_mask: Any = None, position_ids: Any = None, **named: Any) -> Any:
        given = {"attention_mask": attention_mask, "position_ids": position_ids}
        hidden = self.model(input_ids=input_ids, **given, **named).last_hidden_state
        return CausalLMOutput(logits=torch.nn.functional.linear(hidden, self.lm_head.weight))


@pytest.mark.parametrize("responses", [2, 3, 4])
def test_a_model_that_never_calls_its_head_is_asked_for_the_right_rows(responses: int) -> None:
    model = models.llama().double()
    pairs = [([5, 6, 7], [8 + i, 9, 10 + i]) for i in range(responses)]
    heat = torch.ones(responses, dtype=torch.float64)
    wanted = torch.cat([log_probs(model, [each], heat[:1], streaming=False)[0] for each in pairs])
    model.__class__ = Inlining
    assert reach(model) is not None
    torch.testing.assert_close(log_probs(model, pairs, heat, streaming=False)[0], wanted, atol=1e-6, rtol=0)


class Deaf(LlamaForCausalLM):  # type: ignore[misc]
    """Takes positions and doesn't heed them."""

    def forward(self, *args: Any, attention_mask: Any = None, position_ids: Any = None, **named: Any) -> Any:
        return super().forward(*args, attention_mask=attention_mask, position_ids=None, **named)


class Blurting(LlamaForCausalLM):  # type: ignore[misc]
    """Sees everything that came before, whatever the mask says."""

    def forward(self, *args: Any, attention_mask: Any = None, position_ids: Any = None, **named: Any) -> Any:
        return super().forward(*args, attention_mask=None, position_ids=position_ids, **named)


class Refusing(LlamaForCausalLM):  # type: ignore[misc]
    """Takes no mask of pairs."""

    def forward(self, *args: Any, attention_mask: Any = None, position_ids: Any = None, **named: Any) -> Any:
        if attention_mask.ndim == 4:
            raise TypeError("a mask of two dimensions, please")
        return super().forward(*args, attention_mask=attention_mask, position_ids=position_ids, **named)


@pytest.mark.parametrize(
    ("kind", "said"), [(Deaf, "moves log-probs"), (Blurting, "moves log-probs"), (Refusing, "refuses a mask of pairs")]
)
def test_models_that_are_found_out_run_every_prompt_again_and_say_so_once(kind: type, said: str) -> None:
    model = kind(models.llama().config).eval()
    heat = torch.ones(len(RAGGED))
    with pytest.warns(UserWarning, match=said) as told:
        first = log_probs(model, RAGGED, heat)[0]
    assert {each.filename for each in told} == {__file__}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(first, log_probs(model, RAGGED, heat)[0])
    torch.testing.assert_close(first, log_probs(model, RAGGED, heat, sharing=False)[0])


def mistral() -> PreTrainedModel:
    shape = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = MistralConfig(vocab_size=models.SIZE, num_key_value_heads=2, sliding_window=4, **shape)
    return MistralForCausalLM(config).eval()


def mamba() -> PreTrainedModel:
    return MambaForCausalLM(MambaConfig(vocab_size=models.SIZE, hidden_size=16, num_hidden_layers=1)).eval()


def gpt_neo() -> PreTrainedModel:
    """A window that isn't called sliding, and is longer than anything that a proof could try."""
    config = GPTNeoConfig(
        vocab_size=models.SIZE, hidden_size=16, num_layers=2, num_heads=2, attention_types=[[["global", "local"], 1]]
    )
    return GPTNeoForCausalLM(config).eval()


MAKERS = {"mistral": mistral, "mamba": mamba, "gemma2": models.gemma2, "gpt_neo": gpt_neo}


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_models_with_windows_or_states_are_not_tried(make: Callable[[], PreTrainedModel]) -> None:
    model = make()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert reach(model) is None
    assert isinstance(GPT2, GPT2LMHeadModel)


# Packing.


def test_a_policy_may_be_told_not_to_share() -> None:
    policy = Policy(models.llama(), models.tokenizer())
    assert policy.reach is not None
    policy.sharing = False
    assert policy.reach is None
    with torch.no_grad():
        plain = log_probs(policy.model, RAGGED, torch.ones(len(RAGGED)), sharing=False)[0]
        assert torch.equal(policy.log_probs(RAGGED, torch.ones(len(RAGGED)))[0], plain)


def test_shared_rows_fill_a_micro_batch() -> None:
    problem = Problem("p", "?", "")
    grouped = [
        Trajectory(problem, (group,) * 100, (1,) * 10, "", 0.0, False, group=group)
        for group in range(2)
        for _ in range(8)
    ]
    # Plain rows are 110 tokens wide; a tree of 8 responses has 172.
    assert [len(piece) for piece in micro_batches(grouped, 440)] == [4, 4, 4, 4]
    assert [len(piece) for piece in micro_batches(grouped, 440, reach=WHOLE)] == [16]
    assert [len(piece) for piece in micro_batches(grouped, 200, reach=WHOLE)] == [8, 8]
    assert [len(piece) for piece in micro_batches(grouped, 150, reach=WHOLE)] == [5, 3, 5, 3]
