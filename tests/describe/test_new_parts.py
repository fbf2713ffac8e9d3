"""`upge new`: what it writes is valid, passes its own tests, and can fail them; what it can't write, it says."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import Site
from typer.core import TyperGroup
from typer.main import get_command

import upge
from upge import InputError, RecipeError, registry
from upge.cli.app import reported
from upge.cli.main import app
from upge.describe.scaffold import new_plugin, new_recipe
from upge.part import API, SLOTS
from upge.testing import check_part

every_slot = pytest.mark.parametrize("slot", SLOTS)


FILES = {
    ".gitignore",
    "README.md",
    "pyproject.toml",
    "tests/conftest.py",
    "tests/test_my_part.py",
    "upge_my_part/__init__.py",
    "upge_my_part/my_part.py",
    "upge_my_part/py.typed",
    "upge_my_part/recipes/grpo_my_part.yaml",
}

WRONG = {
    "mask": ("/ self.width", "/ self.width / 2"),
    "denominator": ("self.power *", "self.power**2 *"),
    "advantage": (", self.below * deviation", ", deviation"),
    "switch": ("- self.threshold", "+ self.threshold"),
    "reduction": ("** self.power", "** 2 ** self.power"),
    "shaping": ("-self.cost", "-2 * self.cost"),
    "selection": ("> self.above", "!= self.above"),
    "weight": ("self.gain * lacking", "2 * self.gain * lacking"),
    "field": ("1 + lengths", "2 + lengths"),
    "reward": ("max(len(answer), len(reference))", "len(reference)"),
    "data": ("row[::-1]", "row[::-1][:-1] + row[-1]"),
    "engine": ("distribution.exp()", "distribution.exp().sqrt()"),
}
"""For each slot what to replace in its template's part, by what, so that it is another one."""


class Installed:
    """A new package for each slot, as `pip install -e` would leave it: a dist-info, and its folder on the path."""

    def __init__(self, folder: Path, prefix: str) -> None:
        self.folder, self.prefix = folder, prefix
        self.packages = {slot: folder / f"upge-{prefix}-{slot}" for slot in SLOTS}
        for slot, package in self.packages.items():
            new_plugin(package.name, slot, folder=folder)
            install(Site(folder), package)

    @property
    def path(self) -> list[str]:
        return [str(self.folder), *map(str, self.packages.values())]

    def part(self, slot: str) -> Path:
        name = f"{self.prefix}_{slot}"
        return self.packages[slot] / f"upge_{name}" / f"{name}.py"


UNSHRUNK = """
from hypothesis import Phase, settings

settings.register_profile("unshrunk", phases=[Phase.explicit, Phase.generate], report_multiple_bugs=False)
settings.load_profile("unshrunk")
"""
"""A plugin of pytest: that a test fails is enough, and its smallest example is not looked for."""


def pytest_of(*packages: Installed, options: list[str]) -> subprocess.CompletedProcess[str]:
    """The packages' own tests, run by pytest in one process of its own."""
    paths = [path for each in packages for path in each.path]
    return subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            *options,
            *(str(path) for each in packages for path in each.packages.values()),
        ],
        capture_output=True,
        text=True,
        cwd=packages[0].folder,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"},
        check=False,
    )


def install(site: Site, package: Path) -> None:
    """A dist-info with the entry points that the package's pyproject.toml declares."""
    project = tomllib.loads((package / "pyproject.toml").read_text())["project"]
    groups = [
        f"[{group}]\n" + "".join(f"{name} = {target}\n" for name, target in entries.items())
        for group, entries in project["entry-points"].items()
    ]
    site.install(project["name"], "\n".join(groups))


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installed]:
    """A package for every slot, installed in this process too; forgotten after the module."""
    packages = Installed(tmp_path_factory.mktemp("installed"), "my")
    with pytest.MonkeyPatch.context() as patch:
        for folder in packages.path:
            patch.syspath_prepend(folder)
        registry.refresh()
        yield packages
    for name in [name for name in sys.modules if name.startswith("upge_my_")]:
        del sys.modules[name]
    registry.refresh()


def test_a_package_has_these_files_and_no_others(tmp_path: Path) -> None:
    written = new_plugin("upge-my-part", "mask", folder=tmp_path)
    target = tmp_path / "upge-my-part"
    assert {path.relative_to(target).as_posix() for path in written} == FILES
    assert {path for path in target.rglob("*") if path.is_file()} == set(written)


@every_slot
def test_nothing_of_a_template_is_left_in_what_it_makes(slot: str, installed: Installed) -> None:
    for path in installed.packages[slot].rglob("*"):
        assert not re.search("MODULE|PART|[.]txt", str(path.relative_to(installed.folder)))
        if path.suffix in (".py", ".toml", ".md", ".yaml"):
            assert "$" not in path.read_text()


