"""Reports: what their pages say, that nothing of a run breaks out of them, and what is said of other folders."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from html.parser import HTMLParser
from math import isclose
from pathlib import Path
from typing import Any

import pytest
from support import tiny
from typer.testing import CliRunner, Result

import upge
from upge.cli.main import app
from upge.errors import InputError
from upge.report import responses
from upge.report.allocation import chosen
from upge.report.measurements import estimates, pass_at_k
from upge.report.write import logs_of, write
from upge.runs.curves import opened as opened_runs
from upge.runs.reader import RunReader
from upge.train.run import train

HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)>&\"'<!--"


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of the tiny recipe, measured three times."""
    folder = tmp_path_factory.mktemp("reported")
    return train(upge.load(tiny.recipe(folder), ["eval.every=2", "train.steps=4", "eval.n=4"]))


@pytest.fixture(scope="session")
def page(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write([run], tmp_path_factory.mktemp("pages") / "run.html")


def a_run(
    folder: Path, name: str = "made", *, rewards: Callable[[int, int], float] = lambda step, index: 0.0, **more: Any
) -> Path:
    """A run folder of three steps with two prompts of two rollouts, and a measurement of three problems after each."""
    folder.mkdir(parents=True)
    (folder / "manifest.json").write_text(json.dumps({"recipe": {"name": name}, "seed": 0, **more.get("manifest", {})}))
    (folder / "recipe.yaml").write_text(more.get("recipe", f"name: {json.dumps(name)}\n"))
    metrics, completions = [], []
    for step in range(3):
        metrics.append({"phase": "train", "step": step, "reward": step / 2, "length": 3.0})
        metrics.append({"phase": "eval", "step": step, "test/avg@2": 0.5, "test/pass@2": 1.0})
        for stream, problems in (("train", "ab"), ("eval/test", "xyz")):
            completions += [
                {"stream": stream, "step": step, "problem": problem, "sample": sample}
                | {"reward": rewards(step, index), "truncated": False, "text": more.get("text", "so"), "tokens": [1, 2]}
                for index, problem in enumerate(problems)
                for sample in range(2)
            ]
    for file, lines in (("metrics", metrics), ("completions", completions)):
        (folder / f"{file}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def call(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["report", *arguments])


class Reader(HTMLParser):
    """What a browser would make of a page: its scripts, the attributes of its elements, its text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.scripts: list[tuple[str | None, str]] = []
        self.attributes: list[tuple[str, str, str | None]] = []
        self.texts: list[str] = []
        self._within: str | None = None
        self._kind: str | None = None
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._within, self._kind = tag, dict(attrs).get("type")
        self.attributes += [(tag, name, value) for name, value in attrs]
        if tag == "script":
            self.scripts.append((self._kind, ""))

    def handle_endtag(self, tag: str) -> None:
        self._within = None

    def handle_data(self, data: str) -> None:
        if self._within == "script":
            kind, before = self.scripts[-1]
            self.scripts[-1] = (kind, before + data)
        else:
            self.texts.append(data)


# The page of a run.


def test_a_run_is_told_whole(run: Path, page: Path) -> None:
    read = Reader(page.read_text())
    text = "".join(read.texts)
    for said in (
        "tiny",
        "finished after step 4",
        "test avg@4",
        "By band",
        "pass@k on test",
        "Terms chosen",
        "group_norm",
    ):
        assert said in text, said
    assert "∇Jrl = Σt srl(q) · nt · maskt · (πθ/πref)t · Ât · ∇log πθ(t)" in text
    assert text.count("max_tokens: 4") == 1, "the recipe is there, once"
    charts = [json.loads(script) for kind, script in read.scripts if kind == "application/json"]
    curves = [each for each in charts if isinstance(each, dict)]
    assert len(curves) > 10
    assert all(series["points"] for each in curves for series in each["series"])
    rows = next(each for each in charts if isinstance(each, list))
    assert len(rows) == 4 * 8 * 6 + 3 * 6 * 4
    assert f"All {len(rows)} responses." in text


def test_a_page_needs_nothing_from_anywhere(page: Path) -> None:
    text = page.read_text()
    read = Reader(text)
    (policy,) = (
        value for tag, name, value in read.attributes if tag == "meta" and name == "content" and "default" in value
    )
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy.partition("style-src")[0]
    assert sum(kind is None for kind, _ in read.scripts) == 1
    assert not [each for each in read.attributes if each[1].startswith("on") or each[1] in ("src", "srcset", "action")]
    links = {value for _, name, value in read.attributes if name == "href"}
    assert all(value == "data:," or value.startswith("#") for value in links)
    anchors = {value for _, name, value in read.attributes if name == "id"}
    assert {value.removeprefix("#") for value in links if value.startswith("#")} <= anchors
    assert not re.search(r"@import|url\(", text)


def test_the_terms_are_those_that_were_chosen(run: Path) -> None:
    """Found again from the rewards, they have the shares that the run has logged."""
    opened = logs_of(opened_runs([run])[0])
    prompts = opened.responses.prompts
    labels = chosen(opened.loaded, prompts)
    assert set(labels) == {"rl", "sft"}
    for line in opened.training:
        of_step = [label for prompt, label in zip(prompts, labels, strict=True) if prompt.step == line["step"]]
        assert of_step.count("rl") / len(of_step) == line["share/rl"]


def test_intervals_surround_the_scores_that_were_logged(run: Path) -> None:
    opened = logs_of(opened_runs([run])[0])
    found = estimates(opened)
    assert {score for _, _, score in found} == {"avg@4", "pass@2"}
    for line in opened.measurements:
        for place in ("test", "test/even", "test/odd"):
            estimate = found[line["step"], place, "avg@4"]
            assert isclose(estimate.value, line[f"{place}/avg@4"])
            assert estimate.low <= estimate.value <= estimate.high


def test_pass_at_k_grows_with_k(run: Path) -> None:
    (chart,) = pass_at_k(logs_of(opened_runs([run])[0]))
    assert [series.label for series in chart.series] == ["before", "after step 4"]
    for series in chart.series:
        assert [point.x for point in series.points] == [1, 2, 4]
        assert [point.y for point in series.points] == sorted(point.y for point in series.points)


@pytest.mark.parametrize("place", ["name", "text", "recipe", "manifest", "problem"])
def test_nothing_of_a_run_breaks_out(place: str, tmp_path: Path) -> None:
    texts: dict[str, Any] = {"text": HOSTILE, "recipe": f"name: {json.dumps(HOSTILE)}\n# {HOSTILE}\n"}
    texts["manifest"] = {"command": ["run", HOSTILE], "packages": {HOSTILE: HOSTILE}, "parts": {HOSTILE: HOSTILE}}
    given = {place: texts[place]} if place in texts else {}
    folder = a_run(tmp_path / "run", HOSTILE if place == "name" else "made", **given)
    if place == "problem":
        lines = (
            (folder / "completions.jsonl").read_text().replace('"problem": "a"', f'"problem": {json.dumps(HOSTILE)}')
        )
        (folder / "completions.jsonl").write_text(lines)
    plain, hostile = Reader(write([a_run(tmp_path / "plain")]).read_text()), Reader(write([folder]).read_text())
    if place in ("name", "text", "problem"):
        assert len(hostile.scripts) == len(plain.scripts)
    assert sum(kind is None for kind, _ in hostile.scripts) == 1
    assert not [each for each in hostile.attributes if each[0] == "img" or each[1] == "onerror"]
    data = [json.loads(script) for kind, script in hostile.scripts if kind == "application/json"]
    told = "".join(hostile.texts) + "".join(str(row.get("text")) + row["problem"] for row in data[-1])
    assert HOSTILE in told, "it is shown as it is"
    assert "<script>alert" not in write([a_run(tmp_path / "other"), folder], tmp_path / "both.html").read_text()


def test_of_many_responses_some_are_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(responses, "MOST_CHARACTERS", 10)
    folder = a_run(tmp_path / "run", text="0123456789abc")
    read = responses.read(RunReader(folder))
    assert (read.shown().total, len(read.groups)) == (30, 15)
    everything = read.shown(most=30)
    assert (len(everything.rows), everything.cut) == (30, True)
    assert {row["text"] for row in everything.rows} == {"0123456789"}
    for most in (2, 7, 20):
        some = read.shown(most=most)
        assert most - 2 < len(some.rows) <= most
        places = {(row["stream"], row["step"], row["problem"]) for row in some.rows}
        assert len(some.rows) == 2 * len(places), "whole prompts"
    assert {row["step"] for row in read.shown(most=12).rows} == {0, 1, 2}, "spread over the run"


def test_a_run_in_progress_is_told_as_far_as_it_is(tmp_path: Path) -> None:
    folder = a_run(tmp_path / "run")
    with (folder / "completions.jsonl").open("a") as file:
        file.write('{"stream": "train", "st')
    assert "All 30 responses." in write([folder]).read_text()
    (folder / "completions.jsonl").unlink()
    (folder / "metrics.jsonl").write_text("")
    text = write([folder]).read_text()
    for said in ("No completions were kept", "Nothing was measured", "No step is done yet"):
        assert said in text


def test_a_recipe_that_cannot_be_loaded_is_no_reason_not_to_report(tmp_path: Path) -> None:
    text = write([a_run(tmp_path / "run", recipe="name: made\nestimator: {switch: nowhere}\n")]).read_text()
    assert "can&#39;t be loaded here" in text
    assert "Never changed" in text
    assert "nowhere" in text


def test_a_run_that_was_moved_is_the_same(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    moved = Path(shutil.copytree(run, tmp_path / "moved: [1"))
    monkeypatch.chdir(tmp_path)
    before, after = logs_of(opened_runs([run])[0]), logs_of(opened_runs([moved])[0])
    assert after.refused == ""
    assert before.loaded is not None
    assert after.loaded is not None
    assert after.loaded.estimator == before.loaded.estimator


def test_numbers_that_are_none_leave_gaps(tmp_path: Path) -> None:
    folder = a_run(tmp_path / "run")
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"phase": "train", "step": 3, "reward": NaN}\n{"phase": "train", "step": 4, "reward": Infinity}\n')
        file.write('{"phase": "train", "step": 5, "reward": 0.5}\n')
    text = write([folder]).read_text()
    data = [json.loads(script) for kind, script in Reader(text).scripts if kind == "application/json"]
    rewards = next(each for each in data if isinstance(each, dict) and len(each["series"][0]["points"]) == 4)
    assert [point[0] for point in rewards["series"][0]["points"]] == [0, 1, 2, 5]


def test_a_line_of_weights_that_is_none_is_told(run: Path, tmp_path: Path) -> None:
    folder = a_run(tmp_path / "run")
    good = (run / "credit.jsonl").read_text().splitlines()[0]
    (folder / "credit.jsonl").write_text(
        good + "\n" + good.replace('"weights": [', '"weights": [Infinity, ') + "\n{}\n"
    )
    with pytest.raises(InputError, match=r"credit\.jsonl:3: is no trajectory"):
        write([folder])
    (folder / "credit.jsonl").write_text(
        good + "\n" + good.replace('"weights": [', '"weights": [Infinity, ') + "\n{cut"
    )
    assert "Infinity" not in write([folder]).read_text()


def test_of_many_steps_some_have_their_weights_shown(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(responses.token_weights(RunReader(run))) == 4 * 2 * 4
    monkeypatch.setattr(responses, "MOST", 16)
    assert [line["step"] for line in responses.token_weights(RunReader(run))] == [0] * 8 + [2] * 8


# Several runs.


def test_runs_side_by_side(tmp_path: Path) -> None:
    """One solves x and y, the other y and z."""
    one = a_run(tmp_path / "one", "first", rewards=lambda step, index: float(index < 2))
    other = a_run(tmp_path / "other", "second <b>", rewards=lambda step, index: float(index > 0))
    read = Reader(write([one, other], tmp_path / "both.html").read_text())
    text = " ".join(" ".join(read.texts).split())
    assert "of 3 problems solved by it alone first 2 1 second <b> 2 1 all of them 1 none of them 0" in text
    assert "x first 2 of 2 0 of 2 z second <b> 0 of 2 2 of 2" in text
    assert {value for tag, name, value in read.attributes if name == "id"} >= {"runs", "measured", "solved", "training"}


def test_runs_without_problems_in_common_are_told_apart_still(tmp_path: Path) -> None:
    one, other = a_run(tmp_path / "one", "first"), a_run(tmp_path / "other", "second")
    (other / "completions.jsonl").unlink()
    text = write([one, other], tmp_path / "both.html").read_text()
    assert "no problems in common" in text
    assert "test/avg@2" in text


def test_several_seeds_are_drawn_as_means_with_intervals(tmp_path: Path) -> None:
    runs = [a_run(tmp_path / f"seed-{s}", recipe=f"name: made\ntrain: {{seed: {s}}}\n") for s in range(2)]
    (runs[1] / "metrics.jsonl").write_text((runs[1] / "metrics.jsonl").read_text().replace("0.5", "1.0"))
    result = CliRunner().invoke(app, ["compare", *map(str, runs), "--output", str(tmp_path / "both.html")])
    assert result.exit_code == 0, result.output
    read = Reader((tmp_path / "both.html").read_text())
    charts = [json.loads(script) for kind, script in read.scripts if kind == "application/json"]
    ends = [series["points"][0] for chart in charts for series in chart["series"]]
    assert [point[2] for point in ends if point[3] is not None and point[3] < point[2] < point[4]] == [0.75]


# The command.


def test_the_command_says_where_the_page_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    one, other = a_run(tmp_path / "one", "first"), a_run(tmp_path / "other", "second")
    for arguments, place in (
        ((str(one),), one / "report.html"),
        ((str(one), "--output", "here.html"), Path("here.html")),
        ((str(one), str(other)), Path("comparison.html")),
    ):
        result = call(*arguments)
        assert result.exit_code == 0, result.output
        assert result.stdout.strip() == str(place)
        assert place.read_text().startswith("<!doctype html>")


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    run = a_run(tmp_path / "run")
    evaluation = tmp_path / "evaluation"
    evaluation.mkdir()
    (evaluation / "problems.jsonl").write_text("")
    cases = [
        ([str(tmp_path)], "no run folder"),
        ([str(evaluation)], "upge compare"),
        ([str(run), "--output", str(tmp_path / "nowhere" / "page.html")], "can't be written"),
    ]
    for arguments, said in cases:
        result = call(*arguments)
        assert isinstance(result.exception, InputError)
        assert said in str(result.exception)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("not JSON", "can't be read"),
        ("[]", "no response"),
        ('{"stream": "train"}', "'step'"),
        ('{"stream": 1}', "'stream'"),
    ],
)
def test_a_malformed_response_is_told_with_its_line(line: str, said: str, tmp_path: Path) -> None:
    folder = a_run(tmp_path / "run")
    with (folder / "completions.jsonl").open("a") as file:
        file.write(line + "\n")
    with pytest.raises(InputError, match=rf"completions\.jsonl:31: .*{said}"):
        write([folder])
