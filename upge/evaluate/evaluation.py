"""An evaluation on its own: responses sampled, or taken from a file, then scored, counted, and kept in a folder.

recipe.yaml        the settings, resolved        manifest.json      versions, packages, hashes, the seed
completions.jsonl  every response, scored        problems.jsonl     a line a problem
summary.json       every score, with its interval

The files contain no times. Responses are written as they are sampled, so a stopped evaluation can be resumed. Several
processes share the responses of each chunk, and the main one writes: the files don't depend on their number.
"""

from __future__ import annotations

import json
import os
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any

from upge.distributed import fsdp
from upge.distributed.accelerator import open_ranks
from upge.distributed.ranks import Ranks
from upge.errors import InputError
from upge.evaluate.completions import Given, completions_of, problems_in
from upge.evaluate.measurement import CHUNK, prompted_share, sample, samples
from upge.evaluate.scores import LEVEL, RESAMPLES, Estimate, Record, answers_in, bootstrap, columns, merged, places
from upge.files import parse_json
from upge.model.loading import load_policy
from upge.model.policy import Policy
from upge.recipe.schema import Recipe
from upge.rollouts import preflight, sessions
from upge.rollouts.preflight import refuse_unscorable
from upge.rollouts.problems import problems_of
from upge.rollouts.sampler import PromptedProblem, Sampler
from upge.runs import failures
from upge.runs.folder import RunFolder, completion, stream_of
from upge.runs.folder_lock import claimed
from upge.runs.reader import RunReader
from upge.runs.recipe_file import changed
from upge.types import Context, Problem, Response, RewardSession, Trajectory

STEP = 0
"""Keys the sampling noise: the same for every model, so that a comparison is of models and not of luck."""

Line = dict[str, Any]
Problems = dict[str, list[Problem]]
Show = Callable[[Path, int, int], None]
"""A callback with the number of responses so far, and in all."""


@dataclass(frozen=True)
class Evaluation:
    """The scores: place (`<split>`, `<split>/<band>`) → score → its mean over problems, with interval.

    Attributes: folder: where everything is kept. problems: place → how many. answered: whether the reward has answers.
    """

    folder: Path
    scores: dict[str, dict[str, Estimate]]
    problems: dict[str, int]
    answered: bool


def evaluate_model(
    recipe: Recipe,
    folder: Path,
    *,
    resume: bool = False,
    chunk: int = CHUNK,
    show: Show = lambda folder, done, total: None,
) -> Evaluation:
    """Sample `eval.n` responses to each problem of `eval.splits`, `chunk` at a time, and score them.

    All processes of a launcher call it together, and get the same. The model runs in `train.precision`.
    The folder has a number added where something is there already.
    `resume`: continue in the folder with the beginning of this evaluation. Raises InputError for another folder.
    """
    preflight.require_packages(recipe)
    team = _team(recipe)
    with ExitStack() as stack:
        claimed_folder = team.broadcast(lambda: stack.enter_context(claimed(folder, resume=resume)))
        return _evaluated(recipe, claimed_folder, team, resume=resume, chunk=chunk, show=show)


def _evaluated(recipe: Recipe, folder: Path, team: Ranks, *, resume: bool, chunk: int, show: Show) -> Evaluation:
    policy = _on_device(recipe, team)
    context = Context(recipe.train.seed, folder, policy, team.rank, team.world, recipe.rollout.stop)
    with _judging(recipe, context) as (problems, reward):
        with failures.explained(recipe, folder), _sampling(recipe, context, policy, reward) as sampler:
            for split, its in problems.items():
                preflight.measured(recipe, split, its, sampler)
            prompted_problems = {split: prompted_share(sampler, its, recipe.eval.n) for split, its in problems.items()}
            fingerprint = policy.vocabulary_fingerprint()
            done = team.broadcast(
                lambda: _begun(RunFolder(folder), recipe, fingerprint, prompted_problems, resume=resume)
            )
            total = recipe.eval.n * sum(map(len, prompted_problems.values()))
            pieces = _sampled(recipe, sampler, reward, prompted_problems, done, chunk, team)
            _write(folder, pieces, done, total, show, writes=team.rank == 0)
        return team.broadcast(lambda: _tally(RunFolder(folder), recipe, problems, reward, {"model": recipe.model.path}))


