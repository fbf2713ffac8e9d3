"""The base classes of parts: a frozen Pydantic model for each part, and the slots.

A part's fields are its YAML schema, its docstring is its documentation, and `__call__` is its formula. Nothing here
knows which parts exist: `upge.registry` finds them, upge's own by entry points like all others.
"""

from __future__ import annotations

import warnings
from abc import abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import (
    TYPE_CHECKING,
    Annotated,
    Any,
    ClassVar,
    Literal,
    TypeAlias,
    dataclass_transform,
)

from pydantic import (
    BaseModel,
    BeforeValidator,
    Field,
    PlainSerializer,
    SerializationInfo,
    ValidationInfo,
    ValidatorFunctionWrapHandler,
    WrapValidator,
)
from pydantic_core import InitErrorDetails, PydanticCustomError, ValidationError

from upge import registry
from upge.field_names import named_fields
from upge.part_checks import LATER, OF_THETA, Per, Scope, check_declarations, check_names
from upge.strict_model import StrictModel as StrictModel

if TYPE_CHECKING:
    from pydantic._internal._model_construction import ModelMetaclass
    from torch import Tensor

    from upge.estimator.view import View
    from upge.types import Context, DataSession, EngineSession, FieldSession, Problem, RewardSession
else:
    ModelMetaclass = type(BaseModel)

API = 2
"""The version of what a part owes and is given. A part that was written for an older one is right under this, too."""


LATER_NAMES = "|".join((*LATER, "initial", "advance"))


@dataclass_transform(kw_only_default=True, field_specifiers=(Field,))
class PartClass(ModelMetaclass):
    """Checks the names of a part's class before Pydantic does, which would explain its own rules."""

    def __new__(mcs, name: str, bases: tuple[type, ...], namespace: dict[str, Any], **kwargs: Any) -> Any:
        check_names(name, namespace, bases)
        with warnings.catch_warnings():
            # A parameter of a part of the first edition may have the name of a method that came later.
            warnings.filterwarnings("ignore", rf'Field name "({LATER_NAMES})" .* shadows an attribute', UserWarning)
            return super().__new__(mcs, name, bases, namespace, **kwargs)


@dataclass(frozen=True)
class LaterParameter:
    """Marks a parameter that a part got after its first version: `of: Annotated[str, LaterParameter()] = "reward"`.

    A recipe that is written out leaves it out at its default, so that a run's files keep the bytes that they had.
    """


class Part(StrictModel, metaclass=PartClass):
    """The base of every part. Subclass the base of a slot (`Mask`, `Advantage`, …), not this class.

    Class variables:
        needs: the machine's batch fields that `__call__` reads (`"logp"`, `"old_logp"`, `"reward"`, …). Reading another
            raises. A recipe's own fields are read by parameters that name them (`upge.FieldName`).
        trust_region: for masks: on-policy data is never masked, g(1) = 1.
        scope: the data that one call needs: a token, its trajectory, its prompt's group, or the whole optimizer step
            on all ranks. For a part that is computed once a rollout batch, the last is the whole rollout batch.
        packages: the optional modules that it imports, each with the argument of `pip install` that installs it:
            `{"math_verify": "upge[math]"}`. A run checks for them before it loads a model.
        api: the version of this contract that the part was written for (`api = 2`). An upge whose contract is older
            refuses the part with an error.
    """

    slot: ClassVar[str]
    api: ClassVar[int] = API
    needs: ClassVar[frozenset[str]] = frozenset()
    trust_region: ClassVar[bool] = False
    scope: ClassVar[Scope] = "token"
    packages: ClassVar[Mapping[str, str]] = {}

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        super().__pydantic_init_subclass__(**kwargs)
        check_declarations(cls)

    def reads(self) -> frozenset[str]:
        """The batch fields that this part reads with the parameters it has.

        They are `needs`, those that parameters name, and what the parts among the parameters read. A part whose other
        parameters add to them calls `super().reads()`.
        """
        named = (field.name for field in named_fields(self))
        return self.needs.union(named, *(part.reads() for part in self.within().values()))

    def dump(self) -> dict[str, Any]:
        """The YAML value that makes this part: `{"use": name, **parameters}`, its own parameters before its base's.

        A `LaterParameter` is left out at its default.
        """
        dumped = self.model_dump(exclude=_untouched(self))
        inherited = {field.alias or name for base in type(self).__bases__ for name, field in _fields_of(base).items()}
        return {
            "use": registry.name_of(type(self), self.slot),
            **{key: value for key, value in dumped.items() if key not in inherited},
            **{key: value for key, value in dumped.items() if key in inherited},
        }

    def within(self) -> dict[str, Part]:
        """The parts among this part's parameters, by their places below it: `"rewards.0"`, `"sources.lab"`, …"""
        return {place: part for name, value in self for place, part in _parts_in(value, name)}

    @classmethod
    def fields(cls) -> Mapping[str, Any]:
        """Field names and their Pydantic descriptions: the part's YAML keys beside `use`."""
        return {field.alias or name: field for name, field in cls.model_fields.items()}


