"""The config of a model without its weights and without a network."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import AutoConfig, AutoTokenizer

from upge.errors import ModelError
from upge.files import parse_json
from upge.model import lora
from upge.model.config import configure, override
from upge.model.loading import find

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedTokenizerBase

    from upge.recipe.schema import Model

KNOWN = Path(__file__).parent / "known"
"""Configs of public models, one file each, as far as sizes depend on them: `owner--name.json` is `owner/name`."""


@dataclass(frozen=True)
class Found:
    """A config, and where it came from in words."""

    config: PreTrainedConfig
    origin: str


def config_of(model: Model, given: Path | None = None) -> Found:
    """The config of a recipe's model, its overrides applied.

    Args: given: a config.json to take in place of the model's own.

    Raises:
        ModelError: there is no config on this machine, or one that can't be read.
    """
    if given is not None:
        found = Found(_read(given), f"{given}, as --config says")
    elif model.path is not None:
        found = config_at(model.path)
    else:
        return Found(_random(model), "model.config")
    try:
        return Found(override(found.config, model.overrides), found.origin)
    except ModelError:
        raise
    except Exception as error:  # whatever transformers finds wrong with a value
        raise ModelError(f"model.overrides: {' '.join(str(error).split())[:300]}") from error


def config_at(path: str, above: tuple[Path, ...] = ()) -> Found:
    """The config of an existing model, by the forms that `model.path` takes; `above` are adapters on top of it.

    Raises ModelError.
    """
    place, file = find(path)
    folder = Path(place)
    if (folder / lora.CONFIG).is_file():
        if folder.resolve() in above:
            raise ModelError(f"{path}: an adapter whose base model is, in the end, itself")
        base = lora.base_of(folder)
        return Found(config_at(base, (*above, folder.resolve())).config, f"{base}, the base of the adapter {path}")
    try:
        config = AutoConfig.from_pretrained(place, local_files_only=True, trust_remote_code=False, **file)
    except Exception as error:  # many libraries meet here, each with errors of its own
        if folder.is_dir():
            raise ModelError(f"{path}: {' '.join(str(error).split())[:300]}") from error
    else:
        return Found(config, path if folder.is_dir() else f"{path}, from the local cache")
    known = KNOWN / f"{path.replace('/', '--')}.json"
    if known.is_file():
        return Found(_read(known), f"{path} (sizes built into upge; not in the local cache)")
    wanted = "give a copy of its config.json with --config FILE"
    raise ModelError(f"{path}: not in the local cache, nor among the {len(names())} models upge knows; {wanted}")


def names() -> list[str]:
    """The models whose sizes upge knows."""
    return sorted(path.stem.replace("--", "/") for path in KNOWN.glob("*.json"))


def tokenizer_of(model: Model) -> PreTrainedTokenizerBase | None:
    """The recipe's tokenizer, or None where it is not on this machine."""
    try:
        place, file = find(str(model.tokenizer or model.path), "tokenizer")
        found: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            place, local_files_only=True, trust_remote_code=False, **file
        )
    except Exception:  # as above; a plan can do without
        return None
    return found if found.get_vocab() else None


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
