"""Random edits of good recipes: valid or refused, never anything else, and refused at the place that was promised."""

from __future__ import annotations

import os
import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from support import recipe_edits as edits
from support.processes import command
from support.recipe_edits import Edit

from upge.recipe import Fault, RecipeError, check

RECIPES = Path(__file__).parents[2] / "recipes"
COUNT = {"nightly": 6000}.get(os.environ.get("UPGE_PROFILE", ""), 300)
BY_THE_COMMAND = 12
PROMISED = 0.95


@dataclass(frozen=True)
class Outcome:
    """What became of one edit."""

    name: str
    edit: Edit
    path: Path
    error: RecipeError | None

    @property
    def is_faulty(self) -> bool:
        return self.edit.sure or self.error is not None

    @property
    def is_right(self) -> bool:
        return self.error is not None and any(map(self._is_right, self.error.faults))

    def _is_right(self, fault: Fault) -> bool:
        place = fault.place
        return place is not None and place.file == str(self.path) and self.edit.is_right(place.line, place.column)

    def __str__(self) -> str:
        return f"{self.name}: {self.edit.kind} {self.edit.what}\n{self.error or 'no fault'}"


def good() -> dict[str, str]:
    """The shipped recipes that are valid anywhere: the second lesson starts from the first one's run.

    Edits are written at the top, from where what a folder's recipe calls `../grpo.yaml` would lead out.
    """
    shipped = [path for path in sorted(RECIPES.rglob("*.yaml")) if path.stem != "habit" and _stays(path)]
    return {path.relative_to(RECIPES).as_posix(): path.read_text(encoding="utf-8") for path in shipped}


def _stays(path: Path) -> bool:
    text = path.read_text(encoding="utf-8")
    return "../" not in text and not {"paper", "smollm2", "comparison"} & {parent.name for parent in path.parents}


def edited(count: int, seed: int) -> Iterator[tuple[str, Edit]]:
    """Half of them edits of shipped recipes, which extend one another, half of the one that has everything."""
    yield from edits.edits(good(), count // 2, seed)
    yield from edits.edits({"whole.yaml": edits.WHOLE.read_text(encoding="utf-8")}, count - count // 2, seed)


def shelf(folder: Path) -> Path:
    """A copy of the shipped recipes, for those that extend what stands beside them."""
    return Path(shutil.copytree(RECIPES, folder / "recipes", dirs_exist_ok=True))


def outcome(name: str, edit: Edit, folder: Path) -> Outcome:
    """What checking says of the edited text, where the recipe `name` stood; any error but a RecipeError comes out."""
    path = (folder / name).with_name("edited.yaml")
    path.write_text(edit.text, encoding="utf-8")
    try:
        check(path, allow_code=True)  # recipes/invent/ has classes in files
    except RecipeError as error:
        return Outcome(name, edit, path, error)
    return Outcome(name, edit, path, None)


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> list[Outcome]:
    folder = shelf(tmp_path_factory.mktemp("edits"))
    return [outcome(name, edit, folder) for name, edit in edited(COUNT, seed=1)]


def statistics(outcomes: list[Outcome]) -> str:
    """A line per kind of edit: how many, how many of these are faulty, how many of these at a right place."""
    made = Counter(each.edit.kind for each in outcomes)
    faulty = Counter(each.edit.kind for each in outcomes if each.is_faulty)
    right = Counter(each.edit.kind for each in outcomes if each.is_right)
    lines = [f"{kind:10} {made[kind]:5} {faulty[kind]:7} {right[kind]:6}" for kind in edits.KINDS]
    return "\n".join(["kind       edits  faulty  right", *lines])


def test_the_texts_are_good(tmp_path: Path) -> None:
    folder = shelf(tmp_path)
    for name, text in (good() | {"whole.yaml": edits.WHOLE.read_text(encoding="utf-8")}).items():
        unedited = Edit("none", "", text, ())
        assert outcome(name, unedited, folder).error is None


def test_what_cannot_be_right_is_refused(outcomes: list[Outcome]) -> None:
    accepted = [each for each in outcomes if each.edit.sure and each.error is None]
    assert not accepted, "\n".join(map(str, accepted))


def test_faults_stand_where_they_are_promised(outcomes: list[Outcome]) -> None:
    faulty = [each for each in outcomes if each.is_faulty]
    astray = [each for each in faulty if not each.is_right]
    assert len(faulty) > COUNT / 2
    assert len(astray) <= (1 - PROMISED) * len(faulty), "\n".join([statistics(outcomes), *map(str, astray)])


def test_every_fault_says_what_and_where(outcomes: list[Outcome]) -> None:
    for each in outcomes:
        if each.error is not None:
            for fault in each.error.faults:
                assert fault.message, str(each)
                assert fault.place is not None, str(each)
                assert "pydantic" not in str(fault).lower(), str(each)


@pytest.mark.parametrize(
    ("name", "edit"), [*edited(BY_THE_COMMAND, seed=2)], ids=lambda value: getattr(value, "kind", "")
)
def test_the_command_accepts_or_refuses(name: str, edit: Edit, tmp_path: Path) -> None:
    expected = outcome(name, edit, shelf(tmp_path))
    finished = command("validate", str(expected.path), "--allow-code", folder=tmp_path)
    assert "Traceback" not in finished.stderr
    if expected.error is None:
        assert (finished.returncode, finished.stderr) == (0, "")
    else:
        assert (finished.returncode, finished.stdout) == (2, "")
        assert finished.stderr.strip() == str(expected.error).strip()
