"""Wrong engines, around one that is right. The docstring of each says what is wrong with it."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch

from upge import Context, Engine, registry

ONE_RANK: set[str] = set()
CORNER = {"Greedy", "OneMore", "BeforeCuts"}


class Base(Engine):
    """What the wrong ones share: another engine's session."""

    @contextmanager
    def open(self, context: Context) -> Iterator[Any]:
        with registry.find(Engine, "transformers")().open(self.given(context)) as inner:
            self.__dict__["_inner"] = inner
            self.__dict__["_policy"] = context.policy
            yield self

    def given(self, context: Context) -> Context:
        return context

    def sample(self, requests: Any, sampling: Any) -> Any:
        return [self.changed(c) for c in self._inner.sample(requests, sampling)]

    def changed(self, completion: Any) -> Any:
        return completion

    def sync(self, policy: Any) -> None:
        self._inner.sync(policy)


class Shortest(Base):
    """The shortest responses first, as they end."""

    def sample(self, requests: Any, sampling: Any) -> Any:
        return sorted(super().sample(requests, sampling), key=lambda c: len(c.tokens))


class Unkeyed(Base):
    """Samples are keyed by torch's generator."""

    def sample(self, requests: Any, sampling: Any) -> Any:
        drawn = torch.randint(0, 10**6, (len(requests),)).tolist()
        return super().sample([replace(r, sample=i) for r, i in zip(requests, drawn, strict=True)], sampling)


class ByPlace(Base):
    """Samples are keyed by their place in the batch."""

    def sample(self, requests: Any, sampling: Any) -> Any:
        return super().sample([replace(r, sample=i) for i, r in enumerate(requests)], sampling)


class EveryStep(Base):
    """The same noise at every step."""

    def sample(self, requests: Any, sampling: Any) -> Any:
        return super().sample([replace(r, step=0) for r in requests], sampling)


class Seedless(Base):
    """The same noise for every seed."""

    def given(self, context: Context) -> Context:
        return replace(context, seed=0)


class Whole(Base):
    """Nothing is ever truncated."""

    def changed(self, completion: Any) -> Any:
        return replace(completion, truncated=False)


class Stripped(Base):
    """The stop token is gone, as text engines have it."""

    def changed(self, completion: Any) -> Any:
        stops = self._policy.stop_ids
        kept = [i for i, token in enumerate(completion.tokens) if token not in stops or len(completion.tokens) == 1]
        return replace(
            completion,
            tokens=tuple(completion.tokens[i] for i in kept),
            logp=tuple(completion.logp[i] for i in kept),
        )


class OneMore(Base):
    """A token more than it may."""

    def sample(self, requests: Any, sampling: Any) -> Any:
        return super().sample(requests, replace(sampling, max_tokens=sampling.max_tokens + 1))


class Silent(Base):
    """It says that it reports log-probs."""

    def changed(self, completion: Any) -> Any:
        return replace(completion, logp=None)


class Bits(Base):
    """Log-probs in bits."""

    def changed(self, completion: Any) -> Any:
        return replace(completion, logp=tuple(x / 0.6931471805599453 for x in completion.logp))


class Greedy(Base):
    """`top_k` 1 is taken for none."""

    def sample(self, requests: Any, sampling: Any) -> Any:
        return super().sample(requests, replace(sampling, top_k=0))


class Stale(Base):
    """It goes on with the weights that it was opened with."""

    def given(self, context: Context) -> Context:
        return replace(context, policy=copy.deepcopy(context.policy))

    def sync(self, policy: Any) -> None:
        pass


class Training(Base):
    """It leaves the model in training mode."""

    def sample(self, requests: Any, sampling: Any) -> Any:
        result = super().sample(requests, sampling)
        self._policy.model.train()
        return result


class Mute(Base):
    """Responses without a token."""

    def changed(self, completion: Any) -> Any:
        return replace(completion, tokens=(), logp=())


class Coarse(Base):
    """It says that it samples the policy, and rounds the weights to bfloat16."""

    samples_policy = True

    def given(self, context: Context) -> Context:
        policy = copy.deepcopy(context.policy)
        with torch.no_grad():
            for weight in policy.model.parameters():
                weight.copy_(weight.bfloat16())
        return replace(context, policy=policy)

    def sync(self, policy: Any) -> None:
        super().sync(self.given(Context(seed=0, policy=policy)).policy)


class BeforeCuts(Base):
    """Log-probs of the distribution before `top_k` cuts it, as inference servers report them unless they are told."""

    def sample(self, requests: Any, sampling: Any) -> Any:
        found = super().sample(requests, sampling)
        if not sampling.top_k:
            return found
        heat = torch.full((len(found),), sampling.temperature)
        asked = [(r.prompt, c.tokens) for r, c in zip(requests, found, strict=True)]
        logp = iter(self._policy.log_probs(asked, heat)[0].tolist())
        return [replace(c, logp=tuple(next(logp) for _ in c.tokens)) for c in found]