def evaluate_completions(
    recipe: Recipe, folder: Path, file: Path, *, chunk: int = CHUNK, show: Show = lambda folder, done, total: None
) -> Evaluation:
    """Score the responses in a file (see `upge.evaluate.completions`) as the recipe's reward does; without a model.

    Raises InputError unless the file has the same number of responses, and enough, for each problem.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise InputError("--completions are scored in one process: start it without a launcher")
    answered = problems_in(file, recipe.eval.splits)
    with (
        claimed(folder) as claimed_folder,
        _judging(recipe, Context(recipe.train.seed, claimed_folder), answered) as (problems, reward),
    ):
        refuse_unscorable(recipe, chain.from_iterable(problems.values()))
        completions = completions_of(file, problems, max((1, *recipe.eval.pass_at)))
        kept = RunFolder(claimed_folder)
        kept.describe(recipe, None)
        _write(claimed_folder, _rescored(recipe, reward, completions(), chunk), 0, completions.count, show)
        return _tally(kept, recipe, problems, reward, {"completions": str(file)})


# Opening.


def _team(recipe: Recipe) -> Ranks:
    team = open_ranks(recipe.train, recipe.model)
    if (by := fsdp.requested()) and team.world > 1:
        raise InputError(
            f"accelerate's config requests {by}: an evaluation keeps the model whole; run it with MULTI_GPU"
        )
    return team


def _on_device(recipe: Recipe, team: Ranks) -> Policy:
    """The policy where it will run; its forward pass is in the run's precision, as it is in a run."""
    policy = load_policy(**recipe.policy_arguments())
    team.accelerator.prepare_model(policy.model, evaluation_mode=True)
    return policy


@contextmanager
def _judging(
    recipe: Recipe, context: Context, answered: Mapping[str, Collection[str]] | None = None
) -> Iterator[tuple[Problems, RewardSession]]:
    """The problems of every split that is measured, and the reward, open; see `problems_of` for what is answered."""
    with sessions.opened(recipe.data, "data", recipe.data.open, context) as data:
        if not recipe.eval.splits:
            there = ", ".join(data.splits())
            raise InputError(f"eval.splits: names no split; eval.splits=[{there}] names all there is")
        answers = answered or {}
        problems = {split: problems_of(recipe, data, split, answers.get(split)) for split in recipe.eval.splits}
        if not any(problems.values()):
            raise InputError(f"eval.splits: there are no problems in {', '.join(problems)}")
        with sessions.opened(recipe.reward, "reward", recipe.reward.open, context) as reward:
            yield problems, reward


@contextmanager
def _sampling(recipe: Recipe, context: Context, policy: Policy, reward: RewardSession) -> Iterator[Sampler]:
    evaluation_engine = recipe.engine_of_its_own()
    place, engine_of = (
        ("rollout.engine", recipe.rollout.engine) if evaluation_engine is None else ("eval.engine", evaluation_engine)
    )
    with sessions.opened(engine_of, place, engine_of.open, context) as engine:
        yield Sampler.of(recipe, policy, engine, reward)


def _begun(
    kept: RunFolder,
    recipe: Recipe,
    vocabulary: str,
    prompted_problems: dict[str, list[PromptedProblem]],
    *,
    resume: bool,
) -> int:
    """How many responses are there already. Raises InputError where they are another evaluation's."""
    if not resume:
        kept.describe(recipe, vocabulary)
        return 0
    files = RunReader(kept.path)
    if not files.has_recipe:
        raise InputError(f"{kept.path}: is no evaluation: it has no recipe.yaml")
    if differing := changed(recipe, files, free=()):
        head = f"{kept.path}: was begun with other settings than these, or is no evaluation:"
        raise InputError("\n".join([head, *differing]))
    if files.manifest.get("vocabulary") != vocabulary:
        raise InputError(f"{kept.path}: its responses came from a file, or from a model with other tokens")
    keys = (
        (stream_of(s), prompted.problem.id, i)
        for s in prompted_problems
        for prompted, i in samples(recipe, prompted_problems[s])
    )
    return _kept(kept.path / "completions.jsonl", keys)


# Responses, as lines of completions.jsonl.


def _sampled(
    recipe: Recipe,
    sampler: Sampler,
    reward: RewardSession,
    prompted_problems: dict[str, list[PromptedProblem]],
    done: int,
    chunk: int,
    team: Ranks,
) -> Iterator[list[Line]]:
    """The chunks that aren't there yet, of all processes together."""
    share = {"step": STEP, "chunk": chunk, "rank": team.rank, "world": team.world}
    for split, its in prompted_problems.items():
        size = len(its) * recipe.eval.n
        skip, done = min(done, size), max(0, done - size)
        for responses in sample(recipe, sampler, its, split, skip=skip, **share):
            yield team.all_gather(_with_answers([_line(split, response) for response in responses], reward))


def _line(split: str, trajectory: Trajectory) -> Line:
    return completion(stream_of(split), STEP, trajectory)


