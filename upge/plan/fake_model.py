"""Models without memory: by a config alone, their shapes and types are real, their numbers are not there.

torch's fake tensors go through the code that a run goes through. What that code would hold at its peak is counted as
its tensors come and go, so no architecture needs a formula of its own.
"""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AutoConfig, AutoModelForTokenClassification, AutoTokenizer

from upge.errors import ModelError
from upge.files import parse_json
from upge.model import lora, text_scope
from upge.model.config import configure, override
from upge.model.critic import Critic
from upge.model.loading import explained, find
from upge.model.log_probs import log_probs
from upge.model.lora import adapt
from upge.model.recompute import check, recomputed

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

    from upge.recipe.schema import Lora, Model


DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float64": torch.float64,
}


@dataclass(frozen=True)
class Pass:
    """A forward and a backward pass.

    Attributes:
        rows: sequences at once. prompt, response: tokens of each.
        temperature: of the log-probs. entropy: whether entropies are wanted too.
        precision: of the forward pass. recompute: whether layers keep only their inputs.
    """

    rows: int
    prompt: int
    response: int
    temperature: float = 1.0
    entropy: bool = False
    precision: str = "float32"
    recompute: bool = False


@contextmanager
def imagined(
    config: PreTrainedConfig, dtype: str, attention: str | None, lora: Lora | None
) -> Iterator[PreTrainedModel]:
    """A policy without memory, as `load` would make it. Raises ModelError where peft is missing."""
    away = _away(config) if text_scope.composite(config) else ()
    with torch.device("meta"):
        model = _outline(config, dtype, attention)
        text_scope.freeze(model, away)
        if lora is not None:
            with explained("model.lora"):
                adapt(model, lora, base=None, seed=0, without=away)
    with FakeTensorMode():
        _leave_meta(model)
        yield model


def _outline(config: PreTrainedConfig, dtype: str, attention: str | None) -> PreTrainedModel:
    with explained("model"):
        outline: PreTrainedModel = text_scope.kind_of(config).from_config(config, **_arguments(dtype, attention))
    outline.eval()
    return outline


def _away(config: PreTrainedConfig) -> tuple[str, ...]:
    """The modules that text doesn't use; none if this can't be found with fake tensors."""
    with torch.device("meta"):
        model = _outline(copy.deepcopy(config), "float32", None)
    with FakeTensorMode():
        _leave_meta(model)
        try:
            return text_scope.unreached(model, _forward(model, "float32"))
        except ModelError:  # whatever its code does without numbers
            return ()


def _leave_meta(model: nn.Module) -> None:
    """Fake tensors on a CPU in place of those on the meta device, which knows neither autocast nor fused attention."""
    new: dict[int, Tensor] = {}
    for module in model.modules():
        owners: tuple[dict[str, Any], ...] = (module._parameters, module._buffers)
        for owned in owners:
            for name, tensor in owned.items():
                if tensor is not None:
                    if id(tensor) not in new:
                        empty = torch.empty(tensor.shape, dtype=tensor.dtype)
                        kept = isinstance(tensor, nn.Parameter)
                        new[id(tensor)] = nn.Parameter(empty, tensor.requires_grad) if kept else empty
                    owned[name] = new[id(tensor)]  # one for what is tied


def policy_peak(model: PreTrainedModel, work: Pass) -> int:
    """Bytes that a pass over the policy holds at most, beside its parameters and their gradients."""
    if work.rows > 1 and model.config._attn_implementation == "eager":  # which does keep them, so rows go one by one
        return work.rows * policy_peak(model, replace(work, rows=1))
    tokens = _tokens(work)
    if work.recompute:
        check(model)

    def loss() -> Tensor:
        with recomputed(model) if work.recompute else nullcontext():
            logp, entropy = log_probs(
                model,
                [tokens],
                torch.tensor([1.0]),  # small enough for its value to be there
                entropy=work.entropy,
                forward=_forward(model, work.precision, work.temperature),
            )
        return -logp.sum() if entropy is None else -logp.sum() - entropy.sum()

    return _peak(model, loss)


def critic_peak(config: PreTrainedConfig, dtype: str, attention: str | None, work: Pass) -> tuple[int, int]:
    """A critic's parameters, and the bytes that a pass over it holds at most beside them and their gradients."""
    critic_config = copy.deepcopy(config)
    critic_config.num_labels = 1
    with FakeTensorMode():
        model: PreTrainedModel = AutoModelForTokenClassification.from_config(
            critic_config, **_arguments(dtype, attention)
        ).eval()
        critic = Critic(model)
        peak = _peak(model, lambda: critic.values([_tokens(work)], forward=_forward(model, work.precision)).sum())
        return sum(parameter.numel() for parameter in model.parameters()), peak


def _tokens(work: Pass) -> tuple[list[int], list[int]]:
    """All rows as one: what is held is the same wherever attention keeps no weights."""
    return [0] * (work.rows * work.prompt), [0] * (work.rows * work.response)


def _forward(model: PreTrainedModel, precision: str, temperature: float = 1.0) -> Callable[..., Any]:
    def forward(**inputs: Any) -> Any:
        if "attention_mask" in inputs:
            # Whether padding masks anything depends on numbers, which aren't there, so transformers would write a
            # mask of L·L out. This one is a number in their place, and taken as it is.
            length = inputs["input_ids"].shape[1]
            inputs["attention_mask"] = torch.zeros((), dtype=model.dtype).expand(1, 1, length, length)
        with torch.autocast("cpu", DTYPES[precision], enabled=precision != "float32"):
            answer = model(**inputs)
        if precision != "float32":
            answer["logits"] = answer["logits"].float()
        if temperature != 1:  # here, since which row has which depends on numbers too
            answer["logits"] = answer["logits"].float() / torch.full((1, 1, 1), temperature)
        return answer

    return forward


