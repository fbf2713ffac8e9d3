"""What engines owe: completions in the order of the requests, as their keys draw them, of the policy they are given."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import torch

from upge.errors import InputError
from upge.model import Policy, load_policy
from upge.part import Engine
from upge.testing.fixtures import context, shown, shuffled, world
from upge.types import Completion, EngineSession, Problem, Request, Sampling

MODEL = "upge_parts:data/lab/base"
"""The embedded model, which is a second's work to open."""
PLAIN = Sampling(max_tokens=12)
HOT = Sampling(temperature=3.0, max_tokens=6)
"""So hot that equal draws are no chance."""
ROUNDING = 1e-3
"""How far an engine's log-probs may be from the policy's, nats, and as a share of them: the rounding of its kernels."""


@cache
def policy(turned: bool = False) -> Policy:
    """The embedded policy, or one whose every weight has the other sign."""
    opened = load_policy(MODEL)
    if turned:
        with torch.no_grad():
            for weight in opened.model.parameters():
                weight.mul_(-1)
    return opened


def requests(samples: int = 4) -> list[Request]:
    """Prompts of several lengths, some samples each."""
    texts = ("cafbde R?", "abcdef RSE?", "fedcba RSRE?")
    prompts = {text: policy().templater().prompt(Problem(text, text, "")) for text in texts}
    return [Request("check", 0, text, i, prompt) for text, prompt in prompts.items() for i in range(samples)]


def _sample(part: Engine, asked: Sequence[Request], sampling: Sampling, **different: Any) -> list[Completion]:
    with part.open(context(**{"policy": policy(), **different})) as session:
        return _sampled(part, session, asked, sampling)


def _sampled(part: Engine, session: EngineSession, asked: Sequence[Request], sampling: Sampling) -> list[Completion]:
    """What the session answers, held to what every law reads: a completion for each request, none without a token."""
    found, whose = session.sample(list(asked), sampling), f"the engine {type(part).__name__}"
    count = len(found) if isinstance(found, Sequence) else type(found).__name__
    assert count == len(asked), f"{whose}, for {len(asked)} requests: expected {len(asked)} completions, got {count}"
    for place, completion in enumerate(found):
        at = f"{whose}, {_named(asked, place)}"
        assert isinstance(completion, Completion), f"{at}: expected a Completion, got {shown(completion)}"
        count = len(completion.tokens)
        assert count, f"{at}: expected at least 1 token, the stop token if no other, got {shown(completion.tokens)}"
        logps = count if completion.logp is None else len(completion.logp)
        assert logps == count, f"{at}: expected {count} log-probs, for as many tokens, got {logps}"
    return list(found)


def _named(asked: Sequence[Request], place: int) -> str:
    return f"request {place} (sample {asked[place].sample} of '{asked[place].problem}')"


def check_completions(part: Engine, examples: int) -> None:
    """A completion for each request, within its budget, ended by a stop token or truncated, with its log-probs."""
    del examples
    asked = requests()
    _sample(part, [], PLAIN)
    for sampling in (PLAIN, replace(PLAIN, max_tokens=1), HOT):
        for place, completion in enumerate(_sample(part, asked, sampling)):
            fault = _fault(part, completion, sampling.max_tokens)
            assert fault is None, f"{_named(asked, place)}, max_tokens {sampling.max_tokens}: {fault}"


def _fault(part: Engine, completion: Completion, most: int) -> str | None:
    """What is wrong with a completion, or None."""
    tokens, logp, stops = completion.tokens, completion.logp, policy().stop_ids
    weight = policy().model.get_input_embeddings().weight
    assert isinstance(weight, torch.Tensor)
    size = weight.shape[0]
    wrong = [t for t in tokens if not isinstance(t, int) or not 0 <= t < size]
    if wrong:
        return f"expected token ids below {size}, got {shown(wrong[0])}"
    if len(tokens) > most:
        return f"expected 1 to {most} tokens, got {len(tokens)}"
    if any(token in stops for token in tokens[:-1]):
        return f"expected an end at the first stop token, got tokens after it: {shown(tokens)}"
    stopped = tokens[-1] in stops
    if completion.truncated == stopped:
        return f"truncated: expected {not stopped}, got {completion.truncated}, for it ends with {tokens[-1]}"
    if completion.truncated and len(tokens) < most:
        return f"expected {most} tokens where it is truncated, got {len(tokens)}"
    if logp is None:
        return "expected log-probs, for `reports_logp` is True, got None" if part.reports_logp else None
    bad = [x for x in logp if not (isinstance(x, int | float) and math.isfinite(x) and x <= 1e-6)]
    return f"expected log-probs of at most 0, got {shown(bad[0])}" if bad else None


