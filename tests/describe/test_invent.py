"""The walk through docs/invent.md, as a reader does it: its commands and code, in its order."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import Site
from test_new_parts import install

PAGE = (Path(__file__).parents[2] / "docs" / "invent.md").read_text(encoding="utf-8")
BIN = Path(sys.executable).parent
SMALL = ["train.steps=1", "train.prompts=4", "eval.splits=[]"]
"""What a run is cut down to; everything else is as the page says."""


def commands(section: int) -> list[str]:
    """The commands of a numbered section, in order."""
    text = re.split(r"^## \d\. ", PAGE, flags=re.MULTILINE)[section]
    return re.findall(r"^\$ (.+)$", text, flags=re.MULTILINE)


def code() -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", PAGE, flags=re.MULTILINE | re.DOTALL)


def do(command: str, folder: Path, *, fails: bool = False) -> str:
    """A command as the page has it; runs are small, and pip is not asked."""
    words = shlex.split(command)
    if words[0] == "pip":
        package = folder / words[-1].removesuffix("[test]")
        install(Site(folder), package)
        return ""
    if words[:2] == ["upge", "run"]:
        words += SMALL
    environment = os.environ | {"PYTHONPATH": f"{folder}:{folder / 'upge-soft-clip'}", "OMP_NUM_THREADS": "1"}
    finished = subprocess.run(
        [str(BIN / words[0]), *words[1:]], capture_output=True, text=True, cwd=folder, env=environment, check=False
    )
    assert finished.returncode == int(fails), f"$ {command}\n{finished.stdout}{finished.stderr}"
    return finished.stdout + finished.stderr if fails else finished.stdout


@pytest.mark.heavy
def test_a_reader_gets_from_a_blank_file_to_a_package(tmp_path: Path) -> None:
    folder = tmp_path
    for command in commands(1):
        do(command, folder)

    part, bound = code()
    (folder / "soft_clip.py").write_text(part)
    before, after = re.search(r"replace `(mask: [^`]+)` by:\n\n    (mask: .+)\n", PAGE).groups()  # type: ignore[union-attr]
    recipe = folder / "soft.yaml"
    assert recipe.read_text().count(before) == 1
    recipe.write_text(recipe.read_text().replace(before, after))

    (check,) = commands(3)
    said = do(check, folder, fails=True)
    (block,) = re.findall(rf"^\$ {re.escape(check)}\n(.*?)^```", PAGE, flags=re.MULTILINE | re.DOTALL)
    printed = iter(said.splitlines())
    for line in block.splitlines():
        assert line == "…" or line in printed, f"upge check prints no such line, or not here: {line}"

    imported, _, field = bound.strip().partition("\n\n")
    mended = part.replace("    width: float = 0.2", f"    {field}").replace(
        "import torch\n", f"{imported}\nimport torch\n"
    )
    assert mended.count("gt=0") == 1
    (folder / "soft_clip.py").write_text(mended)
    assert "BROKEN" not in do(check, folder)

    for command in commands(4):
        said = do(command, folder)
    assert re.search(r"reward +soft .*\n +grpo ", said)
    assert (folder / "soft-and-grpo.html").is_file()
    kept = folder / "runs" / "soft" / "recipe.yaml"
    assert "code/soft_clip-" in kept.read_text()
    do(f"upge validate {kept} --allow-code", folder)

    outputs = {command: do(command, folder) for command in commands(5)}
    assert "soft_clip" in outputs["upge list mask"]
    assert " passed" in outputs["pytest upge-soft-clip"]
