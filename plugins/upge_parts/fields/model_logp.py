"""Log-probs of the response tokens under another model, another prompt, or a moving average of the policy."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field, model_validator

from upge import BatchField, Context, Ema, InputError, ModelPath, Problem, Trajectory
from upge_parts.fields.prompt_text import PromptText

if TYPE_CHECKING:
    from torch import Tensor

    from upge import AskedModel, FieldSession

Tokens = tuple[int, ...]


class ModelLogp(BatchField):
    """The log-probability of each response token under another model, or under the policy that knows more.

        field_t = ln π_m(y_t | x', y_<t)

        fields:
          teacher: {use: model_logp, path: org/teacher}
          hinted: {use: model_logp, path: policy, prompt: "{prompt}\\n\\nA worked solution:\\n{demonstration}"}
          slow: {use: model_logp, path: policy, ema: {decay: 0.99, every: 1}}

    m is the model at `path`, with the policy's vocabulary. x' is the trajectory's own prompt, or `prompt`. The response
    is the trajectory's own tokens, never encoded again. The temperature is that at which the trajectory was drawn; of
    demonstrations it is 1. `path: policy` is π_θ at the start of the rollout batch, for all of its updates. A run opens
    each model once, whatever the number of fields that name it, and equal questions make one forward pass.

    A trajectory's numbers are NaN if something that `prompt` names is missing, or if the model has no room for prompt
    and response. The metric `fields/<name>/missing` counts such trajectories.
    Shapes: (T,), per token. Units: nats.
    Source: the teacher of on-policy distillation, arXiv 2306.13649; with `prompt`, a teacher that knows more, as in
    context distillation, arXiv 2112.00861, and self-distillation, arXiv 2601.20802; with `ema`, a mean teacher,
    arXiv 1703.01780.
    """

    per: ClassVar[Literal["token"]] = "token"

    path: ModelPath | None = None
    """The model: `policy`, or a place as `model.path` takes it (`./policy` is a folder of that name). By default the
    policy as it starts; with LoRA that is the policy without its adapter, and takes no memory of its own."""
    prompt: str | None = Field(default=None, min_length=1)
    """What replaces the problem's last user message; by default nothing does. `{prompt}` is that message,
    `{demonstration}` the problem's demonstration, `{success}` the text of the prompt's best rollout in this rollout
    batch (the first of those with the largest reward above 0), `{name}` a column of the data, a text or a number.
    Braces around anything but a name mean nothing. System prompt and template are those of any prompt."""
    ema: Ema | None = None
    """A moving average s of the policy's trained parameters θ in their place, for `path: policy` only; off by default.
    After every `every` rollout batches (by default each), s ← decay·s + (1 − decay)·θ. `{decay: 0, every: 512}` is a
    copy of the policy that is renewed every 512 rollout batches."""

    @model_validator(mode="after")
    def _of_the_policy(self) -> ModelLogp:
        if self.ema is not None and self.path != "policy":
            self.refuse(("ema",), "only the policy is trained, and another model has no average: set 'path: policy'")
        return self

    @contextmanager
    def open(self, context: Context) -> Iterator[FieldSession]:
        """A session that asks `context.models`. Raises InputError where there are none."""
        if context.models is None or context.tokens is None:
            raise InputError("the field model_logp asks the models of a run, and here is none")
        model = context.models.open(self.path, ema=self.ema)
        text = None if self.prompt is None else PromptText(self.prompt)
        kind = WithSuccesses if text is not None and "success" in text.names else Asked
        yield kind(model, text, context.tokens)


class Asked:
    """A model, and the prompt that it is asked with in place of a problem's own."""

    def __init__(self, model: AskedModel, text: PromptText | None, tokens: Callable[[Problem], Tokens]) -> None:
        self.model, self.text, self.tokens = model, text, tokens

    def read(self, step: int, trajectories: Sequence[Trajectory]) -> Tensor:
        """(T,) log-probs, nats; NaN for each token of a trajectory that the model can't be asked about."""
        import torch

        prompts = self._prompts(step, trajectories)
        known = [prompt is not None and self._fits(prompt, response) for prompt, response in prompts]
        rows = [(prompt or (), response) for (prompt, response), asked in zip(prompts, known, strict=True) if asked]
        temperatures = [each.temperature for each, asked in zip(trajectories, known, strict=True) if asked]
        if trajectories and self.model.sharded and not any(response for _, response in rows):
            self._take_part()
        logp = self.model.log_probs(rows, torch.tensor(temperatures, dtype=torch.float64))
        lengths = torch.tensor([len(each.response) for each in trajectories], dtype=torch.long)
        tokens = torch.tensor(known, dtype=torch.bool).repeat_interleave(lengths).to(logp.device)
        return torch.full(tokens.shape, torch.nan, dtype=logp.dtype, device=logp.device).masked_scatter(tokens, logp)

    def success(self, step: int, trajectory: Trajectory) -> str | None:
        """The text of the prompt's best rollout, where the prompt names it."""
        del step, trajectory
        return None

    def _prompts(self, step: int, trajectories: Sequence[Trajectory]) -> list[tuple[Tokens | None, Tokens]]:
        """For each trajectory the prompt's ids, None where something is missing, and the response's."""
        if self.text is None:
            return [(each.prompt, each.response) for each in trajectories]
        made: dict[tuple[str, int], Tokens | None] = {}  # the trajectories of a prompt share it
        for each in trajectories:
            if _place(each) not in made:
                problem = self.text.of(each.problem, self.success(step, each))
                made[_place(each)] = None if problem is None else self.tokens(problem)
        return [(made[_place(each)], each.response) for each in trajectories]

    def _fits(self, prompt: Tokens, response: Tokens) -> bool:
        """Whether the model has positions for both."""
        limit = self.model.policy.context_length
        return limit is None or len(prompt) + len(response) <= limit

    def _take_part(self) -> None:
        """Make the forward pass of a divided model that other ranks wait for, though there is nothing to ask."""
        import torch

        token = (self.model.policy.pad_id,)
        self.model.log_probs([(token, token)], torch.ones(1))


class WithSuccesses(Asked):
    """Of a prompt that names `{success}`: it keeps the best rollout of each prompt until the next rollout batch."""

    step = -1
    best: dict[tuple[str, int], Trajectory]

    def observe(self, step: int, trajectories: Sequence[Trajectory]) -> None:
        """Keep the first of each prompt's rollouts with the largest reward above 0."""
        self.step, self.best = step, {}
        for each in trajectories:
            if each.reward > (self.best[_place(each)].reward if _place(each) in self.best else 0):
                self.best[_place(each)] = each

    def success(self, step: int, trajectory: Trajectory) -> str | None:
        """The text of the prompt's best rollout, with what the template opened it with."""
        best = self.best.get(_place(trajectory)) if step == self.step else None
        return None if best is None else best.opening + best.text


def _place(trajectory: Trajectory) -> tuple[str, int]:
    """What names a prompt within a rollout batch: its problem may stand there more than once."""
    return trajectory.problem.id, trajectory.time
