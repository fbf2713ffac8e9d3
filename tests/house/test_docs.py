"""What the documentation shows is run: Python blocks, recipes in YAML, links, and the README's commands."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

import upge
from upge.cli.main import app

ROOT = Path(__file__).parents[2]
VERBS = {command.name or command.callback.__name__ for command in app.registered_commands if command.callback}
VERBS |= {group.name for group in app.registered_groups if group.name}
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def blocks(language: str) -> list[tuple[str, str]]:
    """(page and line, code) of every block of a language."""
    found = []
    for page in PAGES:
        for match in re.finditer(rf"^```{language}\n(.*?)^```", page.read_text(), flags=re.MULTILINE | re.DOTALL):
            line = page.read_text()[: match.start()].count("\n") + 1
            found.append((f"{name_of(page)}:{line}", match[1]))
    return found


@pytest.mark.parametrize(("place", "code"), blocks("python"))
@pytest.mark.usefixtures("fresh_registry")
def test_python_blocks_run(place: str, code: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    exec(compile(code, place, "exec", dont_inherit=True), {})


@pytest.mark.parametrize(("place", "code"), blocks("yaml"))
def test_recipes_are_valid(place: str, code: str, tmp_path: Path) -> None:
    path = tmp_path / "shown.yaml"
    path.write_text(code)
    assert upge.load(path).estimator, place


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page: Path) -> None:
    prose = re.sub(r"^    .*$", "", page.read_text(), flags=re.MULTILINE)  # weights[term](step) in a formula is no link
    for target in re.findall(r"\]\(([^)#]+)", prose):
        if not target.startswith("http"):
            assert (page.parent / target).exists(), target


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub and the site make them."""
    headings = re.findall(r"^#+ (.+)$", re.sub(r"^```.*?^```", "", page.read_text(), flags=re.M | re.S), flags=re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_to_a_heading(page: Path) -> None:
    for target, anchor in re.findall(r"\]\(([^)#\s]*)#([^)\s]+)\)", page.read_text()):
        if not target.startswith("http"):
            assert anchor in anchors(page.parent / target if target else page), f"{target}#{anchor}"


def test_the_front_page_lists_every_page_once() -> None:
    front = ROOT / "docs" / "README.md"
    listed = re.findall(r"^- \[.+?\]\(([\w/]+\.md)\)", front.read_text(), flags=re.MULTILINE)
    there = {page.relative_to(front.parent).as_posix() for page in front.parent.rglob("*.md")} - {"README.md"}
    assert sorted(listed) == sorted(there), "docs/README.md is the site's navigation"


def test_shown_commands_are_real() -> None:
    shown = {command for page in PAGES for command in re.findall(r"`(upge [^`]+)`", page.read_text())}
    assert shown
    for command in shown:
        verb, *rest = shlex.split(command.replace("\n", " "))[1:]
        assert verb in VERBS, command
        recipes = [word for word in rest if word.startswith("recipes/")]
        if verb != "list" and recipes:
            overrides = [word for word in rest if re.match(r"[\w.]+=|--allow-code$", word)]
            assert CliRunner().invoke(app, ["validate", recipes[0], *overrides]).exit_code == 0, command


def test_the_readme_has_its_two_commands() -> None:
    commands = re.findall(r"^\$ (.+)$", (ROOT / "README.md").read_text(), flags=re.MULTILINE)
    assert len(commands) == 2
    assert commands[0].endswith("upge run recipes/hpt.yaml")
    assert commands[1].endswith("pytest -n auto")
    assert sys.version_info >= (3, 11)
