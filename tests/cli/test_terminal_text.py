"""Hostile text in a terminal: names, scores and messages come out as what they say, and do nothing to it."""

from __future__ import annotations

import json
import re
import shutil
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import hostile_runs, tiny
from support.good_recipe import GOOD
from support.hostile_case import said_by

from upge.cli.app import reported
from upge.errors import InputError
from upge.files import shown

EVIL = "[red]\x1b[2J\x1b]0;x\x07[/nonsense]\u202e[link=file:///etc]\x9b1m"
SAID = r"[red]\x1b[2J\x1b]0;x\x07[/nonsense]\u202e[link=file:///etc]\x9b1m"
"""What is read of it."""
WRITTEN = json.dumps(EVIL)
"""As YAML and JSON write it."""


def harmless(said: str) -> bool:
    """Whether a terminal only shows a text, and a file can hold it."""
    return not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]", said)


def flat(said: str) -> str:
    """What is printed, without the breaks and blanks of a table."""
    return re.sub(r"\s+", "", said)


@given(st.text(alphabet=st.characters(codec=None), max_size=50) | st.text(alphabet="\x00\x1b\r\n\t\u202e\ud800ab"))
def test_what_is_shown_is_harmless_and_stays_so(text: str) -> None:
    once = shown(text)
    assert harmless(once)
    assert shown(once) == once
    assert all(unicodedata.category(each) not in ("Cc", "Cs") or each in "\n\t" for each in once)
    if harmless(text) and not re.search("[\u200e\u200f\u2028\u2029]", text):
        assert once == text


@pytest.mark.parametrize("text", ["é ü 漢字 🙂", "a\tb\nc", "نص", "x² ≤ π", "👩\u200d👧"])
def test_writing_of_all_kinds_stays_as_it_is(text: str) -> None:
    assert shown(text) == text


def test_an_error_s_message_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit), reported():
        raise InputError(EVIL)
    assert capsys.readouterr().err == SAID + "\n"


def test_a_recipe_s_text_is_shown_by_validate_and_explain(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    evil = '"\\e[2J[red]x[/nonsense]"'
    path.write_text(GOOD.replace("a recipe without faults", evil).replace('after: "="', f"after: {evil}"))
    for verb in ("validate", "explain"):
        code, said = said_by(verb, str(path))
        assert code == 0, said
        assert harmless(said)
    assert r"\x1b[2J[red]x[/nonsense]" in said_by("explain", str(path))[1]


def test_a_run_shows_its_recipe_s_and_its_data_s_words(tmp_path: Path) -> None:
    path = tiny.recipe(tmp_path, train={"steps": 1})
    whole = json.loads(path.read_text())
    whole["data"]["evaluation"] = {EVIL: whole["data"]["path"]}
    whole["eval"]["splits"], whole["about"] = [EVIL], EVIL
    path.write_text(json.dumps(whole))
    lines = [json.loads(line) | {"band": EVIL} for line in (tmp_path / "problems.jsonl").read_text().splitlines()]
    (tmp_path / "problems.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    code, said = said_by("run", str(path))
    assert code == 0, said
    assert harmless(said)
    assert f"tiny {SAID}" in said.replace("\n", "")
    assert f"{flat(SAID)}/{flat(SAID)}" in flat(said), "the split's and the band's, in the table at the end"


def test_comparing_shows_what_runs_are_called_and_measured_on(tmp_path: Path) -> None:
    folders = []
    for name in ("one", "other"):
        run = shutil.copytree(hostile_runs.stopped(), tmp_path / name)
        manifest = json.loads((run / "manifest.json").read_text())
        (run / "manifest.json").write_text(json.dumps(manifest | {"recipe": {"name": f"{EVIL}{name}"}}))
        metrics = [{"phase": "eval", "step": step, f"{EVIL}/avg@1": 0.5} for step in (0, 1)]
        (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in metrics))
        folders.append(str(run))
    code, said = said_by("compare", *folders)
    assert code == 0, said
    assert harmless(said)
    assert "[red]" in said
    code, said = said_by("report", *folders, "--output", str(tmp_path / "page.html"))
    assert code == 0, said
    assert harmless(said)


def test_comparing_evaluations_shows_the_names_of_splits_and_folders(tmp_path: Path) -> None:
    record = {"split": EVIL, "id": "p", "band": EVIL, "rewards": [1.0], "truncated": [False]}
    folders = [tmp_path / f"\x1b[31m[red]{name}" for name in ("one", "other")]
    for folder in folders:
        folder.mkdir()
        (folder / "summary.json").write_text('{"pass_at": [], "seed": 0}')
        (folder / "problems.jsonl").write_text(json.dumps(record) + "\n")
    code, said = said_by("compare", *map(str, folders))
    assert code == 0, said
    assert harmless(said)
    assert r"\x1b[31m[red]one" in said


def test_a_long_line_of_completions_is_read_and_scored(tmp_path: Path) -> None:
    good = str(tiny.recipe(tmp_path))
    texts = ["a" * 1_000_000, EVIL, "\r\n\x0b\u2028", "<script>", "\x00", "{{ 7 }}"]
    lines = [json.dumps({"problem": f"p{index}", "text": text}) for index, text in enumerate(texts)]
    (tmp_path / "completions.jsonl").write_text("\n".join(lines) + "\n")
    words = ["eval", "--recipe", good, "--completions", str(tmp_path / "completions.jsonl"), "eval.pass_at=[]"]
    code, said = said_by(*words, "--output", str(tmp_path / "evaluation"))
    assert code == 0, said
    assert harmless(said)
    kept = [
        json.loads(line)["text"]
        for line in (tmp_path / "evaluation" / "completions.jsonl").read_text().split("\n")[:-1]
    ]
    assert kept == texts, "and kept to the character"
