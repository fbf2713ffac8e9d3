"""The run folder: what a run leaves behind.

recipe.yaml        the recipe, resolved          manifest.json      versions, packages, hashes, the seed
metrics.jsonl      a line a step, no clocks      timings.jsonl      the clocks
completions.jsonl  every sampled response        model/             the trained model in the Hub's format
summary.json       before and after              checkpoints/       to resume from
report.html        what `upge report` shows      code/              files that the recipe's classes came from
status.json        how far it is, how it ended   credit.jsonl       what a few responses' tokens were weighed with
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import io
import json
import os
import platform
import re
import sys
from collections.abc import Container, Iterator, Mapping
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from upge.code import neighbours
from upge.files import refuse_links_out
from upge.recipe.qualified_names import names_file
from upge.recipe.schema import Recipe
from upge.runs import atomic_files
from upge.types import Problem, Trajectory

LOGS = ("metrics.jsonl", "timings.jsonl", "completions.jsonl", "credit.jsonl")
PACKAGES = ("upge", "torch", "transformers", "accelerate", "tokenizers", "datasets", "peft", "pydantic", "safetensors")


class RunFolder:
    """A folder that one run owns. Only the main process writes (`writes`).

    Raises InputError where a link in it leads out: what is written would be written there.
    """

    def __init__(self, path: Path, *, writes: bool = True) -> None:
        self.path, self.writes = path, writes
        if writes:
            path.mkdir(parents=True, exist_ok=True)
            refuse_links_out(path)

    def describe(self, recipe: Recipe, vocabulary: str | None) -> None:
        """Write recipe.yaml and manifest.json; `vocabulary` fingerprints which token has which id."""
        text = self.resolved(recipe)
        manifest = {
            "recipe": {"name": recipe.name, "sha256": hashlib.sha256(text.encode()).hexdigest()},
            "seed": recipe.train.seed,
            "vocabulary": vocabulary,
            "python": platform.python_version(),
            "platform": platform.platform(),
            "packages": {name: _version(name) for name in PACKAGES},
            "parts": _parts(recipe),
            "command": [masked(word) for word in sys.argv[1:]],
        }
        self._write("recipe.yaml", text)
        self._write("manifest.json", json.dumps(manifest, indent=2, ensure_ascii=False) + "\n")

    def resolved(self, recipe: Recipe) -> str:
        """The text of recipe.yaml; the files that its classes came from are copied beside it."""
        return to_yaml(self._with_own_code(recipe.model_dump(mode="json")))

    def _with_own_code(self, dumped: Any) -> Any:
        """The recipe with the classes that it names in files copied into the folder, `code/`, and named there."""
        if isinstance(dumped, dict):
            return {key: self._with_own_code(value) for key, value in dumped.items()}
        if isinstance(dumped, list):
            return [self._with_own_code(value) for value in dumped]
        if not isinstance(dumped, str) or not names_file(dumped):
            return dumped
        source, _, name = dumped.rpartition(":")
        data, beside = Path(source).read_bytes(), neighbours(Path(source))
        whole = b"".join([data, *(each.name.encode() + each.read_bytes() for each in beside)])
        stem, mark = Path(source).stem, f"-{hashlib.sha256(whole).hexdigest()[:16]}"
        kept = f"code/{stem.removesuffix(mark)}{mark}.py"  # the same name, when it is such a copy already
        if beside:  # which it finds by their own names
            kept = f"code/{stem}{mark}/{stem}.py"
        if self.writes:
            (self.path / kept).parent.mkdir(parents=True, exist_ok=True)
            (self.path / kept).write_bytes(data)
            for each in beside:
                (self.path / kept).with_name(each.name).write_bytes(each.read_bytes())
        return f"{kept}:{name}"

    def metrics(self, line: Mapping[str, Any]) -> None:
        """Append a line to metrics.jsonl."""
        self._append("metrics.jsonl", line)

    def timings(self, line: Mapping[str, Any]) -> None:
        """Append a line to timings.jsonl."""
        self._append("timings.jsonl", line)

    def completions(self, stream: str, step: int, trajectories: list[Trajectory], *, logp: bool) -> None:
        """Append sampled responses to completions.jsonl, from where the engine `recorded` replays them."""
        lines = (
            completion(stream, step, each) | ({"logp": each.rollout_logp} if logp else {}) for each in trajectories
        )
        self._append("completions.jsonl", *lines)

    def credit(self, lines: list[dict[str, Any]]) -> None:
        """Append to credit.jsonl what trajectories were weighed with, in the order of their prompts."""
        self._append("credit.jsonl", *sorted(lines, key=lambda line: line["group"]))

    def summary(self, summary: Mapping[str, Any]) -> None:
        """Write summary.json."""
        self._write("summary.json", json.dumps(summary, indent=2, ensure_ascii=False) + "\n")

    def logged_to(self) -> dict[str, int]:
        """How many bytes each log has by now; they are on the disk when this returns."""
        return {path.name: _synced(path) for path in self._logs()}

    def rewind(self, positions: Mapping[str, int]) -> None:
        """Forget what was logged after `logged_to` gave these positions, half a line of it perhaps."""
        for path in self._logs():
            os.truncate(path, positions.get(path.name, 0))

    def _logs(self) -> Iterator[Path]:
        """The logs that are there and are this process's to write."""
        return (self.path / name for name in LOGS if self.writes and (self.path / name).is_file())

    def _write(self, name: str, text: str) -> None:
        if self.writes:
            atomic_files.write(self.path / name, text)

    def _append(self, name: str, *lines: Mapping[str, Any]) -> None:
        if self.writes and lines:
            atomic_files.append(
                self.path / name, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
            )


