"""What a person should know before the run: extras that are missing, numbers that don't divide, templates."""

from __future__ import annotations

import re
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, requires, version

from packaging.requirements import Requirement
from transformers import PreTrainedTokenizerBase

from upge import discovery
from upge.parts import Part
from upge.recipe import Recipe

_EXTRA = re.compile(r"upge\[([\w-]+)\]")


def notes(recipe: Recipe, tokenizer: PreTrainedTokenizerBase | None, processes: int, length: int) -> Iterator[str]:
    """One sentence each. Args: length: tokens of prompt and response together, at most."""
    yield from _missing(recipe)
    yield from _dividing(recipe, processes)
    yield from _templating(recipe, tokenizer)
    limit = getattr(recipe.rollout.engine, "max_model_len", None)
    if isinstance(limit, int) and limit < length:
        yield f"rollout.engine.max_model_len: {limit} tokens are fewer than prompt and response may have, {length}"
    if recipe.eval.splits and recipe.train.steps and not recipe.eval.every:
        yield f"eval.every: {', '.join(recipe.eval.splits)} measured before the first step and after the last alone"


def extras(recipe: Recipe) -> dict[str, str]:
    """The extras of upge that a recipe's parts and model need, each with the place that needs it."""
    found = {extra: place for place, part in recipe.parts().items() for extra in _extras_of(part)}
    lora, path = recipe.model.lora, recipe.model.path
    if lora is not None:
        found["peft" if lora.quantize is None else "qlora"] = "model.lora"
    if path is not None and path.endswith(".gguf"):
        found["gguf"] = "model.path"
    return found


def lacking(extra: str) -> list[str]:
    """The packages that an extra of upge asks for and that are not installed."""
    needed = [Requirement(text) for text in requires("upge") or ()]
    return [
        each.name
        for each in needed
        if each.marker is not None and each.marker.evaluate({"extra": extra}) and not _installed(each.name)
    ]


def _missing(recipe: Recipe) -> Iterator[str]:
    for extra, place in sorted(extras(recipe).items()):
        if packages := lacking(extra):
            yield f"{place}: {', '.join(packages)} not installed: pip install 'upge[{extra}]'"


def _extras_of(part: Part) -> set[str]:
    """An extra called as the part is, and those that its documentation names."""
    name = str(part.dump()["use"]).rpartition("/")[2]
    offered = [each for each in discovery.offers(part.slot) if each.name == name and each.package == "upge"]
    called = {name.replace("_", "-")} & _all_extras() if offered else set()
    return called | set(_EXTRA.findall(type(part).__doc__ or ""))


def _all_extras() -> set[str]:
    texts = [str(Requirement(text).marker) for text in requires("upge") or ()]
    return {extra for text in texts for extra in re.findall(r'extra == "([\w-]+)"', text)}


def _installed(package: str) -> bool:
    try:
        version(package)
    except PackageNotFoundError:
        return False
    return True


def _dividing(recipe: Recipe, processes: int) -> Iterator[str]:
    train = recipe.train
    if train.prompts % train.minibatches:
        yield f"train.minibatches: {train.prompts} prompts don't divide by {train.minibatches}; steps differ in size"
    if processes > 1 and train.prompts % (train.minibatches * processes):
        yield (
            f"train.prompts: {train.prompts} over {train.minibatches} minibatches don't divide by {processes} ranks; "
            "some wait for the others"
        )


def _templating(recipe: Recipe, tokenizer: PreTrainedTokenizerBase | None) -> Iterator[str]:
    if recipe.data.template is not None:
        return
    if tokenizer is None:
        yield "data.template: the tokenizer is not on this machine, so whether it has a chat template is not known"
    elif not tokenizer.chat_template:
        yield "data.template: none, and the tokenizer has no chat template; prompts are put as they are"
