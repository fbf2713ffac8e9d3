"""Whether a run that is killed and taken up again leaves, byte for byte, what one leaves that never was.

Every run is a process of its own that does the same command, `upge run … --continue`. It is killed by SIGKILL, which no
process sees coming. Where it was is read from the run folder, which tells as much to anybody: nothing in a run knows
of this benchmark.
"""

from __future__ import annotations

import json
import os
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from importlib.metadata import entry_points
from multiprocessing import get_context
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from upge.bench.timing import Table, machine
from upge.runs import atomic_files, status
from upge.runs.reader import checkpoints

RECIPE = "bench/resume"
PHASES = ("rollout", "update", "evaluation", "checkpoint", "end")
EQUAL = ("model/model.safetensors", "metrics.jsonl", "completions.jsonl", "credit.jsonl", "summary.json")
"""What must be the same bytes."""
SAVE_EVERY, EVAL_EVERY = 2, 3
SMALL = ("train.prompts=6", "rollout.n=4", "rollout.max_tokens=48", "eval.n=2", "eval.pass_at=[2]", "eval.limit=6")
"""What makes a run of the lab one of seconds."""
OFTEN = 0.002
"""Seconds between two looks into the run folder."""


@dataclass(frozen=True)
class Moment:
    """Where a run is: `step` is the rollout batch in work, or how many are done where one is measured or saved."""

    phase: str
    step: int

    def __str__(self) -> str:
        return f"{self.phase}, {'step ' if self.phase in ('rollout', 'update') else 'after '}{self.step}"


@dataclass
class Kill:
    """One kill.

    Attributes:
        run: which of the runs. seconds: after the process began. moment: where it was.
        resumed: the checkpoint that the next process went on from; None: from the beginning.
        equal: whether the run came to the same end.
    """

    run: int
    seconds: float
    moment: Moment
    resumed: int | None
    equal: bool = False

    def facts(self) -> dict[str, Any]:
        """For programs."""
        facts = asdict(self)
        moment: dict[str, Any] = facts.pop("moment")
        return facts | moment

    def cells(self) -> tuple[str, ...]:
        """For a table."""
        resumed = "the beginning" if self.resumed is None else f"step {self.resumed}"
        return str(self.run), f"{self.seconds:.2f} s", str(self.moment), resumed, "yes" if self.equal else "NO"