def check_order(part: Engine, examples: int) -> None:
    """What a request draws depends on its key and the policy: not on its batch, its place there, or the session."""
    del examples
    asked = requests()
    for sampling in (HOT, replace(PLAIN, max_tokens=24), replace(PLAIN, temperature=0.0)):
        expected = _sample(part, asked, sampling)
        order = shuffled(len(asked))
        with world(1):
            again = _sample(part, asked, sampling)
        with world(2):
            moved = _sample(part, [asked[i] for i in order], sampling)
        with part.open(context(policy=policy())) as session:
            single = [_sampled(part, session, [request], sampling)[0] for request in asked[::3]]
        for how, places, found in (
            ("again, in another session", range(len(asked)), again),
            ("in another order", order, moved),
            ("alone", range(0, len(asked), 3), single),
        ):
            for place, completion in zip(places, found, strict=True):
                wanted, got = expected[place].tokens, completion.tokens
                assert wanted == got, f"{_named(asked, place)}, {how}: expected {shown(wanted)}, got {shown(got)}"


def check_noise(part: Engine, examples: int) -> None:
    """Where samples differ at all, each coordinate of the key tells them apart, the seed too."""
    del examples
    asked = requests(8)[:8]
    expected = [completion.tokens for completion in _sample(part, asked, HOT)]
    if len(set(expected)) < 4:
        return  # it draws nothing
    others: dict[str, list[Request]] = {
        "stream": [replace(r, stream="other") for r in asked],
        "step": [replace(r, step=1) for r in asked],
        "problem": [replace(r, problem="other") for r in asked],
        "sample": [replace(r, sample=r.sample + 8) for r in asked],
    }
    for name, changed in others.items():
        found = [completion.tokens for completion in _sample(part, changed, HOT)]
        assert found != expected, f"for another {name}: expected other draws, got the same: {shown(found[0])}"
    found = [completion.tokens for completion in _sample(part, asked, HOT, seed=4)]
    assert found != expected, f"for another seed: expected other draws, got the same: {shown(found[0])}"


def check_policy(part: Engine, examples: int) -> None:
    """Where it says `samples_policy`, its log-probs are the policy's own of its tokens, after `sync` the new ones."""
    del examples
    if not part.measures(str(policy().model.dtype).removeprefix("torch.")):
        return
    asked = requests()
    for sampling in (PLAIN, HOT):
        _assert_of_policy(policy(), asked, _sample(part, asked, sampling), sampling, "")
        with part.open(context(policy=policy())) as session:
            session.sync(policy(True))
            found = _sampled(part, session, asked, sampling)
        _assert_of_policy(policy(True), asked, found, sampling, " after sync()")


def _assert_of_policy(
    of: Policy, asked: Sequence[Request], found: Sequence[Completion], sampling: Sampling, when: str
) -> None:
    """Raise AssertionError for the first token whose log-prob isn't the policy's at the sampling temperature."""
    heat = torch.full((len(asked),), sampling.temperature)
    sequences = [(request.prompt, completion.tokens) for request, completion in zip(asked, found, strict=True)]
    with torch.no_grad():
        expected = iter(of.log_probs(sequences, heat)[0].tolist())
    for place, completion in enumerate(found):
        wanted = [next(expected) for _ in completion.tokens]
        how = f"it says `samples_policy`; {_named(asked, place)} at temperature {sampling.temperature:g}{when}"
        for at, (one, other) in enumerate(zip(wanted, completion.logp or wanted, strict=True)):
            assert abs(one - other) <= ROUNDING * max(1.0, abs(one)), (
                f"{how}, token {at} (id {completion.tokens[at]}): expected the policy's {one:.6g}, got {other:.6g}"
            )


