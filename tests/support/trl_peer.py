"""TRL's GRPOTrainer on rollouts that we hand it: what samples and scores is ours, what it makes of them is its own.

TRL's hooks for rollouts and rewards play back a `Script`. From there on all is TRL's code: padding, advantages, counts,
importance ratios, the cut into shuffled micro-batches, the loss. TRL is imported when a `Peer` is made, not before.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from support import tiny_models as models
from torch import Tensor

from upge import Batch

SETTINGS: dict[str, Any] = {
    "use_cpu": True,
    "bf16": False,
    "gradient_checkpointing": False,
    "report_to": "none",
    "save_strategy": "no",
    "logging_strategy": "no",
    "disable_tqdm": True,
    "per_device_train_batch_size": 2,
    "num_generations": 2,
    "max_grad_norm": 0.0,
}
"""What has no part in the loss, or stays out of it."""


@dataclass(frozen=True)
class Script:
    """N trajectories, those of a prompt next to each other: token ids, rewards, and the engine's log-probs."""

    prompts: list[list[int]]
    responses: list[list[int]]
    rewards: list[float]
    logprobs: list[list[float]] | None = None

    @classmethod
    def of(cls, batch: Batch) -> Script:
        """A script whose response token ids are the tokens' places in the batch, by which they are found again."""
        lengths = batch.length.tolist()
        responses = torch.arange(batch.trajectory.numel()).split(lengths)
        assert batch.rollout_logp is not None
        logprobs = batch.rollout_logp.split(lengths)
        return cls([[0]] * batch.size, _lists(responses), batch.reward.tolist(), _lists(logprobs))


def _lists(rows: Sequence[Tensor]) -> list[Any]:
    return [row.tolist() for row in rows]


Step = tuple[dict[str, Tensor], dict[str, Tensor]]
"""Parameters and their gradients, by name."""


class Recorder:
    """Keeps what there is just before each optimizer step; `recorder` makes a callback of it."""

    def __init__(self) -> None:
        self.steps: list[Step] = []

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        named = dict(model.named_parameters())
        parameters = {name: parameter.detach().clone() for name, parameter in named.items()}
        self.steps.append((parameters, {name: parameter.grad.clone() for name, parameter in named.items()}))


def recorder() -> Any:
    """One that transformers takes for a callback. To import what it is then takes seconds, so it waits for a `Peer`."""
    from transformers import TrainerCallback

    return type("Recording", (Recorder, TrainerCallback), {})()


class Peer:
    """A GRPOTrainer over a small model, with rollouts and rewards from `script`.

    Args:
        folder: where `save_model` put the model. settings: GRPOConfig's, over `SETTINGS`.
        engine: whether TRL corrects for its engine as it does for vLLM, which needn't be there.
        cache: the tokens before the budget over which TRL's overlong penalty rises; None for no penalty.
        prompts: the size of the dataset, for `train`.
    """

    def __init__(
        self,
        folder: Path,
        settings: Mapping[str, Any],
        *,
        engine: bool = False,
        cache: int | None = None,
        prompts: int = 1,
    ) -> None:
        from datasets import Dataset
        from trl import GRPOConfig, GRPOTrainer
        from trl.rewards import get_soft_overlong_punishment

        config = GRPOConfig(str(folder / "run"), **{**SETTINGS, **settings})
        penalty = [] if cache is None else [get_soft_overlong_punishment(config.max_completion_length, cache)]
        self.script, self.recorder = Script([], [], []), recorder()
        self.trainer = GRPOTrainer(
            str(folder),
            reward_funcs=[self._score, *penalty],
            args=config,
            train_dataset=Dataset.from_dict({"prompt": ["?"] * prompts}),
            processing_class=models.tokenizer(),
            callbacks=[self.recorder],
            rollout_func=self._roll_out,
        )
        if engine:
            # Set in the configuration it would start a vLLM; the weights are marked as loaded.
            self.trainer.use_vllm, self.trainer._last_loaded_step = True, 0

    def micro_batches(self, script: Script, generations: int, *, stale: bool, seed: int) -> list[dict[str, Any]]:
        """What TRL makes of one batch of rollouts: the inputs of its loss, micro-batch by micro-batch.

        `stale` is for rollouts that several optimizer steps use, so that TRL computes π_old; `seed` shuffles.
        """
        trainer, self.script = self.trainer, script
        trainer.num_generations, trainer.num_iterations = generations, 2 if stale else 1
        # The training loop, which isn't run, would set these.
        trainer.model.train()
        trainer.current_gradient_accumulation_steps = trainer.args.gradient_accumulation_steps
        trainer._buffered_inputs = None
        inputs = []
        with double(), torch.random.fork_rng():
            torch.manual_seed(seed)
            for step in range(trainer.args.steps_per_generation):
                trainer._step = step
                inputs.append(trainer._prepare_inputs([{"prompt": "?"}] * len(script.rewards)))
        return inputs

    def loss(self, inputs: dict[str, Any]) -> Tensor:
        """TRL's loss of a micro-batch."""
        with double():
            loss: Tensor = self.trainer.compute_loss(self.trainer.model, inputs)
            return loss

    def read(self, batch: Batch) -> None:
        """From now on TRL finds log-probs in this batch: log π_θ with its gradient, log π_old, and the reference's."""
        assert batch.logp is not None
        old = batch.logp.detach() if batch.old_logp is None else batch.old_logp

        def log_probs(
            model: Any, input_ids: Tensor, attention_mask: Tensor, logits_to_keep: int, *_: Any, **__: Any
        ) -> tuple[Tensor, Tensor, None]:
            source = batch.logp if torch.is_grad_enabled() else old
            source = batch.reference_logp if model is self.trainer.ref_model else source
            assert source is not None
            there = attention_mask[:, -logits_to_keep:] == 1
            found = source[input_ids[:, -logits_to_keep:].where(there, 0)]
            return found.masked_fill(~there, 0), torch.zeros_like(found), None

        self.trainer._get_per_token_logps_and_entropies = log_probs

    def train(self, script: Script) -> list[Step]:
        """A whole run of TRL's on the script; what it had at each optimizer step."""
        self.script = script
        self.trainer.train()
        return self.recorder.steps

    def _roll_out(self, prompts: list[Any], trainer: Any) -> dict[str, Any]:
        del trainer
        script = self.script
        assert len(prompts) == len(script.rewards)
        return {"prompt_ids": script.prompts, "completion_ids": script.responses, "logprobs": script.logprobs}

    def _score(self, completion_ids: list[list[int]], **_: Any) -> list[float]:
        assert completion_ids == self.script.responses
        return self.script.rewards


def save_model(folder: Path) -> Path:
    """A small random model where a `Peer` can load it, as TRL loads the reference model, from a folder.

    Its positions are rotary: TRL pads prompts on the left and doesn't give positions, which learned ones would feel.
    """
    models.llama().save_pretrained(folder)
    return folder


@contextmanager
def double() -> Iterator[None]:
    """While open, new tensors are float64, those that TRL makes of rewards and log-probs too."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