def _parts_in(value: object, place: str) -> Iterator[tuple[str, Part]]:
    if isinstance(value, Part):
        yield place, value
        yield from ((f"{place}.{inner}", part) for inner, part in value.within().items())
    elif isinstance(value, Mapping):
        for key, element in value.items():
            yield from _parts_in(element, f"{place}.{key}")
    elif isinstance(value, tuple):
        for index, element in enumerate(value):
            yield from _parts_in(element, f"{place}.{index}")


def _untouched(part: Part) -> set[str]:
    """The parameters that a part got later, at their defaults."""
    later = {
        name: field
        for name, field in type(part).model_fields.items()
        if any(isinstance(mark, LaterParameter) for mark in field.metadata)
    }
    return {name for name, field in later.items() if getattr(part, name) == field.default}


def _fields_of(kind: type) -> Mapping[str, Any]:
    return kind.model_fields if issubclass(kind, BaseModel) else {}


State: TypeAlias = "dict[str, dict[str, Tensor]]"
"""What stateful parts carry from one rollout batch to the next: place in the estimator → named tensors."""


class Stateful(Part):
    """A part of the estimator. It may carry state from one rollout batch to the next: a dict of tensors, saved with the
    run, that `b.state` has in every method."""

    def initial(self) -> dict[str, Tensor]:
        """The state before the first rollout batch."""
        return {}

    def advance(self, b: View) -> dict[str, Tensor]:
        """The state after this rollout batch, made of `b.state` and of numbers over all ranks (`b.total`, …) only.

        It is called once a rollout batch, in credit: `b` has all of the batch, and `b.logp` is log π_old.
        """
        return dict(b.state)


class Factor(Stateful):
    """A part that is one factor of the equation: a number per token of the view, shape (T,), or one for all of them."""

    @abstractmethod
    def __call__(self, b: View) -> Tensor:
        """The factor for every token of the view, shape (T,) or (); always detached."""


class Mask(Factor):
    """The stability mask or weight of each token; reads `b.ratio` and `b.advantage`. Several masks are multiplied."""

    slot: ClassVar[str] = "mask"


class Denominator(Factor):
    """log π_ref of each token, nats: the policy that the importance ratio π_θ/π_ref divides by."""

    slot: ClassVar[str] = "denominator"


class Shaping(Factor):
    """Added to the reward at each token before the advantage; switches don't read it. Several add up."""

    slot: ClassVar[str] = "shaping"


class Reduction(Factor):
    """n_t: how the tokens of an optimizer step are averaged, over all its micro-batches and ranks."""

    slot: ClassVar[str] = "reduction"

    count: Literal["all", "active"] = "all"
    """The counted trajectories: all of the term, or only the active ones, whose coefficient is not 0."""

    def counted(self, b: View) -> Tensor:
        """(N,) 1.0 for each trajectory that counts, else 0.0."""
        return (b.rows if self.count == "all" else b.active).to(b.dtype)