@every_slot
def test_its_part_is_listed_with_a_line(slot: str, installed: Installed) -> None:
    (offer,) = (each for each in registry.entries(slot) if each.name == f"my_{slot}")
    assert (offer.package, offer.fault) == (f"upge-my-{slot}", None)
    assert registry.summary(offer).endswith(".")
    assert registry.find(SLOTS[slot], f"my_{slot}").api == API


@every_slot
def test_its_recipe_is_found_by_name_and_differs_from_its_parent_by_the_part(slot: str, installed: Installed) -> None:
    recipe, parent = upge.load(f"grpo_my_{slot}"), upge.load("grpo")
    assert f'"use": "my_{slot}"' in json.dumps(recipe.model_dump(mode="json"))
    assert recipe.estimator.terms["rl"].source == parent.estimator.terms["rl"].source
    assert recipe.optimizer == parent.optimizer


def test_its_code_is_clean(installed: Installed) -> None:
    """By its own line length, and more rules than most projects have."""
    ruff = [sys.executable, "-m", "ruff"]
    rules = ["--select", "E,F,W,I,N,UP,B,C4,SIM,RUF,PT,RET,PTH,A,ANN", "--ignore", "RUF001,RUF002,RUF003"]
    packages = list(map(str, installed.packages.values()))
    for arguments in (["check", *rules], ["format", "--check"]):
        command = [*ruff, *arguments, "--no-cache", *packages]
        finished = subprocess.run(command, capture_output=True, text=True, check=False)
        assert finished.returncode == 0, finished.stdout + finished.stderr


@every_slot
def test_its_part_keeps_the_laws(slot: str, installed: Installed) -> None:
    """With few examples; the package's own test draws 50."""
    check_part(registry.find(SLOTS[slot], f"my_{slot}"), examples=5)


@pytest.fixture(scope="module")
def failed(installed: Installed, tmp_path_factory: pytest.TempPathFactory) -> dict[str, set[str]]:
    """The slots of which a test fails, their laws left out: of packages as they are, and of such with another part."""
    wrong = Installed(tmp_path_factory.mktemp("wrong"), "wrong")
    for slot, (right, other) in WRONG.items():
        text = wrong.part(slot).read_text()
        assert right in text
        wrong.part(slot).write_text(text.replace(right, other))
    (installed.folder / "unshrunk.py").write_text(UNSHRUNK)
    said = pytest_of(installed, wrong, options=["-p", "unshrunk", "--tb=no", "-rfE", "-k", "not laws"]).stdout
    found = re.findall(r"^(?:FAILED|ERROR) .*test_(my|wrong)_(\w+)\.py", said, flags=re.MULTILINE)
    passed = re.search(r"(\d+) passed", said)
    assert passed is not None, said
    assert int(passed[1]) > 5 * len(SLOTS), "more than either kind has alone"
    return {prefix: {slot for of, slot in found if of == prefix} for prefix in ("my", "wrong")}


def test_its_tests_pass_as_they_are(failed: dict[str, set[str]]) -> None:
    assert failed["my"] == set()


@pytest.mark.heavy
def test_so_do_its_laws_with_all_their_examples(installed: Installed) -> None:
    finished = pytest_of(installed, options=["-k", "laws"])
    assert finished.returncode == 0, finished.stdout + finished.stderr


def test_its_tests_fail_where_the_part_is_another(failed: dict[str, set[str]]) -> None:
    """Of every slot: a proof that could not fail would prove nothing."""
    assert failed["wrong"] == set(SLOTS)


def test_the_least_width_of_the_mask_is_refused(installed: Installed) -> None:
    """At width 0 on-policy data would be weighed with exp(−0/0)."""
    with pytest.raises(RecipeError, match="greater than 0"):
        upge.load("grpo_my_mask", ["estimator.terms.rl.mask.width=0"])


@pytest.mark.parametrize(
    ("package", "part", "module", "use", "kind"),
    [
        ("upge-soft-clip", None, "upge_soft_clip", "soft_clip", "SoftClip"),
        ("Upge.Soft__Clip", None, "upge_soft_clip", "soft_clip", "SoftClip"),
        ("softer", None, "softer", "softer", "Softer"),
        ("lab-tools", "k3_2", "lab_tools", "k3_2", "K32"),
    ],
)
def test_what_follows_from_a_name(
    package: str, part: str | None, module: str, use: str, kind: str, tmp_path: Path
) -> None:
    new_plugin(package, "mask", part, tmp_path)
    project = tomllib.loads((tmp_path / package / "pyproject.toml").read_text())["project"]
    assert project["name"] == package
    assert project["entry-points"]["upge.mask"] == {use: f"{module}.{use}:{kind}"}
    assert f"class {kind}(Mask):" in (tmp_path / package / module / f"{use}.py").read_text()


