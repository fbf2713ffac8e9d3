"""A training step of ours against one of TRL's GRPOTrainer: same model, rollouts and rewards, same gradient.

TRL's hooks for rollouts and rewards play back what we hand them; padding, advantages, micro-batches, loss and backward
pass are its own code. Gradients are compared first, since time only means something where these agree. A step is all
that follows the rollouts, the optimizer's step included, which on both sides moves nothing: the learning rate is 0.
"""

from __future__ import annotations

import multiprocessing
import tempfile
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from upge.bench.measuring import Table, Timing, in_turns, machine
from upge.bench.memory import peak
from upge.bench.work import Work
from upge.errors import InputError
from upge.run.trainer import open_policy

RECIPE = ("grpo", "estimator.terms.rl.advantage={use: group_norm, epsilon: 1e-4}")
"""TRL's GRPO has this epsilon, and takes the mean over each response's tokens, then over responses, with `grpo`."""

Gradients = dict[str, Tensor]


def measure(work: Work, *, batch_sizes: Sequence[int] = (4, 8, 16, 32), repeats: int = 5) -> Table:
    """Tokens per second and peak memory of both, TRL at the fastest of its batch sizes.

    Raises: InputError: TRL isn't installed.
    """
    try:
        import trl
    except ImportError as error:
        raise InputError(f"TRL can't be imported ({error}): pip install 'upge[peers]'") from error
    sizes = [size for size in batch_sizes if len(work.grouped) % size == 0]
    if not sizes:
        raise InputError(f"--batch-sizes: none of them divides the {len(work.grouped)} trajectories")
    best = _fastest(work, sizes)
    with Theirs(work, best) as theirs:
        ours = Ours(work)
        apart = distance(ours.gradients(), theirs.gradients())
        timings = in_turns({"upge": ours.step, "TRL": theirs.step}, repeats=repeats)
    memory = {"upge": _alone(_peak_of_ours, work), "TRL": _alone(_peak_of_theirs, work, best)}
    return _table(work, timings, memory, apart, best, trl.__version__)


def _fastest(work: Work, sizes: Sequence[int]) -> int:
    """The batch size at which TRL takes least, one at a time: each has a model and an optimizer of its own."""
    seconds = {}
    for size in sizes:
        with Theirs(work, size) as theirs:
            seconds[size] = in_turns({"TRL": theirs.step}, repeats=1)["TRL"].median
    return min(sizes, key=lambda size: seconds[size])


class Ours:
    """A recipe's training step over the work."""

    def __init__(self, work: Work) -> None:
        self.work = work
        self.learner = work.learner(work.recipe(*RECIPE))

    def step(self) -> None:
        """From the scored rollouts to the optimizer's step."""
        self.learner.learn(0, self.work.grouped)

    def gradients(self) -> Gradients:
        """What the optimizer is given."""
        optimization = self.learner.optimization
        return _seen(optimization.optimizer.optimizer, optimization.model, self.step)


class Theirs:
    """GRPOTrainer's training step over the work, in micro-batches of `size` trajectories."""

    def __init__(self, work: Work, size: int) -> None:
        self.work, self.size = work, size
        self.folder = tempfile.TemporaryDirectory()
        self.trainer = self._trainer(Path(self.folder.name))
        self.pieces = len(work.grouped) // size

    def __enter__(self) -> Theirs:
        return self

    def __exit__(self, *_: object) -> None:
        self.folder.cleanup()

    def step(self) -> None:
        """From the scored rollouts to the optimizer's step."""
        trainer = self.trainer
        trainer._step, trainer._buffered_inputs = 0, None
        for _ in range(self.pieces):
            trainer.training_step(trainer.model, [{"prompt": "?"}] * len(self.work.grouped), None)
        trainer.optimizer.step()
        trainer.optimizer.zero_grad()

    def gradients(self) -> Gradients:
        """What the optimizer is given."""
        return _seen(self.trainer.optimizer, self.trainer.model, self.step)

    def _trainer(self, folder: Path) -> Any:
        from datasets import Dataset
        from trl import GRPOConfig, GRPOTrainer

        policy = open_policy(self.work.recipe(*RECIPE))
        pieces = len(self.work.grouped) // self.size
        config = GRPOConfig(
            str(folder),
            per_device_train_batch_size=self.size,
            gradient_accumulation_steps=pieces,
            num_generations=self.work.samples,
            max_completion_length=self.work.longest,
            loss_type="grpo",
            learning_rate=0.0,
            max_grad_norm=0.0,
            **{"use_cpu": True, "bf16": False, "gradient_checkpointing": False},
            **{"report_to": "none", "save_strategy": "no", "logging_strategy": "no", "disable_tqdm": True},
        )
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="You are using 'rollout_func'")
            trainer = GRPOTrainer(
                policy.model,
                reward_funcs=[lambda completion_ids, **_: [each.reward for _, each in self.work.grouped]],
                args=config,
                train_dataset=Dataset.from_dict({"prompt": ["?"] * self.work.prompts}),
                processing_class=policy.tokenizer,
                rollout_func=self._roll_out,
            )
        trainer.create_optimizer()
        # The training loop, which isn't run, would set these.
        trainer.model.train()
        trainer.current_gradient_accumulation_steps = pieces
        return trainer

    def _roll_out(self, prompts: list[Any], trainer: Any) -> dict[str, Any]:
        del prompts, trainer
        trajectories = [each for _, each in self.work.grouped]
        return {
            "prompt_ids": [list(each.prompt) for each in trajectories],
            "completion_ids": [list(each.response) for each in trajectories],
            "logprobs": None,
        }


