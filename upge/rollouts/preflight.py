"""Faults that are found before anything is sampled: packages that lack, problems that don't fit or can't be scored."""

from __future__ import annotations

import importlib.util
import os
import sys
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from upge.errors import InputError, ModelError
from upge.estimator.part_errors import attribute_errors
from upge.model.lora import CONFIG
from upge.model_paths import named_models
from upge.recipe.schema import Recipe
from upge.rollouts.problems import problems_of
from upge.rollouts.sampler import Lack, PromptedProblem, Sampler
from upge.types import DataSession, Message, Problem

# Packages.


def require_packages(recipe: Recipe) -> None:
    """Raise InputError, with the commands that help, where packages are missing."""
    if sentences := missing_packages(recipe):
        raise InputError("\n".join(sentences))


def missing_packages(recipe: Recipe) -> list[str]:
    """A sentence for each package that is needed and can't be imported."""
    return [
        f"{place}: {module} is not installed: pip install '{requirement}'"
        for place, packages in _packages_of(recipe)
        for module, requirement in packages.items()
        if not _installed(module)
    ]


def _packages_of(recipe: Recipe) -> Iterator[tuple[str, Mapping[str, str]]]:
    """Modules and what `pip` calls them, by the place in the recipe that needs them."""
    lora = recipe.model.lora
    for place, path in _models(recipe).items():
        if path is not None and path.endswith(".gguf"):
            yield place, {"gguf": "upge[gguf]"}
        elif path is not None and _is_adapter(path):
            yield place, {"peft": "upge[peft]"}
    if lora is not None:
        yield "model.lora", {"peft": "upge[peft]"}
        if lora.quantize is not None:
            yield "model.lora.quantize", {"bitsandbytes": "upge[qlora]"}
    for place, part in recipe.parts().items():
        yield place, part.packages


def _models(recipe: Recipe) -> dict[str, str | None]:
    """Where models and tokenizers come from, by place."""
    models = {"model.path": recipe.model.path, "model.tokenizer": recipe.model.tokenizer}
    critic = None if recipe.critic is None else recipe.critic.path
    models |= {"reference.path": recipe.reference.path, "critic.path": critic}
    asked = {place: named_models(part) for place, part in recipe.parts().items()}
    return models | {f"{place}.{key}": path for place, named in asked.items() for key, path in named.items()}


def _is_adapter(path: str) -> bool:
    """Whether a folder, or a run's folder, holds a LoRA adapter."""
    # os.path and not pathlib, which raises for the home of an unknown user and for a name that is too long.
    folder = os.path.expanduser(path)  # noqa: PTH111
    return any(os.path.isfile(os.path.join(folder, inside, CONFIG)) for inside in ("", "model"))  # noqa: PTH113, PTH118


def _installed(module: str) -> bool:
    """Whether it can be imported, without doing so. A folder that merely has its name has no file to import."""
    if module in sys.modules:
        return True
    try:
        spec = importlib.util.find_spec(module)
    except ModuleNotFoundError:  # what a dotted name is within
        return False
    return spec is not None and spec.origin is not None


# Problems.


