"""Hostile inputs: the documented exit code, the reason and its place, no traceback, no hang; and nothing is executed.

The cases are made by `hostile_recipes`, `hostile_files` and `hostile_runs`, always alike. Each is sound but for one
thing, and that thing must be named: without what refuses it a case would pass, or be refused for something else.
"""

from __future__ import annotations

import itertools
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support import hostile_files, hostile_recipes, hostile_runs, tiny
from support.good_recipe import GOOD
from support.hostile_case import Case, check, said_by
from support.processes import command
from support.tiers import spread

import upge
from upge.runs.folder import masked

Make = Callable[[Path], Case]

FAMILIES: dict[str, Iterator[tuple[str, Make]]] = {
    "recipe": hostile_recipes.recipes(),
    "data": hostile_files.data(),
    "completions": hostile_files.completions(),
    "path": hostile_files.odd_paths(),
    "format": hostile_files.formats(),
    "model": hostile_files.models(),
    "run": hostile_runs.runs(),
}
NAMED = [(f"{family}: {name!a}", make) for family, cases in FAMILIES.items() for name, make in cases]
CASES = dict(NAMED)
NEEDED = {"format: 'gguf ": "gguf", 'model: "an adapter': "peft", "model: 'an adapter": "peft"}
"""How the cases begin that get as far as an optional package."""


def marked(name: str) -> Any:
    """A case, with what it needs."""
    needed = [module for beginning, module in NEEDED.items() if name.startswith(beginning)]
    return pytest.param(name, marks=[pytest.mark.needs(*needed)] if needed else [])


def kind(name: str) -> tuple[str, str, bool]:
    """What is wrong in a case, wherever it is: the default tier tries it in one place."""
    family, _, rest = name.partition(": ")
    what = re.split(r" (?:at|for|in) |, as ", re.sub(r", line \d+", "", rest))[0]
    if family == "run":  # each loads a run: of the texts in place of a file or of a number one is tried
        what = " ".join(
            word for word in what.strip("\"'").split()[:2] if re.fullmatch(r"[\w./-]*[a-z]{2}[\w./-]*|a", word)
        )
    return family, re.sub(r"\d+", "", what), "by accident" in rest


SAMPLE = (
    "recipe: 'account at about: a recipe without faults'",
    "data: 'data, line 5: {'",
    "path: 'endless for jsonl'",
    "format: 'parquet of a mark and noise 1'",
    "model: 'a pickle alone, as model'",
    "run: 'model/model.safetensors a pickle'",
    "run: 'a link for metrics.jsonl'",
)
"""Those that a process of its own has to refuse as well: a case of each kind."""


@pytest.mark.parametrize("name", spread(map(marked, CASES), kind))
def test_a_hostile_input_is_refused_for_what_is_wrong_with_it(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    case = CASES[name](tmp_path)
    before = contents(tmp_path / "victim")
    check(case)
    assert not (tmp_path / "CANARY").exists()
    assert contents(tmp_path / "victim") == before


@pytest.mark.parametrize("name", SAMPLE)
def test_a_process_of_its_own_refuses_it_too(name: str, tmp_path: Path) -> None:
    case = CASES[name](tmp_path)
    done = command(*case.words, folder=tmp_path)
    assert done.returncode == case.code, done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "CANARY").exists()


def test_there_are_more_than_five_hundred() -> None:
    assert len(CASES) > 500
    assert len(CASES) == len(NAMED), "each with a name of its own"


def contents(path: Path) -> dict[str, bytes]:
    """Every file at or below a path."""
    files = [path] if path.is_file() else sorted(each for each in path.rglob("*") if each.is_file())
    return {str(each): each.read_bytes() for each in files}


def test_what_the_hostile_recipes_are_made_of_is_a_good_one(tmp_path: Path) -> None:
    hostile_recipes.surroundings(tmp_path)
    path = tmp_path / "recipes" / "recipe.yaml"
    path.write_text(GOOD)
    check(Case(["validate", str(path)], "valid", code=0))