def _peak(model: nn.Module, loss: Callable[[], Tensor]) -> int:
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in trained:
        parameter.grad = torch.zeros_like(parameter)  # as from the second micro-batch on
    settled = [
        *model.parameters(),
        *model.buffers(),
        *(parameter.grad for parameter in trained if parameter.grad is not None),
    ]
    with Held(settled) as held:
        loss().backward()
    peak: int = held.peak
    return peak


class Held(TorchDispatchMode):
    """Counts the bytes of tensors that are made and still held. Attributes: live, peak: bytes now, and at most."""

    def __init__(self, settled: Iterable[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.live: int = 0
        self.peak: int = 0
        self._settled = [tensor.untyped_storage() for tensor in settled]  # kept, so that their ids stay theirs
        self._known: dict[int, Any] = {id(tensor): None for tensor in self._settled}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, Tensor):
                self._hold(tensor.untyped_storage())
        return made

    def _hold(self, storage: torch.UntypedStorage) -> None:
        key, size = id(storage), storage.nbytes()
        if key in self._known:
            return

        def let_go(reference: object) -> None:
            del reference
            self._known.pop(key, None)
            self.live -= size

        self._known[key] = weakref.ref(storage, let_go)
        self.live += size
        self.peak = max(self.peak, self.live)


def _arguments(dtype: str, attention: str | None) -> dict[str, Any]:
    # Flash attention's kernels need a GPU even to be imagined; what sdpa holds is the same.
    kind = "sdpa" if attention == "flash_attention_2" else attention
    return {"dtype": DTYPES[dtype], "trust_remote_code": False} | (
        {} if kind is None else {"attn_implementation": kind}
    )


KNOWN = Path(__file__).parent / "known"
"""Configs of public models, one file each, as far as sizes depend on them: `owner--name.json` is `owner/name`."""


@dataclass(frozen=True)
class SourcedConfig:
    """A config, and where it came from in words."""

    config: PreTrainedConfig
    origin: str


def config_of(model: Model, file: Path | None = None) -> SourcedConfig:
    """The config of a recipe's model, its overrides applied.

    Args: given: a config.json to take in place of the model's own.

    Raises:
        ModelError: there is no config on this machine, or one that can't be read.
    """
    if file is not None:
        source = SourcedConfig(_read(file), f"{file}, as --config says")
    elif model.path is not None:
        source = config_at(model.path)
    else:
        return SourcedConfig(_random(model), "model.config")
    try:
        return SourcedConfig(override(source.config, model.overrides), source.origin)
    except ModelError:
        raise
    except Exception as error:  # whatever transformers finds wrong with a value
        raise ModelError(f"model.overrides: {' '.join(str(error).split())[:300]}") from error


def config_at(path: str, above: tuple[Path, ...] = ()) -> SourcedConfig:
    """The config of an existing model, by the forms that `model.path` takes; `above` are adapters on top of it.

    Raises ModelError.
    """
    place, file = find(path)
    folder = Path(place)
    if (folder / lora.CONFIG).is_file():
        if folder.resolve() in above:
            raise ModelError(f"{path}: an adapter whose base model is, in the end, itself")
        base = lora.base_of(folder)
        return SourcedConfig(
            config_at(base, (*above, folder.resolve())).config, f"{base}, the base of the adapter {path}"
        )
    try:
        config = AutoConfig.from_pretrained(place, local_files_only=True, trust_remote_code=False, **file)
    except Exception as error:  # many libraries meet here, each with errors of its own
        if folder.is_dir():
            raise ModelError(f"{path}: {' '.join(str(error).split())[:300]}") from error
    else:
        return SourcedConfig(config, path if folder.is_dir() else f"{path}, from the local cache")
    known = KNOWN / f"{path.replace('/', '--')}.json"
    if known.is_file():
        return SourcedConfig(_read(known), f"{path} (sizes built into upge; not in the local cache)")
    hint = "give a copy of its config.json with --config FILE"
    raise ModelError(f"{path}: not in the local cache, nor among the {len(names())} models upge knows; {hint}")


def names() -> list[str]:
    """The models whose sizes upge knows."""
    return sorted(path.stem.replace("--", "/") for path in KNOWN.glob("*.json"))


def tokenizer_of(model: Model) -> PreTrainedTokenizerBase | None:
    """The recipe's tokenizer, or None where it is not on this machine."""
    try:
        place, file = find(str(model.tokenizer or model.path), "tokenizer")
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            place, local_files_only=True, trust_remote_code=False, **file
        )
    except Exception:  # as above; a plan can do without
        return None
    return tokenizer if tokenizer.get_vocab() else None


def _random(model: Model) -> PreTrainedConfig:
    tokenizer = tokenizer_of(model)
    if tokenizer is None:
        raise ModelError(f"model.tokenizer: {model.tokenizer} is not on this machine, and the vocabulary is its own")
    try:
        return configure(model.config or {}, tokenizer)
    except ModelError:
        raise
    except Exception as error:  # whatever transformers finds wrong with a value
        raise ModelError(f"model.config: {' '.join(str(error).split())[:300]}") from error


def _read(path: Path) -> PreTrainedConfig:
    try:
        settings: dict[str, Any] = parse_json(path.read_text(encoding="utf-8"))
        kind = settings.pop("model_type")
        return AutoConfig.for_model(kind, **settings)
    except OSError as error:
        raise ModelError(f"--config: {path}: {error.strerror}") from error
    except Exception as error:  # JSON's, Python's, or what transformers finds wrong with a value
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise ModelError(f"--config: {path}: not a model's config.json ({reason})") from error
