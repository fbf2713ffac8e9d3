"""Opening a policy: from a folder, a run, the Hub, an installed package, a GGUF file, or random weights."""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from upge.policy.errors import ModelError
from upge.policy.policy import Policy

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float64": torch.float64}
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "spiece.model", "vocab.json", "vocab.txt", "tekken.json")


def load(
    path: str | None = None,
    *,
    tokenizer: str | None = None,
    config: dict[str, Any] | None = None,
    dtype: str = "float32",
    attention: str | None = None,
    seed: int = 0,
) -> Policy:
    """Open a policy.

    Args:
        path: a folder in the Hub's format, a run folder (its `model` is meant), a Hub id, `package:folder/inside` of an
            installed package, or a `.gguf` file. None: random weights, as `config` says.
        tokenizer: where the tokenizer is, in the same forms; by default it is the model's own.
        config: `model_type` and that architecture's arguments; vocabulary size and special ids are the tokenizer's.
        dtype: of the parameters: "float32", "bfloat16" or "float64".
        attention: transformers' attention implementation ("eager", "sdpa", …); None is transformers' own choice.
        seed: of random weights.

    Raises:
        ModelError: it can't be opened; the message is one line, with what was tried and what would be right.
    """
    if dtype not in _DTYPES:
        raise ModelError(f"model.dtype: {dtype!r} is none of {', '.join(_DTYPES)}")
    if (path is None) == (config is None):
        raise ModelError("model: give either a path (a folder or Hub id) or a config (to start from random weights)")
    if path is None and tokenizer is None:
        raise ModelError("model.tokenizer: random weights come without one; give a folder or Hub id that has one")
    arguments: dict[str, Any] = {"dtype": _DTYPES[dtype]}
    if attention is not None:
        arguments["attn_implementation"] = attention
    # The tokenizer first: it is small, and random weights depend on it.
    opened = _open_tokenizer(tokenizer) if tokenizer else _open_tokenizer(str(path), of="model")
    model = _open_model(path, arguments) if path is not None else _random(config or {}, opened, arguments, seed)
    return Policy(model, opened)


def _open_model(path: str, arguments: dict[str, Any]) -> PreTrainedModel:
    place, file = find(path)
    with explained(path):
        settings = arguments | file | (_unpacking() if file else {})
        opened: Any = AutoModelForCausalLM.from_pretrained(place, output_loading_info=True, **settings)
    model, report = opened
    if file:  # the weights are unpacked by now, and so they will be saved
        vars(model.config).pop("quantization_config", None)
    if report["missing_keys"]:
        some = ", ".join(sorted(report["missing_keys"])[:3])
        raise ModelError(f"{path}: it lacks weights of {type(model).__name__} ({some}); not a causal language model?")
    converted: PreTrainedModel = model.to(arguments["dtype"])
    return converted


def belonging(path: str, policy: Policy) -> None:
    """Raise ModelError unless the model at `path` has the policy's vocabulary, or brings none of its own to compare."""
    folder = Path(find(path)[0])
    if folder.is_dir() and not any((folder / name).exists() for name in _TOKENIZER_FILES):
        return
    vocabulary = _open_tokenizer(path, of="model").get_vocab()
    if vocabulary != policy.tokenizer.get_vocab():
        raise ModelError(f"{path}: its tokens have other ids than the policy's, so the two can't be compared")


def _unpacking() -> dict[str, Any]:
    """What has transformers unpack GGUF weights into ones that can be trained; older versions always do."""
    try:
        from transformers import GgufConfig
    except ImportError:
        return {}
    return {"quantization_config": GgufConfig(dequantize=True)}


def _open_tokenizer(path: str, of: str = "tokenizer") -> PreTrainedTokenizerBase:
    place, file = find(path, of)
    # Without files, transformers may answer with a tokenizer of the right class and an empty vocabulary.
    if Path(place).is_dir() and not file and not any((Path(place) / name).exists() for name in _TOKENIZER_FILES):
        raise ModelError(f"{path}: no tokenizer in this folder; set model.tokenizer to a folder or Hub id that has one")
    with explained(path):
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(place, **file)
    return tokenizer


def _random(
    config: dict[str, Any], tokenizer: PreTrainedTokenizerBase, arguments: dict[str, Any], seed: int
) -> PreTrainedModel:
    """A model with random weights: the same for the same seed, whatever was drawn before."""
    settings = _configure(config, tokenizer)
    with torch.random.fork_rng(devices=[]), explained("model.config"):
        torch.manual_seed(seed)
        # Drawn in float32 and then converted, so that another dtype starts from the same weights.
        drawn = AutoModelForCausalLM.from_config(settings, **(arguments | {"dtype": torch.float32}))
    model: PreTrainedModel = drawn.to(arguments["dtype"])
    return model