def check_distribution(part: Engine, examples: int) -> None:
    """Log-probs are those of the distribution that is drawn from: tokens come as often as these say."""
    del examples
    first = requests(1)[0]
    for sampling in (Sampling(max_tokens=1), replace(HOT, max_tokens=1), replace(HOT, max_tokens=1, top_k=2)):
        try:
            found = _sample(part, [replace(first, sample=i) for i in range(400)], sampling)
        except InputError:  # a cut that it can't make
            continue
        logp = {c.tokens[0]: c.logp[0] for c in found if c.logp is not None}
        if len(logp) < len({c.tokens[0] for c in found}):
            return
        at = f"at temperature {sampling.temperature:g}" + (f", top_k {sampling.top_k}" if sampling.top_k else "")
        _assert_as_often(logp, Counter(c.tokens[0] for c in found), at)


def _assert_as_often(logp: dict[int, float], drawn: Counter[int], at: str) -> None:
    """Raise AssertionError unless tokens were drawn as often as their log-probs say, to five standard deviations."""
    count, total = drawn.total(), sum(map(math.exp, logp.values()))
    assert total <= 1 + 1e-3, f"{at}: expected probabilities of at most 1 together, got {total:.6g}"
    for token, times in drawn.items():
        wanted = count * math.exp(logp[token])
        slack = 5 * math.sqrt(max(wanted * (1 - wanted / count), 0.0)) + 2
        assert abs(times - wanted) <= slack, (
            f"{at}, token {token}: expected {wanted:.1f} of {count} draws by its log-prob, got {times}"
        )


def check_cuts(part: Engine, examples: int) -> None:
    """Temperature 0 and `top_k` 1 leave one token; a cut that an engine can't make it refuses."""
    del examples
    first = requests(1)[0]
    asked = [replace(first, sample=i, step=i) for i in range(24)]
    for name, sampling in {
        "temperature 0": replace(HOT, temperature=0.0),
        "top_k 1": replace(HOT, top_k=1),
        "top_p 1e-6": replace(HOT, top_p=1e-6),
    }.items():
        try:
            found = {completion.tokens for completion in _sample(part, asked, sampling)}
        except InputError:
            continue
        assert len(found) == 1, f"with {name}: expected one response for all samples of a prompt, got {len(found)}"


def check_sync(part: Engine, examples: int) -> None:
    """After `sync` it samples the policy that it was given."""
    del examples
    asked, greedy = requests(1), replace(PLAIN, temperature=0.0)
    before, wanted = (
        [c.tokens for c in _sample(part, asked, greedy, policy=policy(turned))] for turned in (False, True)
    )
    if before == wanted:
        return  # it samples from no policy
    with part.open(context(policy=policy())) as session:
        session.sample(asked, greedy)
        session.sync(policy(True))
        found = [completion.tokens for completion in _sampled(part, session, asked, greedy)]
    for place, (one, other) in enumerate(zip(wanted, found, strict=True)):
        assert one == other, f"{_named(asked, place)} after sync(): expected {shown(one)}, got {shown(other)}"


def check_leaves(part: Engine, examples: int) -> None:
    """The policy is what it was: its weights, what is trainable, and that it is in evaluation mode."""
    del examples

    def state() -> dict[str, tuple[float, bool]]:
        weights = policy().model.named_parameters()
        return {name: (float(weight.detach().double().sum()), weight.requires_grad) for name, weight in weights}

    policy().model.eval()  # whatever it did before
    before = state()
    _sample(part, requests(), PLAIN)
    training = policy().model.training
    policy().model.eval()
    for name, was in before.items():
        now = state()[name] if was != state()[name] else was
        assert now == was, f"the policy's {name}: expected sum and trainability {was}, got {now}"
    assert not training, "the policy's training mode: expected False, got True"


LAWS = {
    "a completion for each request, within its budget": check_completions,
    "a draw depends on its request's key alone": check_order,
    "every coordinate of the key matters": check_noise,
    "it samples the policy, if it says so": check_policy,
    "log-probs are those of the draws": check_distribution,
    "what is cut is never drawn": check_cuts,
    "it follows the policy": check_sync,
    "it leaves the policy alone": check_leaves,
}