@dataclass(frozen=True)
class Report:
    """The number of checked training problems with each fault; 0 for checks that weren't made.

    Attributes:
        problems: looked at, each counted once.
        prompts_too_long: with a prompt that leaves less of the model's context than the completion budget.
        missing, too_long, wrong: without a demonstration; with one over the token budget, or over what the context
            leaves after its prompt; with one that the reward gives no more than 0, for want of an answer say.
        no_room: of those that are too long, how many only the context has no room for.
        repeated: with a demonstration that begins with what the prompt opens the response with; that is taken once.
        overlap: of each evaluation split, how many of the problems looked at have a prompt that is in it too.
    """

    problems: int
    prompts_too_long: int = 0
    missing: int = 0
    too_long: int = 0
    wrong: int = 0
    no_room: int = 0
    repeated: int = 0
    overlap: Mapping[str, int] | None = None

    def metrics(self) -> dict[str, int]:
        """The counts by their names in metrics.jsonl."""
        counts = {"data/problems": self.problems, "data/prompts/too_long": self.prompts_too_long}
        counts |= {f"data/demonstrations/{name}": getattr(self, name) for name in ("missing", "too_long", "wrong")}
        if self.repeated:  # few templates open a response
            counts["data/demonstrations/repeated"] = self.repeated
        return counts | {f"data/overlap/{split}": count for split, count in (self.overlap or {}).items()}

    def sentences(self) -> list[str]:
        """A sentence for each fault."""
        counts = [(count, f"training prompts are also in {split}") for split, count in (self.overlap or {}).items()]
        counts += [
            (self.prompts_too_long, "training prompts leave no room for a response in the model's context"),
            (self.missing, "training problems have no demonstration"),
            (self.too_long - self.no_room, "demonstrations are over the token budget, and are left out"),
            (self.no_room, "demonstrations have no room after their prompts in the model's context, and are left out"),
            (self.wrong, "demonstrations get no reward"),
        ]
        return self._counted(counts)

    def refuse(self) -> None:
        """Raise InputError where something is wrong."""
        if sentences := self.sentences():
            raise InputError("\n".join(["train.check refuses the data:", *sentences]))

    def notes(self) -> list[str]:
        """Notes for the user that aren't faults."""
        return self._counted(
            [(self.repeated, "demonstrations begin with what the prompt opens the response with; it is taken once")]
        )

    def _counted(self, counts: Sequence[tuple[int, str]]) -> list[str]:
        return [f"{count} of {self.problems} {what}" for count, what in counts if count]


def look(recipe: Recipe, data: DataSession, sampler: Sampler) -> Report:
    """The report on the first `train.check_problems` problems of a run. Raises InputError where one can't be scored."""
    train, steps = recipe.train, range(recipe.train.steps)
    problems = list(coming(data, train.steps, train.prompts, train.check_problems))
    refuse_unscorable(recipe, problems)
    return checked(
        problems,
        {split: data.split(split) for split in data.splits()},
        sampler,
        budget=recipe.rollout.max_tokens if any(map(recipe.estimator.wants_rollouts, steps)) else 0,
        demonstrations=any(map(recipe.estimator.wants_demonstrations, steps)),
    )


def refuse_unscorable(recipe: Recipe, problems: Iterable[Problem], most: int = 20) -> None:
    """Raise InputError with the problems whose responses the recipe's reward can't score, if there are any."""
    with attribute_errors(recipe.reward, "reward"):
        faults = [fault for problem in problems if (fault := recipe.reward.refusal(problem)) is not None]
    if faults:
        more = [f"… and {len(faults) - most} more"] if len(faults) > most else []
        raise InputError("\n".join([*faults[:most], *more]))