def _configure(config: dict[str, Any], tokenizer: PreTrainedTokenizerBase) -> PreTrainedConfig:
    given = dict(config)
    kind = given.pop("model_type", None)
    if not isinstance(kind, str):
        raise ModelError("model.config: say which architecture with model_type, for example 'llama'")
    size = max(tokenizer.get_vocab().values()) + 1
    given.setdefault("vocab_size", size)
    # A pad id would be an embedding row without gradient, so it is set only where the tokenizer has one of its own.
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        given.setdefault(name, getattr(tokenizer, name))
    with explained("model.config"):
        settings = AutoConfig.for_model(kind, **given)
    _check_arguments(config, settings)
    return settings


def _check_arguments(config: dict[str, Any], settings: PreTrainedConfig) -> None:
    """Transformers keeps any argument that it doesn't know, silently; a misspelt one must not pass."""
    known = {field.name for field in dataclasses.fields(settings)} | {"model_type"}
    known |= set(settings.attribute_map)
    for name in sorted(set(config) - known):
        near = difflib.get_close_matches(name, known, 1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise ModelError(f"model.config: {config['model_type']} has no argument {name!r}{hint}")


def find(path: str, of: str = "model") -> tuple[str, dict[str, str]]:
    """Where `path` leads: what transformers takes for a place, and the file to read there (GGUF) if it is one."""
    folder = _in_package(path) if re.match(r"\w[\w.]+:", path) else Path(path).expanduser()
    if folder.is_file():
        if folder.suffix != ".gguf":
            raise ModelError(f"{path}: a file; give the folder that it lies in, in the Hub's format, or a .gguf file")
        return str(folder.parent), {"gguf_file": folder.name}
    if (folder / "model" / "config.json").is_file():
        return str(folder / "model"), {}
    if folder.is_dir():
        _check_folder(path, folder, of)
        return str(folder), {}
    if not _HUB_ID.fullmatch(path) or ("/" in path and folder.parent.is_dir()):
        raise ModelError(f"{path}: no such folder{_nearest(folder)}")
    return path, {}


def _in_package(path: str) -> Path:
    package, _, inside = path.partition(":")
    try:
        folder = Path(str(resources.files(package).joinpath(inside)))
    except (ImportError, TypeError, ValueError) as error:
        raise ModelError(f"{path}: no package {package!r} is installed") from error
    if not folder.exists():
        raise ModelError(f"{path}: no such folder in the package{_nearest(folder)}")
    return folder


def _check_folder(path: str, folder: Path, of: str) -> None:
    if of != "model" or (folder / "config.json").is_file():
        return
    if files := sorted(folder.glob("*.gguf")):
        raise ModelError(f"{path}: holds GGUF; name the file itself, {files[0]}")
    if (folder / "adapter_config.json").is_file():
        raise ModelError(f"{path}: a PEFT adapter, not a whole model; merge it into its base model first")
    raise ModelError(f"{path}: no config.json in this folder; it takes a model in the Hub's format or a run folder")


def _nearest(folder: Path) -> str:
    siblings = [entry.name for entry in folder.parent.iterdir()] if folder.parent.is_dir() else []
    near = difflib.get_close_matches(folder.name, siblings, 1)
    return f"; did you mean {folder.parent / near[0]}?" if near else ""


@contextmanager
def explained(place: str) -> Iterator[None]:
    """Whatever transformers raises becomes one line that says what to do."""
    try:
        yield
    except Exception as error:  # many libraries meet here, each with errors of its own
        raise ModelError(f"{place}: {_reason(error)}") from error


def _reason(error: BaseException) -> str:
    causes = list(_causes(error))
    if any(isinstance(cause, GatedRepoError) for cause in causes):
        return "a gated model: accept its terms on the Hub, then log in with `hf auth login`"
    if any(isinstance(cause, RepositoryNotFoundError) for cause in causes):
        return "neither a folder here nor a model on the Hub (a private one needs `hf auth login`)"
    text = " ".join(str(error).split())
    if "couldn't connect" in text or "offline mode" in text:
        return "not a folder here, not in the local cache, and the Hub can't be reached: give a folder, or go online"
    return f"{type(error).__name__}: {text[:300]}"


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
