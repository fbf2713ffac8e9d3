"""The training loop, to be read from the top down.

problems → engine → trajectories → reward → credit → count → weigh → optimizer → engine …
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor

from upge.distributed import fsdp
from upge.distributed.accelerator import open_accelerator
from upge.distributed.ranks import Ranks
from upge.errors import InputError
from upge.evaluate.measurement import evaluate
from upge.model import unused_tensors
from upge.model.loading import load_policy
from upge.model.policy import Policy
from upge.recipe.schema import Recipe
from upge.rollouts import packages, preflight, sessions
from upge.rollouts.collector import Collector
from upge.rollouts.rollout_batch import RolloutBatch
from upge.rollouts.sampler import Sampler
from upge.runs import failures, status
from upge.runs.folder import RunFolder
from upge.runs.recipe_file import changed
from upge.runs.signals import Stop, Stopped
from upge.train import cautions, checkpoint, random_state, trackers
from upge.train.checkpoint import Progress
from upge.train.display import Display
from upge.train.health_checks import HealthMonitor
from upge.train.learner import Learner, open_learner
from upge.train.metrics import StepMetrics
from upge.train.resume import Start, choose, tidy
from upge.train.token_log import TokenLog
from upge.types import Context, DataSession, EngineSession, Trajectory


def train(recipe: Recipe, *, resume: Path | None = None, again: bool = False, display: Display | None = None) -> Path:
    """Run a recipe; returns the run folder.

    Args:
        recipe: what to do. display: what shows it.
        resume: the folder of a run of this recipe, to go on with from its newest checkpoint.
        again: go on with the newest unfinished run of this recipe, if there is one.

    Raises:
        InputError: there is something wrong with what was given. RunError: the machine failed it. PartError: a part
        did. Stopped: SIGINT or SIGTERM asked for it.
    """
    with opened(recipe, resume, display or Display(), again=again) as trainer:
        trainer.run()
        return trainer.folder.path


def learn(learner: Learner, step: int, trajectories: Sequence[Trajectory]) -> dict[str, float]:
    """Make the optimizer steps of one rollout batch; returns its metrics, summed over ranks.

    Counts are taken over all micro-batches and ranks of an optimizer step before its first backward pass. So neither
    packing nor the number of processes changes the gradient.
    """
    estimator, metrics = learner.recipe.estimator, learner.metrics()
    # Once a rollout batch: every factor that needs no forward pass of π_θ.
    rollouts = learner.balanced(step, trajectories)
    rollouts = learner.with_fields_for_credit(step, rollouts)
    credit = estimator.credit(rollouts.batch, step, state=learner.state, reduce=learner.sum)
    learner.state = credit.state
    rollouts = replace(rollouts, credit=credit)
    metrics.rollouts(rollouts, estimator)
    if learner.token_log is not None:
        learner.token_log.begin(rollouts)
    rollouts = learner.with_fields_for_updates(step, learner.without_masked(rollouts))
    # Once an optimizer step: count over all of it, drop what cannot matter, then weigh and backward piece by piece.
    for update, portion in enumerate(learner.updates(rollouts)):
        if learner.critic is not None:
            learner.critic.learn(step, portion, metrics, learner.recipe.train.micro_batch_tokens, learner.sum)
        counted = replace(portion, credit=estimator.count(portion.batch, portion.settled, reduce=learner.sum))
        alive = counted.select(estimator.alive(counted.batch, counted.settled))
        metrics.add("rows/alive", len(alive.trajectories))
        loss = partial(_loss, learner, step, alive, metrics, stale=update > 0)
        pieces = learner.micro_batches(alive.trajectories, scope=estimator.scope)
        if learner.optimization.backward(pieces, loss, learner.idle):
            learner.optimization.step(step, metrics)
        else:
            metrics.add("updates/without_signal", 1 / learner.accelerator.num_processes)
    return metrics.reduced() | {"lr": learner.optimization.rate(step)}


def _loss(
    learner: Learner, step: int, rollouts: RolloutBatch, metrics: StepMetrics, rows: list[int], *, stale: bool
) -> Tensor:
    """The loss of one micro-batch, −Σ sg(weight)·log π_θ."""
    micro = learner.with_log_probs(step, rollouts.select(rollouts.rows(rows)))
    weighed = learner.recipe.estimator.weigh(micro.batch, micro.settled, stale=stale)
    metrics.weighed(micro.batch, weighed)
    if learner.token_log is not None:
        learner.token_log.weighed(micro, weighed)
    return weighed.loss


@dataclass
class Trainer:
    """A run in progress: everything is open, `run` does it.

    Attributes:
        done: rollout batches done. measured: whether the measurement due after them is made.
        taken: problems taken from the data. resumed: whether this process takes up another's work.
        saved: after how many rollout batches the newest checkpoint was written. stop: whether a signal asks for an end.
        evaluator: asks an engine of the evaluation's own; None where that of the rollouts measures.
        watch: what looks for signs of the run going wrong. said: what this process has warned of besides.
    """

    recipe: Recipe
    accelerator: Accelerator
    policy: Policy
    data: DataSession
    engine: EngineSession
    sampler: Sampler
    learner: Learner
    folder: RunFolder
    display: Display
    evaluator: Sampler | None = None
    done: int = 0
    measured: bool = False
    taken: int = 0
    resumed: bool = False
    saved: int | None = None
    evaluations: list[dict[str, Any]] = field(default_factory=list)
    stop: Stop = field(default_factory=Stop)
    watch: HealthMonitor = field(init=False)
    said: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.watch = HealthMonitor.of(self.recipe)

    def run(self) -> None:
        """Every rollout batch, with measurements and checkpoints between them; the trained model at the end.

        Once the step in hand is done and saved, raises Stopped where a signal asks for it, and RunError where a health
        check does.
        """
        self.display.begin(self.recipe, self.folder.path, self.done)
        self.display.tell(cautions.before(self.recipe, self.done))
        with self.stop.listening():
            if not self.resumed:
                self.check()
            self.measure_where_due()
            while self.done < self.recipe.train.steps:
                self.stop_where_asked()
                self.step(self.done)
                self.stop_where_asked()
                self.stop_where_unwell()
                self.measure_where_due()
                self.save_where_due()
            self.stop_where_asked()
            self.finish()

    def check(self) -> None:
        """Look at the problems to come, and tell what is wrong. Raises InputError where `train.check` refuses it."""
        settings = self.recipe.train
        if settings.check_problems == 0:
            return
        report = preflight.look(self.recipe, self.data, self.sampler)
        self.log({"phase": "check", "step": 0} | report.metrics())
        found = report.sentences()
        if found and settings.check == "refuse":
            raise InputError("\n".join(["train.check refuses the data:", *found]))
        self.display.found([*found, *report.notes()])

    def step(self, step: int) -> None:
        """One rollout batch: collect it, learn from it, log."""
        began = time.perf_counter()
        batch = self.collector.collect(step, self.taken, self.learner.state)
        self.taken = batch.taken
        collected = time.perf_counter()
        metrics = learn(self.learner, step, batch.trajectories) | batch.counts
        self.engine.sync(self.policy)
        ended = time.perf_counter()
        marks, warnings = self.watch.look(step, metrics)
        line = {"phase": "train", "step": step} | dict(sorted((metrics | marks).items()))
        seconds = {"collect": collected - began, "learn": ended - collected}
        self.log(line)
        self.keep_credit(step)
        self.folder.timings({"phase": "train", "step": step, **seconds})
        self.display.step(line, seconds)
        self.display.tell([*warnings, *cautions.during(self.recipe, line, self.said)])
        self.done, self.measured = step + 1, False
        self.note("running")

    @property
    def collector(self) -> Collector:
        """What makes rollout batches."""
        return Collector(
            self.recipe,
            self.data,
            self.sampler,
            keep=lambda step, mine: self.keep("train", step, self.gather(mine)),
            ranks=Ranks(self.accelerator),
            dtype=self.policy.model.dtype,
        )

    def measure_where_due(self) -> None:
        """Evaluate the policy at the start, at the end, and every so often as the recipe says."""
        every = self.recipe.eval.every
        due = self.done in (0, self.recipe.train.steps) or (every and self.done % every == 0)
        if due and not self.measured and self.recipe.eval.splits:
            self.measure(self.done)
        self.measured = True

    def measure(self, done: int) -> None:
        """Evaluate the policy after `done` rollout batches."""
        began = time.perf_counter()
        rank, world = self.accelerator.process_index, self.accelerator.num_processes
        if self.evaluator is not None:
            self.evaluator.engine.sync(self.policy)
        sampler = self.evaluator or self.sampler
        metrics, responses = evaluate(self.recipe, self.data, sampler, done, rank=rank, world=world, gather=self.gather)
        for split, sampled in responses.items():
            self.keep(f"eval/{split}", done, sampled)
        line = {"phase": "eval", "step": done} | metrics
        self.evaluations.append(line)
        self.log(line)
        self.folder.timings({"phase": "eval", "step": done, "seconds": time.perf_counter() - began})
        self.display.evaluation(line)

    def save_where_due(self) -> None:
        """Write a checkpoint every so often as the recipe says."""
        every = self.recipe.train.save_every
        if every and self.done % every == 0:
            self.save()

    def save(self) -> None:
        """Write a checkpoint of what is done; the logs it counts on are on the disk before it."""
        random = gather_object([random_state.state()])
        logged = self.folder.logged_to() if self.folder.writes else {}
        state, health = self.data.state(), self.watch.state()
        progress = Progress(self.done, self.measured, self.taken, state, logged, random, health)
        keep, writes = self.recipe.train.keep, self.folder.writes
        checkpoint.save(self.folder.path, self.learner, progress, keep=keep, writes=writes)
        self.saved = self.done
        self.accelerator.wait_for_everyone()

    def stop_where_asked(self) -> None:
        """Save and raise Stopped if this process, or another rank's, has had a signal."""
        if number := self.stop.agreed(self.accelerator):
            if self.saved != self.done:
                self.save()
            raise Stopped(f"stopped after step {self.done} of {self.recipe.train.steps}", number)

    def stop_where_unwell(self) -> None:
        """Save and raise RunError if a check that `health.stop` names fails, and there is more to do."""
        reasons = self.watch.stops()
        if not reasons or self.done == self.recipe.train.steps:
            return
        if self.saved != self.done:
            self.save()
        raise failures.RunError(
            f"stopped after step {self.done} of {self.recipe.train.steps}, as health.stop asks: {'; '.join(reasons)}\n"
            "to continue anyway, add health.stop=[] to the command below"
        )

    def finish(self) -> None:
        """Save the trained model and the summary."""
        checkpoint.leave(self.folder.path, self.learner, merge=_merges(self.recipe), writes=self.folder.writes)
        summary = {"name": self.recipe.name, "steps": self.recipe.train.steps, "evaluations": self.evaluations}
        self.folder.summary(summary)
        self.note("finished")
        self.display.end(self.evaluations, self.folder.path)
        if self.policy.left and _merges(self.recipe):
            self.display.tell([unused_tensors.lacking(self.policy.left)])
        self.accelerator.wait_for_everyone()

    def note(self, state: Literal["running", "finished"]) -> None:
        """Keep in the run folder how far the run is."""
        if self.folder.writes:
            status.note(self.folder.path, state, self.done)

    def log(self, line: dict[str, Any]) -> None:
        """Keep a line of metrics, and send it to the recipe's trackers."""
        self.folder.metrics(line)
        self.accelerator.log(trackers.numbers(line), step=line["step"])

    def keep(self, stream: str, step: int, trajectories: list[Trajectory]) -> None:
        """Log completions."""
        if self.recipe.log.completions:
            self.folder.completions(stream, step, trajectories, logp="rollout_logp" in self.learner.needs)

    def keep_credit(self, step: int) -> None:
        """Log what a few trajectories were weighed with."""
        if self.learner.token_log is not None:
            lines = Ranks(self.accelerator).all_gather(self.learner.token_log.lines(step))
            self.folder.credit(sorted(lines, key=lambda line: int(line["group"])))

    def gather(self, mine: list[Trajectory]) -> list[Trajectory]:
        """All ranks' trajectories."""
        return Ranks(self.accelerator).all_gather(mine)


