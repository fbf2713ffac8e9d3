"""The command, as a user types it: exit codes, what goes where, and what it costs to ask for help."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from support import tiny
from support.hostile_case import said_by
from support.processes import command, started
from support.tiers import spread

RECIPES = Path(__file__).parents[2] / "recipes"
UPGE = str(Path(sys.executable).parent / "upge")


def imported_by(*arguments: str) -> set[str]:
    """The top-level modules that a call of the command imports."""
    code = f"import sys; sys.argv = ['upge', *{arguments!r}]\nfrom upge.cli.main import main\n"
    code += "try:\n    main()\nexcept SystemExit:\n    pass\nprint('modules:', *sys.modules)"
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return {name.partition(".")[0] for name in finished.stdout.rpartition("modules:")[2].split()}


@pytest.mark.parametrize(
    "arguments",
    [("--help",), ("list",), ("list", "mask"), ("run", "--help"), ("eval", "--help"), ("--version",)],
)
def test_help_and_list_import_neither_torch_nor_transformers(arguments: tuple[str, ...]) -> None:
    modules = imported_by(*arguments)
    assert "upge" in modules
    assert not modules & {"torch", "transformers", "upge_parts"}


def test_validating_needs_no_more_than_torch() -> None:
    modules = imported_by("validate", "hpt")
    assert "torch" in modules
    assert not modules & {"transformers", "accelerate", "datasets", "rich"}


def test_list_shows_every_part_with_its_line() -> None:
    shown = command("list").stdout
    for name in ("clip", "group_norm", "success_rate", "constant", "transformers", "lab", "exact"):
        assert name in shown
    assert "PPO's clip" in shown


def test_list_of_no_slot() -> None:
    finished = command("list", "masks")
    assert (finished.returncode, finished.stdout) == (2, "")
    assert "mask" in finished.stderr


@pytest.mark.parametrize("recipe", sorted(RECIPES.rglob("*.yaml")), ids=lambda path: path.stem)
def test_every_shipped_recipe_is_valid_and_a_screen_or_less(recipe: Path) -> None:
    text = recipe.read_text()
    assert len(text.splitlines()) <= 40
    if recipe.stem != "habit":  # the second lesson starts from the first one's run
        code, said = said_by("validate", str(recipe), "--allow-code")
        assert code == 0, said


@pytest.mark.parametrize("name", spread(["hpt", "sft", "reinforce", "grpo"], lambda _: "shipped"))
def test_a_shipped_recipe_is_explained_from_any_folder(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code, said = said_by("explain", name)
    assert code == 0, said
    assert "∇J" in said
    assert "∇log π_θ" in said


def test_a_process_of_its_own_does_so_too(tmp_path: Path) -> None:
    finished = command("explain", "hpt", folder=tmp_path)
    assert finished.returncode == 0, finished.stderr
    assert "∇J" in finished.stdout


def test_the_script_that_is_installed_is_the_command(tmp_path: Path) -> None:
    finished = subprocess.run([UPGE, "validate", "hpt"], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert (finished.returncode, finished.stderr) == (0, "")
    assert "hpt: valid" in finished.stdout


def test_wrong_input_exits_with_2_and_says_where(tmp_path: Path) -> None:
    path = tiny.recipe(tmp_path, train={"stps": 3})
    for verb in ("validate", "explain", "run"):
        finished = command(verb, str(path))
        assert finished.returncode == 2
        assert finished.stdout == ""
        assert f"{path}:1:" in finished.stderr
        assert "did you mean 'steps'?" in finished.stderr
        assert "Traceback" not in finished.stderr


@pytest.mark.parametrize(
    "override",
    ["model=nobody/nothing", "data.path=nowhere.jsonl", "model.tokenizer=./nowhere", "model.config.model_type=lama"],
)
def test_what_only_a_run_can_find_exits_with_2_too(
    override: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    code, said = said_by("run", *without(override, tmp_path))
    assert code == 2, said
    assert "Traceback" not in said
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_so_does_a_process_of_its_own(tmp_path: Path) -> None:
    finished = command("run", *without("data.path=nowhere.jsonl", tmp_path))
    assert finished.returncode == 2, finished.stderr
    assert "Traceback" not in finished.stderr
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def without(override: str, folder: Path) -> list[str]:
    """The tiny recipe with something that is nowhere."""
    extra = ["model.config=null"] if override.startswith("model=") else []
    return [str(tiny.recipe(folder)), override, *extra]


def test_a_run_that_is_interrupted_exits_with_130_and_keeps_its_lines(tmp_path: Path) -> None:
    path = tiny.recipe(tmp_path, train={"steps": 100000})
    with started("run", str(path)) as process:
        for line in process.stderr:
            if line.startswith("step 1/"):
                break
        process.send_signal(signal.SIGINT)
        assert process.wait() == 130
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert all(json.loads(line) for line in lines)


def test_progress_goes_to_stderr_and_the_summary_to_stdout(tmp_path: Path) -> None:
    finished = command("run", str(tiny.recipe(tmp_path)))
    assert finished.returncode == 0, finished.stderr
    assert "step 5/5" in finished.stderr
    assert "tokens/s" in finished.stderr
    assert "after 0" in finished.stdout
    assert "step 5/5" not in finished.stdout