class Advantage(Factor):
    """Â_t. Computed once a rollout batch, or at every θ (live) if it reads what depends on θ.

    Class variables:
        live: False for an advantage that reads `logp` or `entropy` and means those of π_old: once a rollout batch.
    """

    slot: ClassVar[str] = "advantage"
    live: ClassVar[bool] = True

    def returns(self, b: View) -> Tensor | None:
        """(T,) the critic's target before each token, in units of the reward; None for an advantage without a
        critic."""
        del b
        return None


def is_live(part: Advantage) -> bool:
    """Whether an advantage depends on θ, and is hence computed for every θ."""
    # A parameter that is called so is a parameter: parts of the first edition may have one.
    says = "live" in type(part).model_fields or part.live
    return says and bool(part.reads() & OF_THETA)


def carries_state(part: Part) -> bool:
    """Whether a part has a state, and an `advance` of its own that makes the next one."""
    own = isinstance(part, Stateful) and type(part).advance is not Stateful.advance
    return own and not {"initial", "advance"} & type(part).model_fields.keys()


class Switch(Stateful):
    """A coefficient for each prompt and term, computed once per rollout batch.

    It reads the unshaped reward. A term that no switch names has coefficient 1. The coefficients of several switches
    are multiplied.
    """

    slot: ClassVar[str] = "switch"

    @abstractmethod
    def terms(self) -> tuple[str, ...]:
        """The terms for which this switch computes coefficients."""

    def wants(self, step: int) -> frozenset[str]:
        """The terms that may get a coefficient other than 0 at this step; called before sampling."""
        del step
        return frozenset(self.terms())

    @abstractmethod
    def __call__(self, b: View) -> dict[str, Tensor]:
        """For each named term the coefficients (G,), one per prompt in the order of `b.to_trajectories`."""


class Selection(Stateful):
    """The tokens of a term that count: the others have weight 0, and neither lengths nor counts include them.

    It comes after the advantage. Advantages, denominators and masks see whole trajectories and groups. In a term's
    `mask` it is 0 or 1, and counts stay those of all tokens.
    """

    slot: ClassVar[str] = "selection"

    @abstractmethod
    def __call__(self, b: View) -> Tensor:
        """Bool, (T,) for each token or (N,) for each trajectory."""


class Weight(Stateful):
    """A factor for a whole term, made of its state: a controller, say. It is computed once a rollout batch."""

    slot: ClassVar[str] = "weight"

    @abstractmethod
    def __call__(self, b: View) -> Tensor:
        """The factor, shape (), the same on every rank."""


ESTIMATING = (Factor, Switch, Selection, Weight)
"""The bases of parts that compute numbers of a batch; the others open sessions."""


class Reward(Part):
    """Scores responses: `open` returns a session whose `score` maps (problem, response text) to a number."""

    slot: ClassVar[str] = "reward"

    def refusal(self, problem: Problem) -> str | None:
        """The reason why responses to a problem can't be scored, for example because it has no answer; else None.

        A run or an evaluation calls it for its problems before sampling.
        """
        del problem
        return None

    @abstractmethod
    def open(self, context: Context) -> AbstractContextManager[RewardSession]:
        """The reward, ready to score, for as long as the context lasts."""


class Data(Part):
    """The source of problems, and the form of their prompts."""

    slot: ClassVar[str] = "data"

    template: str | None = None
    """The form of a prompt, with `{prompt}` and `{system}`; by default the tokenizer's chat template."""
    system: str | None = None
    """The system prompt, for chat templates and for `{system}`."""

    @abstractmethod
    def open(self, context: Context) -> AbstractContextManager[DataSession]:
        """The data, ready to be taken from, for as long as the context lasts."""