@contextmanager
def opened(recipe: Recipe, resume: Path | None, display: Display, *, again: bool = False) -> Iterator[Trainer]:
    """Everything that a run needs, opened in order and closed in reverse."""
    packages.require(recipe)
    trackers.require(recipe.log.trackers)
    logging = {"log_with": list(recipe.log.trackers) or None, "project_dir": recipe.log.path(recipe.name)}
    accelerator = open_accelerator(recipe.train, recipe.model, **logging)
    start = Ranks(accelerator).broadcast(lambda: choose(recipe, resume, again=again))
    folder = RunFolder(start.folder, writes=accelerator.is_main_process)
    display.shown = accelerator.is_main_process
    display.tell([*start.told, *fsdp.settings(accelerator)])
    with ExitStack() as stack:
        if folder.writes:
            stack.callback(status.Lock(folder.path).release)
        stack.enter_context(failures.accounted(recipe, folder))
        random_state.seed(recipe.train.seed, accelerator.process_index)
        policy = load_policy(**recipe.policy_arguments())
        learner = open_learner(recipe, policy, accelerator)
        learner.token_log = TokenLog(policy.tokenizer) if recipe.log.completions else None
        context = Context(
            seed=recipe.train.seed,
            folder=folder.path,
            policy=policy,
            rank=accelerator.process_index,
            world=accelerator.num_processes,
            stop=recipe.rollout.stop,
        )
        data = stack.enter_context(sessions.opened(recipe.data, "data", recipe.data.open, context))
        engine_of = recipe.rollout.engine
        engine = stack.enter_context(sessions.opened(engine_of, "rollout.engine", engine_of.open, context))
        reward = stack.enter_context(sessions.opened(recipe.reward, "reward", recipe.reward.open, context))
        sampler, evaluator = Sampler.of(recipe, policy, engine, reward), None
        if (own := recipe.engine_of_its_own()) is not None:
            examined = stack.enter_context(sessions.opened(own, "eval.engine", own.open, context))
            evaluator = replace(sampler, engine=examined)
        preflight.check(recipe, data, sampler)
        checkpoint.rehearse(folder.path, learner, merge=_merges(recipe), writes=folder.writes)
        display.tell(policy.notes)
        stack.enter_context(trackers.tracking(recipe, accelerator, folder.path))
        stack.enter_context(display)
        trainer = Trainer(recipe, accelerator, policy, data, engine, sampler, learner, folder, display, evaluator)
        _begin(trainer, start)
        yield trainer


