"""What a recipe from somewhere may not do, and what is said of parts from anywhere that go wrong."""

from __future__ import annotations

import json
import re
import subprocess
import warnings
from pathlib import Path
from typing import Any

import pytest
from conftest import Site
from support import tiny
from support.command import SOUND, call
from support.processes import command

import upge
from upge import PartError, RecipeError, registry
from upge.part import SLOTS
from upge.testing.batches import RICH
from upge.train.run import train


def faults(path: Path, *overrides: str, allow_code: bool = False) -> str:
    with pytest.raises(RecipeError) as raised:
        upge.load(path, overrides, allow_code=allow_code)
    return str(raised.value)


def written(folder: Path, text: str, name: str = "recipe.yaml") -> Path:
    path = folder / name
    path.write_text(text)
    return path


# Where a run may write.


@pytest.mark.parametrize("folder", ["/etc/upge-run", "../outside", "~/outside", "sub/../../outside"])
def test_a_recipe_cannot_send_its_run_outside(folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.chdir(home)
    path = written(home, f"extends: grpo.yaml\nname: evil\nlog: {{folder: {folder}}}\n")
    said = faults(path)
    assert f"{path}:3:15: the run folder" in said
    assert "leads out of the working folder" in said
    assert upge.load(path, [f"log.folder={folder}"]).log.folder == folder


def test_a_link_does_not_lead_a_run_outside_either(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "home" / "link").symlink_to(tmp_path / "elsewhere")
    monkeypatch.chdir(tmp_path / "home")
    path = written(tmp_path / "home", "extends: grpo.yaml\nname: evil\nlog: {folder: link/run}\n")
    assert "leads out" in faults(path)


@pytest.mark.parametrize("name", ["../evil", "a/b", "..", "/etc/x", ".hidden", "a\\nb"])
def test_a_run_s_name_is_no_path(name: str, tmp_path: Path) -> None:
    assert "name" in faults(written(tmp_path, f'extends: grpo.yaml\nname: "{name}"\n'))


# What may run.


def test_code_in_a_file_runs_only_with_leave_and_is_kept_with_the_run(tmp_path: Path) -> None:
    (tmp_path / "soft.py").write_text(SOUND)
    path = tiny.recipe(tmp_path, train={"steps": 1}, eval={"splits": []})
    text = path.read_text().replace('{"use": "clip", "low": 0.2, "high": 0.2}', '{"use": "soft.py:SoftClip"}')
    path.write_text(text)
    assert "allow it with --allow-code" in faults(path)
    assert "soft.py:SoftClip" in call("validate", str(path), "--allow-code").stdout
    folder = train(upge.load(path, allow_code=True))

    (tmp_path / "soft.py").write_text("raise SystemExit('the author went on working')")
    again = upge.load(folder / "recipe.yaml", allow_code=True)
    (kept,) = (folder / "code").iterdir()
    assert kept.read_text() == SOUND
    assert again.estimator.terms["rl"].mask[0].model_dump() == {"width": 0.2}
    manifest = json.loads((folder / "manifest.json").read_text())
    assert re.search(r":SoftClip [0-9a-f]{16}$", manifest["parts"]["estimator.terms.rl.mask.0"])
    assert "--allow-code" in faults(folder / "recipe.yaml")


def test_a_recipe_cannot_extend_what_is_not_its_own(tmp_path: Path) -> None:
    outside = written(tmp_path, "name: x\n", "outside.yaml")
    (tmp_path / "home").mkdir()
    path = written(tmp_path / "home", f"extends: {outside}\nname: evil\n")
    assert "leads out of the recipe's folder" in faults(path)


def test_validate_says_what_a_run_would_open_and_write(tmp_path: Path) -> None:
    text = call("validate", "ppo", "critic.path=some/critic", "reference=some/reference").stdout
    for line in ("model     upge_parts:data/lab/base", "critic    some/critic", "data      lab", "folder    runs/ppo"):
        assert line in text
    assert "some/reference" not in text  # nothing in this recipe reads it
    sum_of = "reward={use: weighted, rewards: [exact, 'mine.py:Mine'], weights: [1.0, 0.1]}"
    (tmp_path / "mine.py").write_text(REWARD)
    path = written(tmp_path, "extends: grpo.yaml\nname: x\nlog: {trackers: [tensorboard]}\n")
    within = call("validate", str(path), sum_of, "--allow-code").stdout
    assert f"code      {tmp_path / 'mine.py'}:Mine" in within
    assert "trackers  tensorboard" in within
    assert "random weights, llama" in call("validate", str(tiny.recipe(tmp_path))).stdout


def test_validate_says_which_fields_a_run_would_open(tmp_path: Path) -> None:
    text = """extends: grpo.yaml
name: taught
fields:
  teacher: {use: model_logp, path: org/teacher}
  other: {use: model_logp, path: org/other}
estimator:
  terms:
    rl: {advantage: {use: kl, estimator: k2, coefficient: 1.0, to: teacher}}
"""
    said = call("validate", str(written(tmp_path, text))).stdout
    assert "field     teacher: model_logp(path=org/teacher)" in said
    assert "org/other" not in said, "no part reads it"
    nowhere = written(tmp_path, text.replace("org/teacher", "./nowhere"))
    assert "4:36: there is no folder './nowhere'" in faults(nowhere)


# What has to be there.


def test_requirements_are_met_or_refused_at_their_place(tmp_path: Path) -> None:
    path = written(tmp_path, 'extends: grpo.yaml\nname: x\nrequires: [upge>=0.1, upge>=99, no-such-package, "?"]\n')
    said = faults(path)
    assert f"{path}:3:23: upge>=99 is required, and upge {upge.__version__} is installed" in said
    assert "no-such-package is not installed\n" in said
    assert "pip install 'no-such-package'" in said
    assert "should be a requirement like upge>=0.1, not '?'" in said
    assert said.endswith("3 problems")
    path.write_text("extends: grpo.yaml\nname: x\nrequires: upge>=0.1\n")
    assert upge.load(path).requires == ("upge>=0.1",)


def test_a_part_of_another_api_is_refused_and_the_others_go_on(site: Site) -> None:
    source = SOUND.replace("    trust_region = True", "    api = 99")
    site.install("plug-in", "[upge.mask]\nsoft_clip = soft:SoftClip\n", {"soft": source})
    with pytest.raises(
        registry.UnknownPartError, match="plug-in was written for version 99 of the part API; this is 2"
    ) as it:
        registry.find(SLOTS["mask"], "soft_clip")
    assert it.value.hint == "upgrade upge"
    assert registry.find(SLOTS["mask"], "clip").api == 2


# Parts that go wrong at run time.

REWARD = '''
import upge
from upge.testing.batches import RICH
from contextlib import contextmanager


class Session:
    def score(self, pairs):
        return SCORES


class Mine(upge.Reward):
    """Mine."""

    @contextmanager
    def open(self, context):
        OPENING
        yield Session()
'''


def rewarded(folder: Path) -> Path:
    """The tiny recipe with the reward of mine.py."""
    path = tiny.recipe(folder)
    path.write_text(json.dumps({**json.loads(path.read_text()), "reward": "mine.py:Mine"}))
    return path


def run(path: Path) -> subprocess.CompletedProcess[str]:
    return command("run", str(path), "--allow-code")


@pytest.mark.parametrize(
    ("scores", "opening", "said"),
    [
        ("[1.0]", "pass", r"returned 1 for \d+ responses; it should return a number for each"),
        ("None", "pass", "returned NoneType for"),
        ("[1e31 for _ in pairs]", "pass", "scored a response 1e\\+31; a score is a finite number, 1e\\+30 at most"),
        ("[float('nan') for _ in pairs]", "pass", "scored a response nan; a score is a finite number"),
        ("['good' for _ in pairs]", "pass", "scored a response 'good'"),
        ("[1 / 0 for _ in pairs]", "pass", r"raised ZeroDivisionError: division by zero \(.*mine\.py:\d+\)"),
        ("[1.0 for _ in pairs]", "raise KeyError('a key')", r"raised KeyError: 'a key' \(.*mine\.py:\d+\)"),
    ],
)
def test_a_reward_that_goes_wrong_is_named(scores: str, opening: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(REWARD.replace("SCORES", scores).replace("OPENING", opening))
    path = rewarded(tmp_path)
    with pytest.raises(PartError, match=rf"Mine \(reward\) {said}"):
        train(upge.load(path, allow_code=True))


def test_a_mask_that_raises_is_named_with_package_and_recipe_line(site: Site, tmp_path: Path) -> None:
    source = SOUND.replace("return torch.exp(", "return 1 / 0 * torch.exp(")
    site.install("plug-in", "[upge.mask]\nsoft_clip = soft:SoftClip\n", {"soft": source})
    hybrid: dict[str, Any] = {**tiny.HYBRID, "terms": {**tiny.HYBRID["terms"]}}  # type: ignore[dict-item]
    hybrid["terms"]["rl"] = {**hybrid["terms"]["rl"], "mask": {"use": "soft_clip"}}
    path = tiny.recipe(tmp_path, estimator=hybrid, eval={"splits": []}, train={"steps": 1})
    result = call("run", str(path))
    assert isinstance(result.exception, PartError)
    said = str(result.exception)
    assert re.match(rf"{re.escape(str(path))}:1:\d+: SoftClip \(estimator\.terms\.rl\.mask\.0\)", said)
    assert "of the package plug-in 1.0 raised ZeroDivisionError: division by zero" in said
    assert re.search(r"soft\.py:\d+\)", said)
    assert said.splitlines()[-1].strip() == "^" * said.splitlines()[-1].count("^")


def test_the_command_reports_it_without_a_traceback(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(REWARD.replace("SCORES", "[1 / 0]").replace("OPENING", "pass"))
    path = rewarded(tmp_path)
    finished = run(path)
    assert finished.returncode == 1, finished.stderr
    assert "Traceback" not in finished.stderr
    assert "Mine (reward) raised ZeroDivisionError" in finished.stderr


@pytest.mark.parametrize("api", ["", "    api = 1\n", "    api = 2\n"])
def test_parts_of_both_editions_work(site: Site, api: str) -> None:
    source = SOUND.replace("    trust_region = True\n", f"    trust_region = True\n{api}")
    site.install("plug-in", "[upge.mask]\nsoft_clip = soft:SoftClip\n", {"soft": source})
    term = {"source": "rollouts", "denominator": "old", "advantage": "group_norm", "reduction": "token_mean"}
    estimator = upge.Estimator.model_validate({"terms": {"rl": {**term, "mask": "soft_clip"}}})
    assert float(estimator.loss(RICH.batch)) != 0


@pytest.mark.parametrize("name", ["live", "initial", "advance"])
def test_a_parameter_of_the_first_edition_may_have_a_later_methods_name(name: str) -> None:
    body = {
        "__annotations__": {name: float},
        name: 0.5,
        "__module__": __name__,
        "__call__": lambda self, b: getattr(self, name) + 0 * b.ratio,
    }
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        kind = type(upge.Mask)("Older", (upge.Mask,), body)
    term = {"source": "rollouts", "denominator": "old", "advantage": "group_norm", "reduction": "token_mean"}
    estimator = upge.Estimator.model_validate({"terms": {"rl": {**term, "mask": kind(**{name: 0.25})}}})
    credit = estimator.count(RICH.batch, estimator.credit(RICH.batch))
    assert estimator.weigh(RICH.batch, credit).terms["rl"].mask.unique().tolist() == [0.25]