class BatchField(Part):
    """Fills a field of the batch that a recipe names in its block `fields`: `open` returns a session whose `read` gives
    the numbers of trajectories.

    Parts read it by its name there: `b.field(name)`. A field that no part reads is not opened.

    Class variables:
        per: what it has a number for: `"token"`, `"trajectory"` or `"prompt"`.
    """

    slot: ClassVar[str] = "field"
    per: ClassVar[Per]

    @abstractmethod
    def open(self, context: Context) -> AbstractContextManager[FieldSession]:
        """The field, ready to be read, for as long as the context lasts."""

    def width(self) -> int | None:
        """K, where `read` gives (…, K) numbers; None where it gives one each."""
        return None


class Engine(Part):
    """Samples responses.

    Class variables:
        reports_logp: whether completions have the log-probs of their tokens (the batch field `rollout_logp`).
        samples_policy: whether responses are sampled from the policy's weights at the last `sync`, and not from older,
            less precise or other weights. Only then an evaluation measures the policy. False by default.
    """

    slot: ClassVar[str] = "engine"
    reports_logp: ClassVar[bool] = True
    samples_policy: ClassVar[bool] = False

    def measures(self, dtype: str) -> bool:
        """Whether an evaluation may use this engine, with its parameters, for a policy that computes in `dtype`."""
        del dtype
        return self.samples_policy

    @abstractmethod
    def open(self, context: Context) -> AbstractContextManager[EngineSession]:
        """The engine, ready to sample, for as long as the context lasts."""


SLOTS: dict[str, type[Part]] = {
    base.slot: base
    for base in (
        *(Mask, Denominator, Advantage, Switch, Reduction, Shaping, Selection, Weight),
        *(Reward, Data, Engine, BatchField),
    )
}
"""Slot name → base class; the entry-point group of a slot is `upge.<slot>`."""


def DefaultFrom(path: str, **constraints: Any) -> Any:
    """A parameter whose default is another value of the recipe: `L: int = DefaultFrom("rollout.max_tokens")`.

    The default is set when a recipe is resolved. Outside a recipe the parameter is required. `constraints` are those
    of Pydantic.
    """
    return Field(json_schema_extra={"follows": path}, **constraints)


Follows = DefaultFrom
"""The older name of `DefaultFrom`."""


class BuildContext:
    """The context in which parts are built from YAML values: it resolves names and `DefaultFrom` parameters.

    Attributes: folder: the folder of relative files. allow_code: whether parameters may name code (`upge.Code`).
    """

    folder = Path()
    allow_code = True

    def find(self, base: type[Part], use: str) -> type[Part]:
        """The class with the name `use` in the slot of `base`. Raises `UnknownPartError` if there is none."""
        return registry.find(base, use)

    def followed(self, path: str) -> Any:
        """The value at a dotted recipe path. Raises LookupError outside a recipe."""
        raise LookupError(path)


def build(base: type[Part], value: Any, workshop: BuildContext) -> Any:
    """A part from its YAML value: a name, or a map of `use` and parameters. Parts pass through."""
    if isinstance(value, (base, *ALSO.get(base, ()))):
        return value
    if isinstance(value, str):
        value = {"use": value}
    if not isinstance(value, Mapping):
        message = "should be the name of {slot}, or a map with 'use' and parameters"
        raise PydanticCustomError("part_type", message, {"slot": _one(base)})
    use = value.get("use")
    if use is None:
        raise _about_use(value, "missing")
    if not isinstance(use, str):
        raise _about_use(use, PydanticCustomError("part_use", "should be the name of {slot}", {"slot": _one(base)}))
    return _construct(base, use, {k: v for k, v in value.items() if k != "use"}, workshop)


def _one(base: type[Part]) -> str:
    """The slot's name with its article."""
    return {"data": "a data source"}.get(base.slot, f"{'an' if base.slot[0] in 'aeiou' else 'a'} {base.slot}")


def _about_use(value: Any, fault: str | PydanticCustomError) -> ValidationError:
    return ValidationError.from_exception_data("part", [InitErrorDetails(type=fault, loc=("use",), input=value)])


ALSO: dict[type[Part], tuple[type[Part], ...]] = {Mask: (Selection,)}
"""The slots whose parts may stand where a part of another slot is expected."""