@pytest.mark.parametrize(
    "text", ["__import__('os').system('touch CANARY')", "${HOME}", "{{ 7 * 7 }}", "%s%n", "$(touch CANARY)", "`id`"]
)
def test_text_that_other_programs_would_run_stays_text(text: str, tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(GOOD.replace("a recipe without faults", f'"{text}"'))
    assert upge.load(path).about == text


def test_a_run_that_is_resumed_untouched_goes_on(tmp_path: Path) -> None:
    check(hostile_runs.going_on(lambda run: None, "resuming from the checkpoint of step 1", code=0)(tmp_path))


def test_code_beside_a_tokenizer_that_works_without_it_is_not_run(tmp_path: Path) -> None:
    good = tiny.recipe(tmp_path, train={"steps": 0}, eval={"splits": []})
    for name, content in hostile_files.lying(tmp_path / "CANARY")["tokenizer of code"][0].items():
        if content is not None:  # its tokenizer.json stays
            (tmp_path / "tokenizer" / name).write_text(content)
    code, said = said_by("run", str(good))
    assert not (tmp_path / "CANARY").exists()
    assert code in (0, 2), said


def test_data_that_is_cut_off_anywhere_is_refused_or_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Noise in the midst of a file of Parquet may hit what nobody reads; it never ends in a traceback."""
    monkeypatch.chdir(tmp_path)
    good, real = str(tiny.recipe(tmp_path, train={"steps": 0})), hostile_files.real_parquet()
    for share in range(5, 100, 10):
        at = len(real) * share // 100
        (tmp_path / "odd.parquet").write_bytes(
            real[:at] + bytes(255 - byte for byte in real[at : at + 8]) + real[at + 8 :]
        )
        words = ["run", good, "data={use: parquet, path: odd.parquet}", "eval.splits=[]"]
        code, said = said_by(*words)
        assert "Traceback" not in said
        assert code in (0, 2), said
        assert code == 0 or "odd.parquet" in said


# Secrets.


@pytest.mark.parametrize(
    ("word", "kept"),
    [
        ("http://me:secret@host/x", "http://***@host/x"),
        ("log.trackers.0.password=a\nb", "log.trackers.0.password=***"),
        ("x.api_key=abc", "x.api_key=***"),
        ("rollout.max_tokens=16", "rollout.max_tokens=16"),
    ],
)
def test_secrets_on_the_command_line_are_not_kept(word: str, kept: str) -> None:
    assert masked(word) == kept


VARIABLES = ("WANDB_API_KEY", "HF_TOKEN", "COMET_API_KEY", "MLFLOW_TRACKING_PASSWORD", "AWS_SECRET_ACCESS_KEY")


@pytest.mark.parametrize("trackers", ["[]", pytest.param("[tensorboard]", marks=pytest.mark.needs("tensorboard"))])
def test_secrets_of_the_environment_are_in_no_file_of_a_run(
    trackers: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable in VARIABLES:
        monkeypatch.setenv(variable, f"hunter2-{variable}")
    good = tiny.recipe(tmp_path, train={"steps": 1, "save_every": 1})
    words = ["run", str(good), f"log.trackers={trackers}"]
    monkeypatch.setattr(sys, "argv", ["upge", *words])
    code, said = said_by(*words)
    assert code == 0, said
    kept = contents(tmp_path / "run")
    assert {"recipe.yaml", "manifest.json", "completions.jsonl"} <= {Path(name).name for name in kept}
    assert [name for name, content in kept.items() if b"hunter2" in content] == []


def test_a_password_in_an_address_is_refused_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    good = str(tiny.recipe(tmp_path, train={"steps": 1}))
    for override in (
        "data.path=https://me:hunter2@host/x.jsonl",
        "about=ftp://me:hunter2@host",
        "name=x://a:hunter2@b",
    ):
        check(Case(["run", good, override], "a name or a password in an address"))
    assert not (tmp_path / "run").exists()
    assert list(itertools.chain(tmp_path.rglob("manifest.json"), tmp_path.rglob("recipe.yaml"))) == [Path(good)]