def coming(data: DataSession, steps: int, prompts: int, most: int) -> Iterator[Problem]:
    """The different problems among the first `most` that rollout batches of `prompts` problems take."""
    seen = set()
    for step in range(min(steps, -(-most // prompts))):
        for problem in data.take(step, prompts)[: most - step * prompts]:
            if problem.id not in seen:
                seen.add(problem.id)
                yield problem


def checked(
    problems: Sequence[Problem],
    evaluation: Mapping[str, Iterable[Problem]],
    sampler: Sampler,
    *,
    budget: int,
    demonstrations: bool,
) -> Report:
    """The report on some problems.

    Args:
        evaluation: the problems of each evaluation split. budget: the response tokens that must fit after a prompt.
        demonstrations: whether to look at these; each is scored once.
    """
    prompted_problems = [sampler.prompted(problem, place) for place, problem in enumerate(problems)]
    lacks = Counter(_lacks(sampler, prompted_problems) if demonstrations else ())
    prompts = Counter(normalised(problem.prompt) for problem in problems)
    held = {split: {normalised(problem.prompt) for problem in of_it} for split, of_it in evaluation.items()}
    return Report(
        len(problems),
        prompts_too_long=sum(not sampler.fits(prompted, budget) for prompted in prompted_problems),
        missing=lacks["missing"],
        too_long=lacks["too_long"] + lacks["no_room"],
        wrong=lacks["wrong"],
        no_room=lacks["no_room"],
        repeated=sum(prompted.repeated for prompted in prompted_problems) if demonstrations else 0,
        overlap={split: sum(prompts[prompt] for prompt in texts) for split, texts in held.items()},
    )


def normalised(prompt: str | Sequence[Message]) -> str:
    """A prompt's text as it is compared: case, white space and the forms of characters (NFKC) don't matter.

    Of a conversation, all turns but the system's.
    """
    turns = [prompt] if isinstance(prompt, str) else [turn["content"] for turn in prompt if turn["role"] != "system"]
    return " ".join(unicodedata.normalize("NFKC", " ".join(turns)).casefold().split())


def _lacks(sampler: Sampler, prompted_problems: Sequence[PromptedProblem]) -> Iterator[str]:
    """The faults of the problems' demonstrations."""
    for shown, lack in sampler.demonstrations(prompted_problems):
        if lack is not None:
            yield lack
        elif shown is not None and shown.reward <= 0:
            yield "wrong"


def refuse_untrainable(recipe: Recipe, data: DataSession, sampler: Sampler) -> None:
    """Raise ModelError where a problem to evaluate leaves no room, or nothing would be left to train on at first.

    That is: every prompt of the first rollout batch leaves no room for a response; or, where only demonstrations are
    trained on, none of the problems to come has one that can be taken.
    """
    for split in recipe.eval.splits:
        measured(recipe, split, problems_of(recipe, data, split), sampler)
    if recipe.train.steps and recipe.estimator.wants_rollouts(0):
        first = _first(recipe, data)
        long = _too_long(recipe, first, sampler)
        if first and len(long) == len(first):
            example = _wording(recipe, long[0], sampler)
            raise ModelError(f"data: no problem of the first rollout batch leaves room for a response: {example}")
    elif recipe.train.steps and recipe.estimator.wants_demonstrations(0):
        _check_demonstrations(recipe, data, sampler)


def measured(recipe: Recipe, split: str, problems: Sequence[Problem], sampler: Sampler) -> None:
    """Raise ModelError where a problem to evaluate leaves no room, InputError where its responses can't be scored."""
    refuse_unscorable(recipe, problems)
    if long := _too_long(recipe, problems, sampler):
        raise ModelError(f"eval.splits: {split}: {_wording(recipe, long[0], sampler)}")


def _check_demonstrations(recipe: Recipe, data: DataSession, sampler: Sampler) -> None:
    """Raise ModelError unless one of the problems that a run looks at before it starts has a demonstration to take."""
    train = recipe.train
    count, example = 0, ""
    for problem in coming(data, train.steps, train.prompts, max(train.prompts, train.check_problems)):
        prompted = sampler.prompted(problem, 0)
        response = sampler.response(prompted)
        lack = sampler.lack(prompted, response)
        if lack is None:
            return
        count += 1
        if not example and lack != "missing":
            example = _lacking(prompted, response, lack, sampler)
    if count:
        reason = example or "they have none; data.demonstration names their column"
        raise ModelError(
            f"data: none of the first {count} problems has a demonstration that can be trained on: {reason}"
        )


def _lacking(prompted: PromptedProblem, response: Sequence[int], lack: Lack, sampler: Sampler) -> str:
    head = f"problem {prompted.problem.id}: a demonstration of {len(response)} tokens"
    if lack == "too_long":
        budget = f"the budget of {sampler.demonstration_tokens}"
        return f"{head} is over {budget} (train.demonstration_tokens, by default rollout.max_tokens)"
    return f"{head} after a prompt of {len(prompted.prompt)} exceeds the model's context of {sampler.context}"


def _first(recipe: Recipe, data: DataSession) -> list[Problem]:
    """The problems of the first rollout batch, taken as the run will take them."""
    if recipe.rollout.refill is None:
        return data.take(0, recipe.train.prompts)
    return [data.take(position, 1)[0] for position in range(recipe.train.prompts)]


def _too_long(recipe: Recipe, problems: Sequence[Problem], sampler: Sampler) -> list[Problem]:
    budget = recipe.rollout.max_tokens
    return [problem for problem in problems if not sampler.fits(sampler.prompted(problem, 0), budget)]


def _wording(recipe: Recipe, problem: Problem, sampler: Sampler) -> str:
    length = len(sampler.prompted(problem, 0).prompt)
    return (
        f"problem {problem.id}: a prompt of {length} tokens and rollout.max_tokens {recipe.rollout.max_tokens} "
        f"exceed the model's context of {sampler.context}"
    )