def _merges(recipe: Recipe) -> bool:
    """Whether the run leaves a whole model."""
    return recipe.model.lora is None or recipe.model.lora.save == "merged"


def _begin(trainer: Trainer, start: Start) -> None:
    """Put the trainer where the run begins: at its start, or where the checkpoint has left it."""
    folder, found = trainer.folder, start.found
    if found is not None and folder.writes:
        tidy(folder.path, found.damaged)
    if found is not None:
        folder.rewind({} if found.progress is None else found.progress.logged)
    if found is not None and found.place is not None and found.progress is not None:
        _take_up(trainer, found.place, found.progress)
    if found is None or changed(trainer.recipe, folder.path):
        folder.describe(trainer.recipe, trainer.policy.vocabulary_fingerprint())
    trainer.note("running")


def _take_up(trainer: Trainer, place: Path, progress: Progress) -> None:
    """Restore a checkpoint; the random generators come last, since opening may have drawn from them."""
    checkpoint.restore(place, trainer.learner)
    trainer.done, trainer.measured, trainer.taken = progress.step, progress.measured, progress.taken
    trainer.resumed, trainer.saved = True, progress.step
    trainer.data.restore(progress.data)
    trainer.watch.restore(progress.health)
    trainer.engine.sync(trainer.policy)
    trainer.evaluations = trainer.folder.evaluations()
    if len(progress.random) == trainer.accelerator.num_processes:
        random_state.restore(progress.random[trainer.accelerator.process_index])