@pytest.mark.parametrize(
    ("package", "part", "said"),
    [
        ("upge soft clip", None, "'upge-soft-clip' would do"),
        ("-x-", None, "'x' would do"),
        ("a/b", None, "'a-b' would do"),
        ("", None, "'upge-my-part' would do"),
        ("3clips", None, "'upge-3clips' would do"),
        ("lambda", None, "'upge-lambda' would do"),
        ("json", None, "there is a module 'json' already: choose another name, for example 'upge-json'"),
        ("upge", None, "there is a module 'upge' already: choose another name, for example 'upge-upge'"),
        ("upge-parts", None, "there is a module 'upge_parts' already: choose another name"),
        ("upge-3clips", None, "--part my_3clips would do"),
        ("upge-fine", "SoftClip", "--part soft_clip would do"),
        ("upge-fine", "soft-clip", "--part soft_clip would do"),
        ("upge-fine", "lambda", "--part my_lambda would do"),
        ("upge-fine", "none", "--part my_none would do"),
        ("upge-fine", "clip", "the package upge offers a mask called 'clip' already"),
        ("upge-fine", "kl", "the package upge brings a recipe called 'grpo_kl' already"),
        ("upge-fine", "mask", "--part my_mask"),
        ("upge-mask", None, "--part my_mask"),
        ("upge-fine", "padded", "a class 'Padded' would hide another one of that name"),
        ("upge-fine", "recipes", "--part my_recipes"),
    ],
)
def test_a_name_that_cannot_be_had(package: str, part: str | None, said: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=re.escape(said)):
        new_plugin(package, "mask", part, tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_there_stays_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "upge-fine").mkdir()
    with pytest.raises(InputError, match="upge-fine' already"):
        new_plugin("upge-fine", "mask", folder=tmp_path)
    assert not list((tmp_path / "upge-fine").iterdir())


@pytest.mark.parametrize("below", [False, True])
def test_a_package_s_recipe_is_copied_whole(below: bool, installed: Installed, tmp_path: Path) -> None:
    """Even where the package lies below the folder, by chance."""
    written = new_recipe("mine", "upge-my-mask/grpo_my_mask", installed.folder if below else tmp_path)
    assert "extends" not in written.read_text()
    assert "abstract" not in written.read_text()
    parent = upge.load("grpo_my_mask")
    assert upge.load(written).model_copy(update={"name": parent.name, "about": parent.about}) == parent


# The command.


def test_the_commands_that_it_tells_people_of_are_there(installed: Installed, tmp_path: Path) -> None:
    group = get_command(app)
    assert isinstance(group, TyperGroup)
    texts = [new_recipe("mine", "grpo", tmp_path).read_text(), (installed.packages["mask"] / "README.md").read_text()]
    for text in texts:
        verbs = re.findall(r"(?:`|: +)upge (\w+)", text)
        assert {"diff", "run", "compare"} < set(verbs) <= set(group.commands)


def called(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of the command in this process."""
    with pytest.raises(SystemExit) as ended, reported():
        app(["new", *arguments])
    said = capsys.readouterr()
    return int(ended.value.code or 0), said.out, said.err


def test_the_command_prints_what_it_wrote(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    code, out, err = called(capsys, "recipe", "mine", "--like", "grpo", "--folder", str(tmp_path))
    assert (code, out, err) == (0, f"{tmp_path}/mine.yaml\n", "")
    code, out, err = called(capsys, "plugin", "upge-fine", "--slot", "mask", "--folder", str(tmp_path))
    assert code == 0
    assert set(map(Path, out.split())) == {path for path in (tmp_path / "upge-fine").rglob("*") if path.is_file()}
    assert f"pip install -e '{tmp_path}/upge-fine[test]'" in err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["recipe", "mine", "--like", "grp"], "did you mean 'grpo'?"),
        (["recipe", "mine", "--like", "nowhere.yaml"], "there is no such file"),
        (["recipe", "mine", "--like", "lab/base"], "is abstract"),
        (["recipe", "mine", "--like", "grpo_tix"], "did you mean 'grpo_tis'?"),
        (["recipe", "mi ne", "--like", "grpo"], "'mi_ne' would do"),
        (["recipe", "mine"], "--like"),
        (["plugin", "upge-fine", "--slot", "maks"], "did you mean 'mask'?"),
        (["plugin", "upge-fine", "--slot", "recipe"], "advantage, data, denominator"),
        (["plugin", "up ge", "--slot", "mask"], "'up-ge' would do"),
        (["plugin", "upge-fine"], "--slot"),
        (["plugin", "upge-fine", "--slot", "mask", "--folder", "nowhere"], "nowhere"),
    ],
)
def test_wrong_input_exits_with_2_and_writes_nothing(
    arguments: list[str],
    said: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, err = called(capsys, *arguments)
    assert (code, out) == (2, "")
    assert said in err
    assert "Traceback" not in err
    assert not list(tmp_path.iterdir())