@dataclass
class Killer:
    """Runs the command, again and again, in folders of its own."""

    recipe: str
    overrides: Sequence[str]
    folder: Path
    steps: int
    random: random.Random
    pauses: dict[str, float] = field(default_factory=dict)
    aimed: Counter[str] = field(default_factory=Counter)
    hits: Counter[str] = field(default_factory=Counter)

    def start(self, name: str) -> BaseProcess:
        """A process at work on the run `name`: at its beginning, or where the last one was."""
        settings = [f"train.steps={self.steps}", f"train.save_every={SAVE_EVERY}", f"eval.every={EVAL_EVERY}"]
        place = f"log.folder={json.dumps(str(self.folder / name))}"
        arguments = ["run", self.recipe, *settings, *self.overrides, place, "--continue"]
        log = str(self.folder / f"{name}.log")
        process: BaseProcess = _context().Process(target=_upge, args=(arguments, log))
        process.start()
        return process

    def through(self, name: str) -> None:
        """Run to the end. Raises RuntimeError with the run's output if it fails."""
        process = self.start(name)
        process.join()
        if process.exitcode != 0:
            raise RuntimeError((self.folder / f"{name}.log").read_text(encoding="utf-8")[-4000:])

    def learn_pauses(self, name: str) -> None:
        """How long each phase takes, by the clocks of a run that came to its end."""
        lines = _lines(self.folder / name / "timings.jsonl")
        train = [line for line in lines if line["phase"] == "train"]
        measured = [line["seconds"] for line in lines if line["phase"] == "eval"]
        spent = {"rollout": [line["collect"] for line in train], "update": [line["learn"] for line in train]}
        spent |= {"evaluation": measured, "checkpoint": [0.05], "end": [0.05]}
        self.pauses = {phase: sorted(seconds)[len(seconds) // 2] for phase, seconds in spent.items()}

    def kill(self, run: int, name: str) -> Kill | None:
        """Start a process and kill it in a phase that was aimed at least; None if it came to its end before."""
        began, process = time.perf_counter(), self.start(name)
        folder = self.folder / name
        target = self._target(folder)
        while process.is_alive() and not self._reached(folder, process, target):
            time.sleep(OFTEN)
        time.sleep(self.random.random() * self.pauses[target.phase])
        process.kill()
        process.join()
        if process.exitcode != -9:
            return None
        moment = look(folder, self.steps)
        self.hits[moment.phase] += 1
        kept = checkpoints(folder)
        resumed = int(kept[0].name.removeprefix("step-")) if kept else None
        return Kill(run, time.perf_counter() - began, moment, resumed)

    def _target(self, folder: Path) -> Moment:
        """A random moment, still to come, of a phase that was aimed at least."""
        done = look(folder, self.steps).step
        coming = [moment for moment in moments(self.steps) if moment.step >= done]
        fewest = min(self.aimed[moment.phase] for moment in coming)
        target = self.random.choice([moment for moment in coming if self.aimed[moment.phase] == fewest])
        self.aimed[target.phase] += 1
        return target

    def _reached(self, folder: Path, process: BaseProcess, target: Moment) -> bool:
        state = status.read(folder)
        if state is None or state.pid != process.pid:
            return False  # it has yet to take up what the last one left
        now = look(folder, self.steps)
        return now == target or now.step > target.step + 1

    def differing(self, one: str, other: str) -> list[str]:
        """The files in which two runs differ."""
        return [name for name in EQUAL if _bytes(self.folder / one / name) != _bytes(self.folder / other / name)]


def moments(steps: int) -> Iterator[Moment]:
    """Every moment of a run, in each phase."""
    for step in range(steps):
        yield from (Moment("rollout", step), Moment("update", step))
    yield from (Moment("evaluation", done) for done in range(0, steps + 1) if _measured(done, steps))
    yield from (Moment("checkpoint", done) for done in range(SAVE_EVERY, steps + 1, SAVE_EVERY))
    yield Moment("end", steps)


def look(folder: Path, steps: int) -> Moment:
    """Where the run in a folder is, or was when its process was killed."""
    lines = _lines(folder / "metrics.jsonl")
    done = sum(line["phase"] == "train" for line in lines)
    if any((folder / "checkpoints").glob(f"*{atomic_files.PARTIAL}")):
        return Moment("checkpoint", done)
    if _measured(done, steps) and not any(line["phase"] == "eval" and line["step"] == done for line in lines):
        return Moment("evaluation", done)
    if done and done % SAVE_EVERY == 0 and not (folder / "checkpoints" / f"step-{done:06d}").is_dir():
        return Moment("checkpoint", done)
    if done == steps:  # the trained model is being written
        return Moment("end", done)
    last = _last(folder / "completions.jsonl")
    sampled = last is not None and (last["stream"], last["step"]) == ("train", done)
    return Moment("update" if sampled else "rollout", done)


def measure(
    *, kills: int = 30, steps: int = 12, seed: int = 0, recipe: str = RECIPE, overrides: Sequence[str] = SMALL
) -> Table:
    """Kill runs `kills` times in all, let each come to its end, and compare it with one that was never killed."""
    with tempfile.TemporaryDirectory(prefix="upge-resume-", ignore_cleanup_errors=True) as folder:
        killer = Killer(recipe, overrides, Path(folder), steps, random.Random(seed))
        killer.through("through")
        killer.learn_pauses("through")
        done: list[Kill] = []
        run = 0
        while len(done) < kills:
            run += 1
            done += _killed_and_compared(killer, run, kills - len(done))
    return _table(done, killer, seed)


def _killed_and_compared(killer: Killer, run: int, most: int) -> list[Kill]:
    """A run that is killed once, or up to three times, and then let be."""
    name = f"run-{run}"
    kills: list[Kill] = []
    while (kill := killer.kill(run, name)) is not None:
        kills.append(kill)
        if killer.random.random() >= 1 / 3 or len(kills) == min(3, most):
            killer.through(name)
            break
    differing = killer.differing("through", name)
    for kill in kills:
        kill.equal = not differing
    print(f"run {run}: killed in {'; '.join(str(kill.moment) for kill in kills) or 'no phase'}", file=sys.stderr)
    return kills


def _table(kills: Sequence[Kill], killer: Killer, seed: int) -> Table:
    equal = sum(kill.equal for kill in kills)
    hits = ", ".join(f"{phase} {killer.hits[phase]}" for phase in PHASES)
    notes = (
        f"{equal} of {len(kills)} kills left no trace: {', '.join(EQUAL)} are, byte for byte, those of a run that was "
        "never killed.",
        f"{killer.steps} steps of {killer.recipe}, a checkpoint every {SAVE_EVERY}, a measurement every {EVAL_EVERY}; "
        f"seed {seed}. Killed in: {hits}.",
        machine(),
    )
    facts: dict[str, Any] = {
        "kills": len(kills),
        "equal": equal,
        "phases": dict(killer.hits),
        "rows": [kill.facts() for kill in kills],
    }
    columns = ("kill", "run", "after its start", "killed in", "resumed from", "equal")
    rows = [(str(number), *kill.cells()) for number, kill in enumerate(kills, start=1)]
    return Table("Runs killed by SIGKILL and resumed", columns, rows, notes, facts)


def _measured(done: int, steps: int) -> bool:
    return done == steps or done % EVAL_EVERY == 0


def _upge(arguments: list[str], log: str) -> None:
    """The command in a process of its own, with its output in a file."""
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    (command,) = entry_points(group="console_scripts", name="upge")
    sys.argv = ["upge", *arguments]
    command.load()()


def _context() -> Any:
    """Processes forked from one that has imported everything, and done nothing yet: importing takes longest."""
    context = get_context("forkserver")
    modules = ("upge.cli", "upge.train.trainer", "upge_parts.engines.generating")
    context.set_forkserver_preload([*modules, "transformers.models.llama.modeling_llama"])
    return context


def _lines(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a log."""
    text = path.read_text(encoding="utf-8", errors="ignore") if path.is_file() else ""
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]


def _last(path: Path) -> dict[str, Any] | None:
    """The last whole line of a log."""
    with suppress(OSError, ValueError), path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - 65536))
        record: dict[str, Any] = json.loads(file.read().rpartition(b"\n")[0].rpartition(b"\n")[2])
        return record
    return None


def _bytes(path: Path) -> bytes | None:
    return path.read_bytes() if path.is_file() else None