def _synced(path: Path) -> int:
    atomic_files.sync(path)
    return path.stat().st_size


def free(wanted: Path, besides: Container[Path] = ()) -> Path:
    """The folder, or with the first number added that makes it one where nothing is yet, and none of `besides`."""
    candidate, number = wanted, 2
    while candidate in besides or (candidate.exists() and (not candidate.is_dir() or any(candidate.iterdir()))):
        candidate, number = wanted.with_name(f"{wanted.name}-{number}"), number + 1
    return candidate


def completion(stream: str, step: int, each: Trajectory) -> dict[str, Any]:
    """A sampled response as a line of completions.jsonl."""
    return {
        "stream": stream,
        "step": step,
        "problem": each.problem.id,
        **banded(each.problem),
        "sample": each.sample,
        "reward": each.reward,
        "truncated": each.truncated,
        "text": each.text,
        "tokens": each.response,
        **({"opening": each.opening} if each.opening else {}),
    }


def stream_of(split: str) -> str:
    """What keys a split's sampling noise, and names its completions."""
    return f"eval/{split}"


def banded(problem: Problem) -> dict[str, str]:
    """What a line of completions.jsonl says of the problem's band: nothing where it has none."""
    return {} if problem.band is None else {"band": problem.band}


def to_yaml(data: Any) -> str:
    """Plain data as YAML that reads back as the same data."""
    yaml, text = YAML(typ="safe", pure=True), io.StringIO()
    yaml.default_flow_style, yaml.width, yaml.sort_base_mapping_type_on_output = False, 120, False  # type: ignore[assignment]
    yaml.dump(data, text)
    return text.getvalue()


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _parts(recipe: Recipe) -> dict[str, str]:
    """Every part of the recipe: its place → class, and the hash of the file that defines it."""
    found = {}
    for place, part in recipe.parts().items():
        source = getattr(sys.modules[type(part).__module__], "__file__", None)
        digest = hashlib.sha256(Path(source).read_bytes()).hexdigest()[:16] if source else "?"
        found[place] = f"{type(part).__module__}:{type(part).__qualname__} {digest}"
    return found


def masked(word: str) -> str:
    """A word of the command line without the secrets that it names, or that an address in it holds."""
    word = re.sub(r"(?<=://)[^/@\s]+@", "***@", word)
    return re.sub(r"(?i)((?:^|[._-])(?:password|passwd|secret|token|api_?key)=).+", r"\1***", word, flags=re.DOTALL)