def _seen(optimizer: torch.optim.Optimizer, model: torch.nn.Module, step: Callable[[], None]) -> Gradients:
    """The gradients that `step` leaves to the optimizer."""
    seen: Gradients = {}

    def look(*_: Any) -> None:
        seen.update((name, p.grad.clone()) for name, p in model.named_parameters() if p.grad is not None)

    hook = optimizer.register_step_pre_hook(look)
    step()
    hook.remove()
    return seen


def distance(ours: Gradients, theirs: Gradients) -> float:
    """‖ours − theirs‖ / ‖theirs‖ over all parameters. Raises ValueError where they aren't of the same ones."""
    if ours.keys() != theirs.keys():
        raise ValueError(f"gradients of different parameters: {sorted(ours.keys() ^ theirs.keys())}")
    apart = sum(float((ours[name].double() - theirs[name].double()).square().sum()) for name in theirs)
    return float((apart / sum(float(x.double().square().sum()) for x in theirs.values())) ** 0.5)


def _alone(function: Callable[..., int], *arguments: Any) -> int:
    """What a function gives in a process of its own."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def _peak_of_ours(work: Work) -> int:
    ours = Ours(work)
    return _second(ours.step, ours.learner.policy.model)


def _peak_of_theirs(work: Work, size: int) -> int:
    with Theirs(work, size) as theirs:
        return _second(theirs.step, theirs.trainer.model)


def _second(step: Callable[[], None], model: torch.nn.Module) -> int:
    """Bytes of a second step above weights, optimizer state, which the first step makes, and gradients."""
    step()
    return peak(step) - sum(p.numel() * p.element_size() for p in model.parameters())


def _table(
    work: Work, timings: dict[str, Timing], memory: dict[str, int], apart: float, size: int, version: str
) -> Table:
    speed = {name: work.tokens / timing.median for name, timing in timings.items()}
    ratio, share = speed["upge"] / speed["TRL"], memory["upge"] / memory["TRL"]
    rows = []
    for name, timing in timings.items():
        low, high = timing.spread
        seconds = f"{timing.median:.2f} ({low:.2f} to {high:.2f})"
        rows.append([name, seconds, f"{speed[name]:.0f}", f"{memory[name] / 2**20:.0f}"])
    rows.append(["upge : TRL", "", f"{ratio:.2f}", f"{share:.2f}"])
    facts = {
        "speedup": ratio,
        "memory": share,
        "gradient_distance": apart,
        "trl_batch_size": size,
        "tokens": work.tokens,
        "seconds": {name: timing.seconds for name, timing in timings.items()},
        "peak_bytes": memory,
    }
    return Table(
        title=f"A training step on {work.prompts} × {work.samples} rollouts, {work.signal:.0%} of them with signal",
        columns=["", "seconds, median (least to most)", "tokens/s", "peak memory, MiB"],
        rows=rows,
        notes=[
            f"TRL {version} at batch size {size}, its fastest here. Tokens: {work.tokens}, prompts once a rollout.",
            f"Gradients: ‖upge − TRL‖ / ‖TRL‖ = {apart:.1e}.",
            "Peak memory is above what any step needs: weights, gradients and optimizer state.",
            machine(),
        ],
        facts=facts,
    )
