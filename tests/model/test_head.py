"""The streaming head: the naive formula in value and gradient, and never the logits in memory."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support import tiny_models as models
from support.torch_watch import Watched
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from typer.testing import CliRunner

from upge.bench.head import Head
from upge.cli.main import app
from upge.model import log_probs
from upge.model.head import Factor, Processing, Tiling, streamed

PLAIN, TILING = Processing(), Tiling()


@dataclass(frozen=True)
class Case:
    """Factors, and what may go with them."""

    factors: list[Factor]
    targets: Tensor
    bias: Tensor | None = None
    temperature: Tensor | None = None
    processing: Processing = PLAIN

    @property
    def leaves(self) -> list[Tensor]:
        every = [*(each for factor in self.factors for each in factor), self.bias]
        return [each for each in every if each is not None and each.requires_grad]

    def streamed(self, *, entropy: bool = True, tiling: Tiling = TILING) -> Tensor:
        return streamed(
            self.factors,
            self.targets,
            bias=self.bias,
            temperature=self.temperature,
            processing=self.processing,
            entropy=entropy,
            tiling=tiling,
        )

    def naive(self, *, entropy: bool = True) -> Tensor:
        """Straight from the definitions; p ln p is 0 where p is."""
        logits = sum(features @ weight.T for features, weight in self.factors)
        logits = (logits if self.bias is None else logits + self.bias) * self.processing.scale
        if self.processing.cap is not None:
            logits = self.processing.cap * torch.tanh(logits / self.processing.cap)
        if self.temperature is not None:
            logits = logits / self.temperature[:, None]
        distribution = logits.log_softmax(-1)
        picked = distribution.gather(1, self.targets[:, None])
        if not entropy:
            return picked
        finite = torch.where(distribution == -torch.inf, 0, distribution)
        return torch.cat([picked, -(distribution.exp() * finite).sum(1, keepdim=True)], 1)


def made(
    tokens: int,
    vocabulary: int,
    *,
    widths: tuple[int, ...] = (4,),
    bias: bool = False,
    tempered: bool = False,
    processing: Processing = PLAIN,
    dtype: torch.dtype = torch.float64,
    seed: int = 0,
) -> Case:
    random = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=random, dtype=torch.float64).to(dtype).requires_grad_()

    return Case(
        [(normal(tokens, width), normal(vocabulary, width)) for width in widths],
        torch.randint(0, vocabulary, (tokens,), generator=random),
        normal(vocabulary) if bias else None,
        torch.rand(tokens, generator=random, dtype=torch.float64).to(dtype) + 0.3 if tempered else None,
        processing,
    )


def compare(case: Case, coefficients: Tensor, tiling: Tiling, tolerance: float = 1e-10) -> None:
    entropy = coefficients.shape[1] == 2
    ours, theirs = case.streamed(entropy=entropy, tiling=tiling), case.naive(entropy=entropy)
    torch.testing.assert_close(ours, theirs, atol=tolerance, rtol=tolerance)
    if not case.leaves:
        assert not ours.requires_grad
        return
    here, there = (torch.autograd.grad((each * coefficients).sum(), case.leaves) for each in (ours, theirs))
    torch.testing.assert_close(here, there, atol=tolerance, rtol=tolerance)


PROCESSINGS = [Processing(), Processing(scale=0.25), Processing(cap=1.5), Processing(scale=3.0, cap=2.0)]
tilings = st.builds(Tiling, st.integers(1, 12), st.integers(1, 40), st.sampled_from([0, 100, 500, 2**20]))


@given(st.data())
def test_streamed_is_naive_in_value_and_gradient(data: st.DataObject) -> None:
    tokens, vocabulary = data.draw(st.integers(0, 9)), data.draw(st.integers(1, 33))
    case = made(
        tokens,
        vocabulary,
        widths=data.draw(st.sampled_from([(1,), (4,), (4, 2), (3, 1, 2)])),
        bias=data.draw(st.booleans()),
        tempered=data.draw(st.booleans()),
        processing=data.draw(st.sampled_from(PROCESSINGS)),
        seed=data.draw(st.integers(0, 99)),
    )
    for leaf in case.leaves:
        leaf.requires_grad_(data.draw(st.booleans()))
    number = st.sampled_from([0.0, 0.0, 1.0, -2.0, 0.3])
    columns = data.draw(st.sampled_from([1, 2]))
    drawn = data.draw(st.lists(st.lists(number, min_size=columns, max_size=columns), min_size=tokens, max_size=tokens))
    compare(case, torch.tensor(drawn, dtype=torch.float64).view(tokens, columns), data.draw(tilings))


@pytest.mark.parametrize("tokens", [0, 1, 5])
@pytest.mark.parametrize(
    "tiling",
    [
        pytest.param(Tiling(2, 100, 0), id="chunk larger than V"),
        pytest.param(Tiling(2, 5, 0), id="V not divisible"),
        pytest.param(Tiling(1, 1, 0), id="single logits"),
        pytest.param(Tiling(2, 5, 2 * 5 * 8 * 4), id="four tiles kept"),
        pytest.param(Tiling(2, 5, 2**20), id="all kept"),
    ],
)
@pytest.mark.parametrize("processing", PROCESSINGS)
def test_at_the_boundaries(tokens: int, tiling: Tiling, processing: Processing) -> None:
    case = made(tokens, 13, bias=True, tempered=True, processing=processing)
    for coefficients in (torch.ones(tokens, 2), torch.zeros(tokens, 2), torch.eye(2)[:1].expand(tokens, 2)):
        compare(case, coefficients.double(), tiling)
    some = torch.ones(tokens, 2).double()
    some[1::2] = 0
    compare(case, some, tiling)


@pytest.mark.parametrize("budget", [0, 2**20])
@pytest.mark.parametrize("tempered", [False, True])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_forbidden_tokens_add_nothing(budget: int, tempered: bool, dtype: torch.dtype) -> None:
    case = made(5, 13, bias=True, tempered=tempered, dtype=dtype)
    assert case.bias is not None
    with torch.no_grad():
        case.bias[[0, 3, 4, 5, 6, 12]] = -torch.inf
    case.targets[:] = torch.tensor([1, 2, 7, 8, 11])
    compare(case, torch.ones(5, 2, dtype=dtype), Tiling(2, 3, budget), 1e-10 if dtype == torch.float64 else 1e-4)


def test_a_forbidden_token_has_no_probability() -> None:
    case = made(2, 5, bias=True)
    assert case.bias is not None
    with torch.no_grad():
        case.bias[int(case.targets[0])] = -torch.inf
    answer = case.streamed()
    assert answer[0, 0] == -torch.inf
    assert answer[:, 1].isfinite().all()


def test_large_logits_neither_overflow_nor_lose_their_gradient() -> None:
    case = made(4, 9, dtype=torch.float32)
    with torch.no_grad():
        case.factors[0][1].mul_(1e4)
    answer = case.streamed(tiling=Tiling(2, 2, 0))
    torch.testing.assert_close(answer, case.naive(), rtol=1e-5, atol=1e-3)
    assert all(each.isfinite().all() for each in torch.autograd.grad(answer.sum(), case.leaves))


def test_bfloat16_weights_give_float32() -> None:
    case = made(6, 50, dtype=torch.bfloat16, bias=True)
    answer = case.streamed()
    assert answer.dtype == torch.float32
    torch.testing.assert_close(answer, case.naive().float(), atol=0.05, rtol=0.02)
    gradients = torch.autograd.grad(answer.sum(), case.leaves)
    assert [each.dtype for each in gradients] == [torch.bfloat16] * 3


def test_autocast_makes_the_products_in_its_type() -> None:
    case = made(6, 50, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        answer = case.streamed()
        (features, weight), targets = case.factors[0], case.targets
        plain = (features @ weight.T).float().log_softmax(-1).gather(1, targets[:, None])
    assert answer.dtype == torch.float32
    torch.testing.assert_close(answer[:, :1], plain, atol=1e-5, rtol=0)
    for each in torch.autograd.grad(answer.sum(), case.leaves):
        assert each.dtype == torch.float32


def test_only_what_wants_a_gradient_gets_one() -> None:
    case = made(3, 7, bias=True)
    (features, weight), bias = case.factors[0], case.bias
    assert bias is not None
    weight.requires_grad_(False)
    case.streamed().sum().backward()
    assert features.grad is not None
    assert bias.grad is not None
    assert weight.grad is None


def test_a_sure_token_stays_at_zero() -> None:
    model = models.llama()
    with torch.no_grad():
        model.lm_head.weight.mul_(1000)
    token = int(model(torch.tensor([[5, 6]])).logits[0, -1].argmax())
    assert -1e-6 < log_probs(model, [([5, 6], [token])], torch.ones(1))[0].item() <= 0


def test_tilings_refuse() -> None:
    for wrong in ({"rows": 0}, {"columns": 0}, {"budget": -1}):
        with pytest.raises(ValueError, match="tiling"):
            Tiling(**wrong)


# Memory and work.


def saved_bytes(action: Callable[[], Tensor]) -> tuple[int, Tensor]:
    """What the graph of an action holds beyond its leaves, and its answer."""
    held: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        if not (tensor.is_leaf and tensor.requires_grad):
            held[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        answer = action()
    return sum(held.values()), answer


@pytest.mark.parametrize("entropy", [False, True])
def test_the_logits_are_never_whole(entropy: bool) -> None:
    tokens, vocabulary, tiling = 300, 2000, Tiling(50, 100, 50 * 100 * 4 * 3)
    case = made(tokens, vocabulary, dtype=torch.float32, tempered=True)
    with Watched() as streaming:
        case.streamed(entropy=entropy, tiling=tiling).sum().backward()
    assert streaming.largest == vocabulary * 4, "the weight's gradient is the largest, not the logits"
    with Watched() as naive:
        case.naive(entropy=entropy).sum().backward()
    assert naive.largest == tokens * vocabulary


def test_what_is_held_for_the_backward_pass_does_not_grow_with_the_logits() -> None:
    tiling = Tiling(50, 100, 50 * 100 * 4 * 3)

    def held(tokens: int, vocabulary: int) -> int:
        case = made(tokens, vocabulary, dtype=torch.float32)
        return saved_bytes(lambda: case.streamed(tiling=tiling))[0]

    budget, per_token = tiling.budget, 8 + 4 + 4 + 4  # target, log-prob, entropy, ln Σ exp z
    assert held(100, 1000) == budget + 100 * per_token
    assert held(100, 4000) == budget + 100 * per_token
    assert held(400, 4000) == budget + 400 * per_token


def test_without_gradients_nothing_is_held() -> None:
    case = made(10, 50)
    with torch.no_grad():
        assert saved_bytes(case.streamed)[0] == 0


def test_tokens_without_a_gradient_cost_nothing_in_the_backward_pass() -> None:
    tokens, vocabulary, width = 60, 90, 4
    for budget, each in ((0, 3), (2**20, 2)):
        case = made(tokens, vocabulary, dtype=torch.float32)
        for active in (0, 1, 25, tokens):
            answer = case.streamed(entropy=False, tiling=Tiling(16, 20, budget))
            coefficients = torch.zeros(tokens, 1)
            coefficients[torch.randperm(tokens)[:active]] = 1.0
            with Watched() as watched:
                answer.backward(coefficients)
            assert watched.products == each * active * vocabulary * width


# The benchmark.


@pytest.mark.parametrize("entropy", [False, True])
def test_the_benchmarks_ways_have_the_same_gradients(entropy: bool) -> None:
    head = Head(7, 30, 4, entropy=entropy)
    torch.testing.assert_close(head.streaming(), head.naive(), rtol=1e-5, atol=1e-6)


def test_the_heads_command_prints_its_numbers() -> None:
    sizes = ["--tokens", "64", "--vocabulary", "2000", "--hidden", "4", "--repeats", "2"]
    answer = CliRunner().invoke(app, ["bench", "head", *sizes, "--json"])
    assert answer.exit_code == 0, answer.output
    told = json.loads(answer.stdout)
    assert told["with entropies"]["entropy"]
    assert (told["tokens × 2"]["tokens"], told["vocabulary × 2"]["vocabulary"]) == (128, 4000)
    for found in told.values():
        assert len(found["streaming"]) == len(found["naive"]) == len(found["products"]) == 2
        assert found["apart"] < 1e-4
        assert found["naive_extra_bytes"] > 2 * 4 * found["tokens"] * found["vocabulary"]
    assert CliRunner().invoke(app, ["bench", "head", *sizes[:-1], "1"]).exit_code == 0