def _rescored(recipe: Recipe, reward: RewardSession, completions: Iterator[Given], chunk: int) -> Iterator[list[Line]]:
    while piece := list(islice(completions, chunk)):
        scores = reward.score([(problem, _response(line)) for problem, line in piece])
        zeroed = [recipe.rollout.truncated == "zero_reward" and line["truncated"] for _, line in piece]
        rewards = [0.0 if zero else score for zero, score in zip(zeroed, scores, strict=True)]
        lines = [line | {"reward": reward} for (_, line), reward in zip(piece, rewards, strict=True)]
        yield _with_answers(lines, reward)


def _with_answers(lines: list[Line], reward: RewardSession) -> list[Line]:
    answers = answers_in(reward, [_response(line) for line in lines])
    if answers is None:
        return lines
    return [line | {"answer": answer} for line, answer in zip(lines, answers, strict=True)]


def _response(line: Line) -> Response:
    return Response(str(line["text"]), str(line.get("opening", "")))


def _write(
    folder: Path, pieces: Iterator[list[Line]], done: int, total: int, show: Show, *, writes: bool = True
) -> None:
    if not writes:  # it takes part in every piece
        deque(pieces, maxlen=0)
        return
    show(folder, done, total)
    with (folder / "completions.jsonl").open("a", encoding="utf-8") as file:
        for lines in pieces:
            file.write("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
            file.flush()
            done += len(lines)
            show(folder, done, total)


def _kept(file: Path, keys: Iterator[tuple[str, str, int]]) -> int:
    """How many responses are there already; a line that was cut off is taken away. Raises InputError for others."""
    count, size = 0, 0
    if not file.exists():
        return 0
    with file.open("rb") as lines:
        for line in lines:
            if not line.endswith(b"\n"):
                break
            record = _line_of(file, count + 1, line)
            if (record.get("stream"), record.get("problem"), record.get("sample")) != next(keys, None):
                raise InputError(f"{file}:{count + 1}: isn't the expected next line: have the problems changed?")
            count, size = count + 1, size + len(line)
    os.truncate(file, size)
    return count


def _line_of(file: Path, number: int, line: bytes) -> Line:
    with suppress(ValueError):
        record = parse_json(line)
        if isinstance(record, dict):
            return record
    raise InputError(f"{file}:{number}: is no line of completions: not a JSON object")


# Counting.


def _tally(kept: RunFolder, recipe: Recipe, problems: Problems, reward: RewardSession, origin: Line) -> Evaluation:
    records = _records(kept.path / "completions.jsonl", problems)
    problem_of = {(split, problem.id): problem for split in problems for problem in problems[split]}
    for record in records:
        if record.answers is not None:
            record.answers = merged(reward, problem_of[record.split, record.id], record.answers)
    lines = [json.dumps(record.line(), ensure_ascii=False) + "\n" for record in records]
    (kept.path / "problems.jsonl").write_text("".join(lines), encoding="utf-8")
    grouped = places(records)
    seed, pass_at = recipe.train.seed, recipe.eval.pass_at
    scores = {
        place: {name: bootstrap(values, seed) for name, values in columns(its, pass_at).items()}
        for place, its in grouped.items()
    }
    counts = {place: len(its) for place, its in grouped.items()}
    kept.summary(_summary(recipe, origin, scores, counts))
    return Evaluation(kept.path, scores, counts, answered=all(problem.answers is not None for problem in records))


def _records(file: Path, problems: Problems) -> list[Record]:
    """The records of every problem, in the data's order; only what is counted is held, one line at a time."""
    records = {
        (split, problem.id): Record(split, problem.id, problem.band)
        for split in problems
        for problem in problems[split]
    }
    with file.open(encoding="utf-8") as lines:
        for line in map(parse_json, lines):
            length = len(line["tokens"]) if "tokens" in line else None
            answer = [line["answer"]] if "answer" in line else []
            record = records[line["stream"].removeprefix(stream_of("")), line["problem"]]
            record.add(line["reward"], line["truncated"], length, *answer)
    return list(records.values())


def _summary(
    recipe: Recipe, origin: Line, scores: dict[str, dict[str, Estimate]], counts: dict[str, int]
) -> dict[str, Any]:
    interval = {"level": LEVEL, "resamples": RESAMPLES, "over": "problems"}
    return {
        "name": recipe.name,
        **origin,
        "seed": recipe.train.seed,
        "pass_at": list(recipe.eval.pass_at),
        "interval": {"method": "percentile bootstrap", **interval},
        "scores": {
            place: {"problems": counts[place]} | {name: asdict(estimate) for name, estimate in its.items()}
            for place, its in scores.items()
        },
    }