def find(base: type[Part], use: str, workshop: BuildContext) -> type[Part]:
    """The class that `use` names where a part of the slot of `base` is expected; raises `UnknownPartError`."""
    try:
        return workshop.find(base, use)
    except registry.UnknownPartError:
        for other in ALSO.get(base, ()):
            with suppress(registry.UnknownPartError):
                return workshop.find(other, use)
        raise


def _construct(base: type[Part], use: str, parameters: dict[str, Any], workshop: BuildContext) -> Part:
    try:
        kind = find(base, use, workshop)
    except registry.UnknownPartError as unknown:
        fault = PydanticCustomError("part_unknown", "{message}", {"message": str(unknown), "hint": unknown.hint})
        raise _about_use(use, fault) from unknown
    for name, field in kind.fields().items():
        extra = field.json_schema_extra
        if name not in parameters and isinstance(extra, dict) and "follows" in extra:
            try:
                parameters[name] = workshop.followed(str(extra["follows"]))
            except LookupError:
                continue
    return kind.model_validate(parameters, context=workshop)


def _validate(base: type[Part]) -> Any:
    def validate(value: Any, info: ValidationInfo) -> Any:
        return build(base, value, info.context if isinstance(info.context, BuildContext) else BuildContext())

    return BeforeValidator(validate)


def _mask(value: Any, handler: ValidatorFunctionWrapHandler, info: ValidationInfo) -> Any:
    """A mask from its YAML value, or a selection, which may stand there too."""
    part = build(Mask, value, info.context if isinstance(info.context, BuildContext) else BuildContext())
    return part if isinstance(part, Selection) else handler(part)


def _engine(value: Any, info: ValidationInfo) -> Any:
    """An engine from its YAML value, where there is one."""
    return (
        None
        if value is None
        else build(Engine, value, info.context if isinstance(info.context, BuildContext) else BuildContext())
    )


def _as_tuple(value: Any) -> Any:
    if value is None:
        return ()
    return tuple(value) if isinstance(value, list | tuple) else (value,)


def _dump(part: Part, info: SerializationInfo) -> dict[str, Any]:
    del info
    return part.dump()


_serialize = PlainSerializer(_dump)
_serialize_maybe = PlainSerializer(lambda part: None if part is None else part.dump())

if TYPE_CHECKING:
    AMask: TypeAlias = Mask | Selection
else:
    AMask = Annotated[Mask, WrapValidator(_mask), _serialize]
ADenominator = Annotated[Denominator, _validate(Denominator), _serialize]
AnAdvantage = Annotated[Advantage, _validate(Advantage), _serialize]
"""An advantage as a field of a part: in YAML its name, or a map of `use` and its parameters."""
AReduction = Annotated[Reduction, _validate(Reduction), _serialize]
AShaping = Annotated[Shaping, _validate(Shaping), _serialize]
ASwitch = Annotated[Switch, _validate(Switch), _serialize]
ASelection = Annotated[Selection, _validate(Selection), _serialize]
AWeight = Annotated[Weight, _validate(Weight), _serialize]
ABatchField = Annotated[BatchField, _validate(BatchField), _serialize]
AReward = Annotated[Reward, _validate(Reward), _serialize]
"""A reward as a field of a part: in YAML its name, or a map of `use` and its parameters."""
SomeData = Annotated[Data, _validate(Data), _serialize]
"""A data source as a field of a part: in YAML its name, or a map of `use` and its parameters."""
AnEngine = Annotated[Engine, _validate(Engine), _serialize]
"""An engine as a field of a part: in YAML its name, or a map of `use` and its parameters."""
MaybeAnEngine = Annotated[Engine | None, BeforeValidator(_engine), _serialize_maybe]
Masks = Annotated[tuple[AMask, ...], BeforeValidator(_as_tuple)]
Selections = Annotated[tuple[ASelection, ...], BeforeValidator(_as_tuple)]
Switches = Annotated[tuple[ASwitch, ...], BeforeValidator(_as_tuple)]
Shapings = Annotated[tuple[AShaping, ...], BeforeValidator(_as_tuple)]
