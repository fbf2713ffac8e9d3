"""What a person sees in an editor: completions, explanations and complaints, as the YAML language server gives them.

The group `editor`, which needs Node.js and npm: `pytest -m editor`.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import Site
from support.language_server import Complaint, LanguageServer, serving
from test_schema import RECIPES, install

from upge import registry
from upge.describe.json_schema import recipe_schema
from upge.recipe.catalog import shipped_recipes
from upge.recipe.schema import Model

SERVER = "yaml-language-server@1.25.0"
MODELINE = "# yaml-language-server: $schema=../upge.schema.json\n"
EXTENDING = f"{MODELINE}extends: lab/base.yaml\n"
TERM = f"{EXTENDING}estimator:\n  terms:\n    rl:\n"
ENGINES = ", ".join(sorted(offer.name for offer in registry.entries("engine")))
MASKS = ", ".join(sorted({offer.name for slot in ("mask", "selection") for offer in registry.entries(slot)}))

pytestmark = pytest.mark.editor


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the documents are, and the schema of what is installed."""
    made = tmp_path_factory.mktemp("documents")
    write_schema(made / "upge.schema.json")
    return made


@pytest.fixture(scope="session")
def program(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The command that starts the server, which is installed for this session."""
    assert shutil.which("npm"), "the group `editor` needs Node.js and npm, to install the YAML language server"
    place = tmp_path_factory.mktemp("server")
    subprocess.run(["npm", "install", "--no-audit", "--no-fund", "--prefix", place, SERVER], check=True)
    return ["node", str(place / "node_modules" / "yaml-language-server" / "bin" / "yaml-language-server")]


@pytest.fixture(scope="session")
def editor(program: list[str], folder: Path) -> Iterator[LanguageServer]:
    with serving(program, folder) as server:
        yield server


def write_schema(path: Path) -> None:
    schema, faults = recipe_schema()
    assert not faults
    path.write_text(json.dumps(schema), encoding="utf-8")


# Complaints.


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_nothing_is_underlined_in_a_shipped_recipe(path: Path, editor: LanguageServer) -> None:
    assert editor.complaints(MODELINE + path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    ("wrong", "underlined", "message"),
    [
        ("trian: {steps: 3}", "trian", "Property trian is not allowed."),
        ("train: {stps: 3}", "stps", "Property stps is not allowed."),
        ("train: {steps: three}", "three", 'Incorrect type. Expected "integer".'),
        ("train: {steps: -1}", "-1", "Value is below the minimum of 0."),
        ("train: 3", "3", "should be a map"),
        ("rollout: {temperature: 0}", "0", "Value is below the exclusive minimum of 0."),
        ("rollout: {truncated: kept}", "kept", 'Value is not accepted. Valid values: "keep", "mask", "zero_reward".'),
        ("rollout: {engine: transformer}", "transformer", f"no engine is called this; there are {ENGINES}"),
        ("optimizer: {lr: fast}", "fast", "should be a number, or a schedule: {start: …, end: …, steps: …}"),
        ("optimizer: {lr: {strat: 1}}", "strat", "Property strat is not allowed."),
        ("optimizer: {betas: [0.9, 1.2]}", "1.2", "Value is above the exclusive maximum of 1."),
    ],
)
def test_a_wrong_block_is_underlined_where_it_is_wrong(
    wrong: str, underlined: str, message: str, editor: LanguageServer
) -> None:
    assert editor.complaints(f"{EXTENDING}{wrong}\n") == [Complaint(3, underlined, message)]


@pytest.mark.parametrize(
    ("wrong", "underlined", "message"),
    [
        ("mask: clp", "clp", f"no mask is called this; there are {MASKS}"),
        ("mask: clip", "clip", "'clip' needs low and high: {use: clip, low: …, high: …}"),
        ("mask: upg/clip", "upg/clip", "no installed package offers this mask"),
        ("mask: 3", "3", "should be a mask: its name, or a map of 'use' and parameters"),
        ("mask: {use: clp, lo: 1}", "clp", f"no mask is called this; there are {MASKS}"),
        ("mask: {use: clip, lo: 0.2}", "lo", "Property lo is not allowed."),
        ("mask: {use: upge/clip, low: 2}", "2", "Value is above the maximum of 1."),
        ("mask: {us: clip}", "us", "Property us is not allowed."),
        ("mask: [none, clp]", "clp", f"no mask is called this; there are {MASKS}"),
        ("advantage: [one]", "[one]", "should be an advantage: its name, or a map of 'use' and parameters"),
        (
            "source: rollout",
            "rollout",
            'Value is not accepted. Valid values: "rollouts", "demonstrations", "all", "kept", "forced".',
        ),
    ],
)
def test_a_wrong_part_is_underlined_where_it_is_wrong(
    wrong: str, underlined: str, message: str, editor: LanguageServer
) -> None:
    assert editor.complaints(f"{TERM}      {wrong}\n") == [Complaint(6, underlined, message)]


def test_what_is_missing_is_said_where_nothing_is_extended(editor: LanguageServer) -> None:
    whole = (shipped_recipes() / "lab" / "skill.yaml").read_text(encoding="utf-8")
    assert "advantage: one, " in whole
    (complaint,) = editor.complaints(MODELINE + whole.replace("advantage: one, ", ""))
    assert (complaint.text, complaint.message) == ("sft", 'Missing property "advantage".')


# Completions.


def test_every_part_s_name_is_proposed_with_its_documentation(editor: LanguageServer) -> None:
    for place in ("mask: {use: |}", "mask:\n        use: |", "mask:\n        - use: |"):
        proposed = editor.completions(f"{TERM}      {place}")
        assert sorted(proposed) == MASKS.split(", ")
        assert proposed["clip"]["insertText"] == "clip"
        assert "mask_t = 0   where  Â_t > 0 and ρ_t > 1 + high" in proposed["clip"]["documentation"]["value"]


def test_a_part_is_proposed_with_the_parameters_that_it_needs(editor: LanguageServer) -> None:
    for place in ("mask: |", "mask:\n        - |"):
        proposed = editor.completions(f"{TERM}      {place}")
        assert sorted(proposed) == MASKS.split(", ")
        assert proposed["clip"]["insertText"] == "{use: clip, low: $1, high: $2}"
        assert proposed["none"]["insertText"] == "none"


def test_the_parameters_of_a_part_are_proposed_and_no_others(editor: LanguageServer) -> None:
    proposed = editor.completions(f"{TERM}      mask:\n        use: clip\n        |")
    assert sorted(proposed) == ["against", "high", "low"]
    assert proposed["against"]["insertText"] == "against: ${1:denominator}"
    assert proposed["low"]["documentation"]["value"] == "ε below: the lower bound is 1 − low.\n\n*≥ 0 · ≤ 1*"
    # `lab` is the beginning of another part's name.
    expected = ["bands", "development", "system", "template"]
    assert sorted(editor.completions(f"{EXTENDING}data:\n  use: lab\n  |")) == expected


def test_a_part_begins_with_its_name(editor: LanguageServer) -> None:
    assert list(editor.completions(f"{TERM}      mask:\n        |")) == ["use"]


@pytest.mark.parametrize(
    ("place", "proposed"),
    [
        ("rollout: {truncated: |}", ["keep", "mask", "zero_reward"]),
        ("log: {completions: |}", ["false", "true"]),
        ("optimizer:\n  lr: |", ["schedule"]),
        ("optimizer:\n  lr:\n    |", ["end", "shape", "start", "steps"]),
        ("estimator:\n  |", ["shaping", "switch", "terms"]),
        ("model:\n  |", sorted(Model.model_fields)),
    ],
)
def test_keys_and_values_are_proposed(place: str, proposed: list[str], editor: LanguageServer) -> None:
    assert sorted(editor.completions(EXTENDING + place)) == proposed


def test_the_recipes_that_ship_are_proposed_to_extend(editor: LanguageServer) -> None:
    proposed = editor.completions(f"{MODELINE}extends: |")
    assert sorted(proposed) == sorted(path.relative_to(shipped_recipes()).as_posix() for path in RECIPES)


# Explanations.


@pytest.mark.parametrize(
    "place",
    [
        "mask: {use: cl|ip, low: 0.2, high: 0.2}",
        "mask: {use: upge/cl|ip, low: 0.2, high: 0.2}",
        "ma|sk: {use: clip, low: 0.2, high: 0.2}",
    ],
)
def test_a_part_is_explained_with_its_formula(place: str, editor: LanguageServer) -> None:
    shown = editor.hover(f"{TERM}      {place}")
    assert shown.startswith("#### mask\n\nPPO's clip: a token loses its gradient where its ratio has left")
    assert "```text\nmask_t = 0   where  Â_t > 0 and ρ_t > 1 + high" in shown


def test_a_bare_name_is_explained_with_its_formula(editor: LanguageServer) -> None:
    shown = editor.hover(f"{TERM}      advantage: group_no|rm")
    assert shown.startswith("#### advantage\n\n")
    assert "```text\nÂ_t = (R − mean_group(R)) / (std_group(R) + epsilon)" in shown


@pytest.mark.parametrize(
    ("place", "shown"),
    [
        ("mask: {use: clip, lo|w: 0.2}", "#### mask clip\n\nε below: the lower bound is 1 − low.\n\n*≥ 0 · ≤ 1*"),
        ("mask: {lo|w: 0.2}", "#### mask\n\nε below: the lower bound is 1 − low.\n\n*≥ 0 · ≤ 1*"),
        ("reduction: {use: constant, len|gth: 3}", "*follows rollout.max_tokens unless given · > 0*"),
        ("advantage: {use: gae, lamb|da: 1}", "(no bias), 0 the critic (little variance).\n\n*default: 1 · ≥ 0 · ≤ 1*"),
        (
            "sou|rce: rollouts",
            "#### term\n\nThe tokens' source: what the policy sampled, the demonstrations, both, the rows with weight",
        ),
    ],
)
def test_a_parameter_is_explained(place: str, shown: str, editor: LanguageServer) -> None:
    assert shown in editor.hover(f"{TERM}      {place}")


# The settings that the documentation shows.


def test_the_settings_shown_find_the_schema(program: list[str], folder: Path) -> None:
    page = (Path(__file__).parents[2] / "docs" / "editor.md").read_text(encoding="utf-8")
    (shown,) = re.findall(r"^```json\n(.*?)^```", page, flags=re.MULTILINE | re.DOTALL)
    with serving(program, folder, json.loads(shown)) as server:
        assert [each.text for each in server.complaints("extends: lab/base.yaml\ntrian: {steps: 3}\n")] == ["trian"]


# Other people's packages.


def test_a_package_that_was_just_installed_is_proposed_explained_and_checked(
    editor: LanguageServer, folder: Path, site: Site
) -> None:
    install(site, "upge-half", "Half")
    write_schema(folder / "theirs.json")
    term = TERM.replace("upge.schema.json", "theirs.json") + "      "
    assert sorted(editor.completions(f"{term}mask: {{use: |}}")) == sorted([*MASKS.split(", "), "half"])
    assert list(editor.completions(f"{term}mask:\n        use: half\n        |")) == ["amount"]
    assert "Half of everything.\n\n```text\nmask_t = amount\n```" in editor.hover(f"{term}mask: {{use: ha|lf}}")
    (complaint,) = editor.complaints(f"{term}mask: {{use: half, amuont: 0.3}}\n")
    assert (complaint.text, complaint.message) == ("amuont", "Property amuont is not allowed.")
    assert editor.complaints(f"{term}mask: {{use: upge-half/half, amount: 0.3}}\n") == []
