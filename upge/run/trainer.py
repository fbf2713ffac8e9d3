"""The training loop, to be read from the top down.

problems → engine → trajectories → reward → credit → count → weigh → optimizer → engine …
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import broadcast_object_list, gather_object
from transformers.utils.logging import disable_progress_bar

from upge import policy as policies
from upge.errors import InputError
from upge.flow import Context, DataSession, EngineSession, Trajectory
from upge.policy import Policy
from upge.recipe import Recipe
from upge.run import checking, checkpoint, fitting, guarding
from upge.run.assembling import Assembler
from upge.run.checkpoint import Progress
from upge.run.collect import Collector
from upge.run.critic import CriticLearner
from upge.run.display import Display
from upge.run.evaluating import evaluate
from upge.run.folder import RunFolder
from upge.run.guarding import Scorer
from upge.run.learning import Learner
from upge.run.tracking import numbers, require, tracking


def train(recipe: Recipe, *, resume: Path | None = None, display: Display | None = None) -> Path:
    """Run a recipe; returns the run folder. `resume` continues a run in its folder from its newest checkpoint."""
    with opened(recipe, resume, display or Display()) as trainer:
        trainer.run()
        return trainer.folder.path


@dataclass
class Trainer:
    """A run in progress: everything is open, `run` does it."""

    recipe: Recipe
    accelerator: Accelerator
    policy: Policy
    data: DataSession
    engine: EngineSession
    collector: Collector
    learner: Learner
    folder: RunFolder
    display: Display
    start: int = 0
    taken: int = 0
    evaluations: list[dict[str, Any]] = field(default_factory=list)

    def run(self) -> None:
        """Every rollout batch, with measurements and checkpoints between them; the trained model at the end."""
        steps = self.recipe.train.steps
        self.display.begin(self.recipe, self.folder.path, self.start)
        if self.start == 0:
            self.check()
            self.measure(0)
        for step in range(self.start, steps):
            self.step(step)
            self.between(step + 1)
        self.finish()

    def check(self) -> None:
        """Look at the problems to come, and tell what is wrong. Raises InputError where `train.check` refuses it."""
        settings = self.recipe.train
        if settings.check_problems == 0:
            return
        report = checking.look(self.recipe, self.data, self.collector)
        self.log({"phase": "check", "step": 0} | report.metrics())
        found = report.sentences()
        if found and settings.check == "refuse":
            raise InputError("\n".join(["train.check refuses the data:", *found]))
        self.display.found(found)

    def step(self, step: int) -> None:
        """One rollout batch: assemble it, learn from it, log."""
        began = time.perf_counter()
        assembled = self.assembler.assemble(step, self.taken, self.learner.state)
        self.taken = assembled.taken
        collected = time.perf_counter()
        metrics = self.learner.learn(step, assembled.grouped) | assembled.counts
        self.engine.sync(self.policy)
        ended = time.perf_counter()
        line = {"phase": "train", "step": step} | dict(sorted(metrics.items()))
        seconds = {"collect": collected - began, "learn": ended - collected}
        self.log(line)
        self.folder.timings({"phase": "train", "step": step, **seconds})
        self.display.step(line, seconds)

    @property
    def assembler(self) -> Assembler:
        """What makes rollout batches."""
        return Assembler(
            self.recipe,
            self.data,
            self.collector,
            keep=lambda step, mine: self.keep("train", step, self.gather(mine)),
            total=self.learner.sum,
            rank=self.accelerator.process_index,
            world=self.accelerator.num_processes,
            device=self.accelerator.device,
            dtype=self.policy.model.dtype,
        )

    def between(self, done: int) -> None:
        """After `done` rollout batches: measure and save where the recipe says so."""
        settings = self.recipe
        if done == settings.train.steps or (settings.eval.every and done % settings.eval.every == 0):
            self.measure(done)
        if settings.train.save_every and done % settings.train.save_every == 0:
            self.save(done)

    def measure(self, done: int) -> None:
        """Evaluate the policy after `done` rollout batches."""
        if not self.recipe.eval.splits:
            return
        began = time.perf_counter()
        rank, world = self.accelerator.process_index, self.accelerator.num_processes
        metrics, responses = evaluate(
            self.recipe, self.data, self.collector, done, rank=rank, world=world, gather=self.gather
        )
        for split, sampled in responses.items():
            self.keep(f"eval/{split}", done, sampled)
        line = {"phase": "eval", "step": done} | metrics
        self.evaluations.append(line)
        self.log(line)
        self.folder.timings({"phase": "eval", "step": done, "seconds": time.perf_counter() - began})
        self.display.evaluation(line)

    def save(self, done: int) -> None:
        """Write a checkpoint."""
        if self.folder.writes:
            place = self.folder.path / "checkpoints" / f"step-{done:06d}"
            checkpoint.save(place, self.learner, Progress(done, self.taken, self.data.state()))
        self.accelerator.wait_for_everyone()

    def finish(self) -> None:
        """Save the trained model and the summary."""
        if self.folder.writes:
            lora = self.recipe.model.lora
            checkpoint.save_models(self.folder.path, self.learner, merge=lora is None or lora.save == "merged")
        summary = {"name": self.recipe.name, "steps": self.recipe.train.steps, "evaluations": self.evaluations}
        self.folder.summary(summary)
        self.folder.report(self.recipe.name)
        self.display.end(self.evaluations, self.folder.path)
        self.accelerator.wait_for_everyone()

    def log(self, line: dict[str, Any]) -> None:
        """Keep a line of metrics, and send it to the recipe's trackers."""
        self.folder.metrics(line)
        self.accelerator.log(numbers(line), step=line["step"])

    def keep(self, stream: str, step: int, trajectories: list[Trajectory]) -> None:
        """Log completions."""
        if self.recipe.log.completions:
            self.folder.completions(stream, step, trajectories, logp="rollout_logp" in self.learner.needs)

    def gather(self, mine: list[Trajectory]) -> list[Trajectory]:
        """All ranks' trajectories."""
        return mine if self.accelerator.num_processes == 1 else list(gather_object(mine))


