"""What `.ci/run` promises: the README's commands as they stand there, and no failure that stays hidden."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from support.tiers import spread

ROOT = Path(__file__).parents[2]
CI = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
COMMANDS = re.findall(r"^\$ (.+)$", (ROOT / "README.md").read_text(encoding="utf-8"), re.MULTILINE)


STAGES = " ".join(re.findall(r"^printf '%s\\n' (.*?) +(?:\\\n +)?> ", CI, re.MULTILINE)).split()
"""What the lanes have to do."""


def functions(*names: str) -> str:
    """The text of functions of `.ci/run`."""
    texts = [re.search(rf"^{name}\(\) {{(?: [^\n]*|\n.*?\n)}}$", CI, re.MULTILINE | re.DOTALL) for name in names]
    return "\n".join(text[0] for text in texts if text)


def bash(script: str, folder: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """What a script does with the options of `.ci/run`, and folders of its own for its work and its stages."""
    (folder / "work" / "stages").mkdir(parents=True)
    whole = f"set -euo pipefail\nwork={folder}/work\n{script}"
    environment = os.environ | variables
    return subprocess.run(
        ["/usr/bin/env", "bash", "-c", whole], capture_output=True, text=True, check=False, cwd=ROOT, env=environment
    )


def test_the_readme_has_two_commands_and_each_is_a_stage() -> None:
    first, second = COMMANDS
    assert first.endswith("&& .venv/bin/upge run recipes/hpt.yaml")
    assert second.endswith("&& .venv/bin/pytest -n auto")
    assert "-e '.[test]'" in second
    assert STAGES.count("readme_run") == STAGES.count("readme_tests") == 1
    assert len(set(STAGES)) == len(STAGES)
    assert all(functions(name) for name in STAGES)


@pytest.mark.parametrize(("stage", "command"), [("readme_run", COMMANDS[0]), ("readme_tests", COMMANDS[1])])
def test_a_command_of_the_readme_is_run_literally_in_a_clean_clone(stage: str, command: str, tmp_path: Path) -> None:
    """What stands in for git leaves the README alone, and what stands in for the shell writes what it is given."""
    stand_ins = tmp_path / "bin"
    stand_ins.mkdir()
    told = tmp_path / "told"
    for name, does in {
        "git": 'printf "%s\\n" "$*" >> TOLD; mkdir "${@: -1}"; cp "${@: -2:1}/README.md" "${@: -1}"',
        "bash": 'printf "%s\\n" "$@" "$PWD" "$(ls -A)" "$HOME" "$(ls -A "$HOME")" "${UPGE_PROFILE-none}" >> TOLD',
    }.items():
        (stand_ins / name).write_text(f"#!/bin/bash\n{does.replace('TOLD', str(told))}\n")
        (stand_ins / name).chmod(0o755)
    script = f"PATH={stand_ins}:$PATH\n{functions('literally', stage)}\n{stage}"
    ended = bash(script, tmp_path, UPGE_PROFILE="ci", HOME=str(tmp_path))
    assert ended.returncode == 0, ended.stderr
    cloned, *run, where, there, home, in_home, profile = told.read_text().splitlines()
    assert cloned.endswith(f"clone --quiet . {where}")
    assert run == ["-c", command]
    assert there == "README.md", "nothing but the clone"
    assert Path(home).parent == Path(where).parent
    assert (in_home, profile) == ("", "none")


@pytest.mark.parametrize(
    ("fails", "closing"),
    [
        ("true", r"0 failed, 12 passed, 1 skipped, 0 errors in"),
        ("false", r"1 failed, 12 passed, 1 skipped, 0 errors in"),
    ],
)
def test_a_stage_that_fails_fails_the_whole_and_shows_its_log(fails: str, closing: str, tmp_path: Path) -> None:
    script = functions("stage", "taken", "lane", "close") + (
        "\none() { echo; echo '7 passed, 1 skipped in 3.10s'; }"
        f"\ntwo() {{ echo reason; {fails}; echo later > $work/later; }}"
        "\nthree() { echo '===== 5 passed, 2 warnings in 61.00s (0:01:01) ====='; }"
        "\nprintf '%s\\n' one two > $work/wide; echo three > $work/narrow"
        "\nlane $work/wide $work/narrow & lanes=$!\nlane $work/narrow $work/wide\nwait $lanes\nclose"
    )
    ended = bash(script, tmp_path)
    assert re.match(closing, ended.stdout.splitlines()[-1]), ended.stdout + ended.stderr
    assert (ended.returncode == 0) == (fails == "true") == (tmp_path / "work" / "later").exists()
    assert ("reason" in ended.stdout.splitlines()) == (fails == "false"), "the log of a stage that failed"


def test_a_lane_without_stages_takes_the_others_last(tmp_path: Path) -> None:
    script = functions("taken", "lane") + (
        "\nstage() { echo $1 >> $work/$LANE; while [ $1 = a ] && [ -s $work/narrow ]; do :; done; }"
        "\nprintf '%s\\n' a b c > $work/wide; printf '%s\\n' x y > $work/narrow"
        "\nLANE=of_wide lane $work/wide $work/narrow & lanes=$!"
        "\nLANE=of_narrow lane $work/narrow $work/wide\nwait $lanes"
    )
    ended = bash(script, tmp_path)
    assert ended.returncode == 0, ended.stderr
    wide, narrow = ((tmp_path / "work" / name).read_text().split() for name in ("of_wide", "of_narrow"))
    assert (wide[0], narrow[:2]) == ("a", ["x", "y"])
    assert sorted(wide + narrow) == ["a", "b", "c", "x", "y"], "each once"


def test_the_newest_python_comes_first(tmp_path: Path) -> None:
    ended = bash(functions("pythons") + "\npythons", tmp_path)
    tell = "import sys; print(*sys.version_info[:3])"
    said = [subprocess.run([each, "-c", tell], capture_output=True, text=True) for each in ended.stdout.splitlines()]
    versions = [tuple(map(int, each.stdout.split())) for each in said]
    assert versions == sorted(set(versions), reverse=True), "each once"
    assert versions[0] >= sys.version_info[:3]


def test_each_mark_that_the_default_tier_leaves_out_is_a_stages() -> None:
    """A test that neither tier runs would be forgotten."""
    addopts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["pytest"]["ini_options"]["addopts"]
    left_out = re.findall(r"not (\w+)", addopts)
    assert "heavy" in left_out
    groups = re.findall(r"\w+", re.findall(r"^groups='(.*)'", CI, re.MULTILINE)[0].replace(" or ", " "))
    selected = re.findall(r'-m (?:"\((.*)\) and not \(\$groups\)"|(\w+))', CI)
    chosen = {mark for pair in selected for mark in " ".join(pair).replace(" or ", " ").split()}
    assert set(left_out) <= chosen
    assert set(groups) == set(left_out) - {"heavy"}, "what the large stage leaves to those that are named"


def test_of_each_kind_the_default_tier_tries_the_first() -> None:
    skip = pytest.mark.skip
    found = spread([("a", 1), pytest.param("a", 2, id="second", marks=skip), ("b", 3)], lambda pair: pair[0])
    assert [param.values for param in found] == [("a", 1), ("a", 2), ("b", 3)]
    assert [[mark.name for mark in param.marks] for param in found] == [[], ["skip", "heavy"], []]
    assert found[1].id == "second"


@pytest.mark.heavy
def test_cpu_seconds_are_those_of_the_process_and_of_its_children(tmp_path: Path) -> None:
    for name in ("conftest.py", "support/cpu_seconds.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text((ROOT / "tests" / name).read_text())
    burn = "import time\nwhile time.process_time() < 0.7: pass"
    (tmp_path / "test_it.py").write_text(
        "import subprocess, sys, time\n\ndef test_sleeps(): time.sleep(0.7)\n\n"
        f"def test_waits(): subprocess.run([sys.executable, '-c', {burn!r}])\n"
    )
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--cpu-seconds", str(tmp_path)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    table = ended.stdout.partition("by test function")[2].partition("by case")[0]
    assert re.search(r" 0\.[789]\d +1 .*test_waits$", table, re.MULTILINE), ended.stdout
    assert "test_sleeps" not in table


def test_tests_ask_for_packages_by_their_mark_alone() -> None:
    """Another way to skip them would be seen neither by -m nor by --all-extras."""
    others = [path.name for path in sorted((ROOT / "tests").rglob("*.py")) if f"import{'orskip'}" in path.read_text()]
    assert others == []


@pytest.mark.parametrize(
    ("option", "code", "closing"),
    [
        ((), 0, "1 passed, 1 skipped in"),
        pytest.param(("--all-extras",), 1, "1 passed, 1 error in", marks=pytest.mark.heavy),
    ],
)
def test_a_missing_package_skips_a_test_or_fails_it(
    option: tuple[str, ...], code: int, closing: str, tmp_path: Path
) -> None:
    (tmp_path / "conftest.py").write_text((ROOT / "tests" / "conftest.py").read_text())
    (tmp_path / "test_it.py").write_text(
        "import pytest\n\n@pytest.mark.needs('torch')\ndef test_there(): pass\n\n"
        "@pytest.mark.needs('torch', 'no_such_package')\ndef test_not_there(): pass\n"
    )
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-rs",
        "-p",
        "no:cacheprovider",
        "-p",
        "no:warnings",
        str(tmp_path),
    ]
    ended = subprocess.run([*command, *option], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert ended.returncode == code, ended.stdout
    assert closing in ended.stdout
    assert "needs pip install 'upge[no_such_package]'" in ended.stdout