@contextmanager
def opened(recipe: Recipe, resume: Path | None, display: Display) -> Iterator[Trainer]:
    """Everything that a run needs, opened in order and closed in reverse."""
    require(recipe.log.trackers)
    # accelerate keeps one state a process; a run of its own precision, in a notebook say, must not meet the last one's.
    AcceleratorState._reset_state()
    # accelerate's own accumulation stays at 1: the estimator's counts are over the whole optimizer step already.
    accelerator = Accelerator(
        cpu=not torch.accelerator.is_available(),  # else several processes without a GPU would not find each other
        mixed_precision={"float32": "no", "bfloat16": "bf16", "float16": "fp16"}[recipe.train.precision],
        gradient_accumulation_steps=1,
        log_with=list(recipe.log.trackers) or None,
        project_dir=recipe.log.path(recipe.name),
    )
    torch.use_deterministic_algorithms(True, warn_only=True)
    disable_progress_bar()
    if recipe.train.threads is not None:
        torch.set_num_threads(recipe.train.threads)
    policy = open_policy(recipe)
    folder = RunFolder(_agreed_folder(recipe, resume, accelerator), writes=accelerator.is_main_process)
    display.shown = accelerator.is_main_process
    with ExitStack() as stack:
        learner = open_learner(recipe, policy, accelerator)
        context = Context(
            seed=recipe.train.seed,
            folder=folder.path,
            policy=policy,
            rank=accelerator.process_index,
            world=accelerator.num_processes,
        )
        data = stack.enter_context(guarding.opened(recipe.data, "data", recipe.data.open, context))
        engine_of = recipe.rollout.engine
        engine = stack.enter_context(guarding.opened(engine_of, "rollout.engine", engine_of.open, context))
        scored = stack.enter_context(guarding.opened(recipe.reward, "reward", recipe.reward.open, context))
        reward = Scorer(scored, recipe.reward)
        templater = policy.templater(recipe.data.template, recipe.data.system)
        limit = recipe.train.demonstration_tokens or recipe.rollout.max_tokens
        collector = Collector(
            templater,
            engine,
            reward,
            limit,
            zero_truncated=recipe.rollout.truncated == "zero_reward",
            context=policy.context_length,
        )
        fitting.check(recipe, data, collector)
        stack.enter_context(tracking(recipe, accelerator, folder.path))
        stack.enter_context(display)
        trainer = Trainer(recipe, accelerator, policy, data, engine, collector, learner, folder, display)
        if resume is None:
            folder.describe(recipe, policy.vocabulary_fingerprint())
        else:
            _resume(trainer)
        yield trainer


def open_policy(recipe: Recipe) -> Policy:
    """The recipe's model, on no device yet. Raises ModelError."""
    model = recipe.model
    return policies.load(
        model.path,
        tokenizer=model.tokenizer,
        config=model.config,
        dtype=model.dtype,
        attention=model.attention,
        overrides=model.overrides,
        gradient_checkpointing=model.gradient_checkpointing,
        lora=model.lora,
        seed=recipe.train.seed,
    )


def open_learner(recipe: Recipe, policy: Policy, accelerator: Accelerator) -> Learner:
    """The learner with the providers that the recipe's parts need, and no others. Raises ModelError."""
    needs, reference, critic = recipe.estimator.needs(), None, None
    if "reference_logp" in needs:
        reference = policies.load_reference(policy, recipe.reference.path)
        reference.policy.model.to(accelerator.device)
    if "value" in needs and recipe.critic is not None:
        critic = CriticLearner(recipe.critic, policies.load_critic(policy, recipe.critic.path), accelerator)
    return Learner(recipe, policy, accelerator, reference=reference, critic=critic)


def _agreed_folder(recipe: Recipe, resume: Path | None, accelerator: Accelerator) -> Path:
    """The run folder, chosen by the main process for all."""
    chosen = [str(resume or RunFolder.claim(recipe))]
    if accelerator.num_processes > 1:
        broadcast_object_list(chosen)
    return Path(chosen[0])


def _resume(trainer: Trainer) -> None:
    newest = checkpoint.latest(trainer.folder.path)
    if newest is None:
        trainer.folder.rewind(-1)
        return
    progress = checkpoint.restore(newest, trainer.learner)
    trainer.start, trainer.taken = progress.step, progress.taken
    trainer.data.restore(progress.data)
    trainer.engine.sync(trainer.policy)
    trainer.folder.rewind(trainer.start)
    trainer.evaluations = trainer.folder.evaluations()
