"""The JSON Schema of recipes: it holds of every right recipe, of no wrong one, and knows whatever is installed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from conftest import Site
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft7Validator
from ruamel.yaml import YAML
from support.processes import command
from typer.testing import CliRunner

import upge
from upge import registry
from upge.cli.main import app
from upge.describe import json_schema
from upge.describe.json_schema import recipe_schema
from upge.part import SLOTS
from upge.testing.strategies import parts

RECIPES = sorted((Path(__file__).parents[2] / "recipes").rglob("*.yaml"))
WHOLE = """
name: mine
model: upge_parts:data/lab/base
data: lab
reward: {use: exact, after: "="}
rollout: {engine: transformers, max_tokens: 96}
optimizer: {lr: {start: 1e-3, end: 0.0, steps: 5}}
train: {steps: 5}
estimator:
  switch: {use: success_rate, above: rl, otherwise: sft}
  terms:
    rl:
      source: rollouts
      mask: {use: clip, low: 0.2, high: 0.2}
      denominator: old
      advantage: group_norm
      reduction: constant
    sft: {source: demonstrations, denominator: current, advantage: one, reduction: sequence_mean}
"""


def parsed(text: str) -> Any:
    reader = YAML(typ="safe", pure=True)
    reader.version = (1, 2)
    return reader.load(text)


def made() -> Draft7Validator:
    schema, faults = recipe_schema()
    assert not faults
    Draft7Validator.check_schema(schema)
    return Draft7Validator(schema)


@pytest.fixture(scope="module")
def schema() -> Draft7Validator:
    return made()


def loads(text: str, folder: Path) -> bool:
    path = folder / "mine.yaml"
    path.write_text(text)
    try:
        upge.load(path)
    except upge.RecipeError:
        return False
    return True


# What ships.


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_shipped_recipe_is_valid(path: Path, schema: Draft7Validator) -> None:
    faults = [f"{fault.json_path}: {fault.message[:300]}" for fault in schema.iter_errors(parsed(path.read_text()))]
    assert not faults


@pytest.mark.parametrize("offer", registry.entries(), ids=lambda offer: f"{offer.slot}-{offer.name}")
@given(data=st.data())
def test_every_part_is_valid_with_whatever_parameters_it_takes(
    offer: registry.Entry, data: st.DataObject, schema: Draft7Validator
) -> None:
    part = data.draw(parts(registry.load(offer, SLOTS[offer.slot])))
    dumped = json.loads(json.dumps(part.dump()))
    where = {
        **{slot: {slot: dumped} for slot in ("data", "reward")},
        **{slot: {"estimator": {slot: [dumped]}} for slot in ("switch", "shaping")},
        "engine": {"rollout": {"engine": dumped}},
        "field": {"fields": {"own": dumped}},
    }
    in_term = {"estimator": {"terms": {"rl": {"select" if offer.slot == "selection" else offer.slot: dumped}}}}
    faults = list(schema.iter_errors({"extends": "lab/base.yaml", **where.get(offer.slot, in_term)}))
    assert not faults, dumped


# Right and wrong, as `upge validate` has it.

RIGHT = {
    "nothing changed": {},
    "bare names": {'reward: {use: exact, after: "="}': "reward: exact"},
    "a package's name": {"advantage: group_norm": "advantage: upge/group_norm", "use: clip": "use: upge/clip"},
    "a list of masks": {"mask: {use: clip, low: 0.2, high: 0.2}": "mask: [none, {use: cap, ratio_max: 5}]"},
    "an empty list": {"mask: {use: clip, low: 0.2, high: 0.2}": "mask: []"},
    "one or several terms": {
        "{use: success_rate, above: rl, otherwise: sft}": "{use: phases, first: [sft], then: rl, steps: 3}"
    },
    "a parameter that Python has a word for": {
        "advantage: group_norm": "advantage: {use: gae, lambda: 0.9}",
        "train:": "critic: {lr: 1e-3}\ntrain:",
    },
    "what follows another value": {"reduction: constant": "reduction: {use: constant, length: 3, per: none}"},
    "null for what isn't needed": {"train: {steps: 5}": "train: {steps: 5, threads: null}\nreference: null"},
    "a number for a schedule": {"lr: {start: 1e-3, end: 0.0, steps: 5}": "lr: 1e-3"},
    "a model in full": {"model: upge_parts:data/lab/base": "model: {path: upge_parts:data/lab/base, dtype: bfloat16}"},
}

WRONG = {
    "a misspelt block": {"train:": "trian:"},
    "a misspelt key": {"{steps: 5}\nest": "{stps: 5}\nest"},
    "a misspelt key of a term": {"source: rollouts": "sauce: rollouts"},
    "a misspelt part": {"use: clip": "use: clp"},
    "a misspelt bare part": {"advantage: one": "advantage: uno"},
    "a misspelt package": {"use: clip": "use: upg/clip"},
    "a misspelt parameter": {"low: 0.2": "lo: 0.2"},
    "a parameter too much": {"use: clip": "ratio_max: 5, use: clip"},
    "a part of another slot": {"denominator: old": "denominator: clip"},
    "a name that needs parameters": {"mask: {use: clip, low: 0.2, high: 0.2}": "mask: clip"},
    "a missing parameter": {"low: 0.2, ": ""},
    "a missing use": {"use: clip, ": ""},
    "a missing block": {"train: {steps: 5}\n": ""},
    "a missing key": {"advantage: one, ": ""},
    "a key that null leaves out": {"train: {steps: 5}": "train: {steps: null}"},
    "text for a number": {"low: 0.2": "low: much"},
    "a number for text": {"above: rl": "above: 3"},
    "a fraction for an integer": {"steps: 5}\nest": "steps: 5.5}\nest"},
    "a list for a part": {"denominator: old": "denominator: [old]"},
    "a number for a part": {"denominator: old": "denominator: 1"},
    "a number in a list of parts": {"mask: {use: clip, low: 0.2, high: 0.2}": "mask: [none, 3]"},
    "a number for a block": {"train: {steps: 5}": "train: 5"},
    "too small": {"low: 0.2": "low: -0.1"},
    "too large": {"low: 0.2": "low: 1.5"},
    "a schedule's number too small": {"lr: {start: 1e-3, end: 0.0, steps: 5}": "lr: -1.0"},
    "too many": {"optimizer: {": "optimizer: {betas: [0.9, 0.9, 0.9], "},
    "an unknown choice": {"source: rollouts": "source: dreams"},
    "a misspelt schedule": {"{start: 1e-3": "{strat: 1e-3"},
    "none of what needs one": {
        "{use: success_rate, above: rl, otherwise: sft}": "{use: phases, first: [], then: rl, steps: 3}"
    },
}


def changed(changes: Mapping[str, str]) -> str:
    text = WHOLE
    for old, new in changes.items():
        assert old in text, f"'{old}' is not in the recipe"
        text = text.replace(old, new, 1)
    return text


@pytest.mark.parametrize("changes", RIGHT.values(), ids=RIGHT)
def test_what_loads_is_valid(changes: Mapping[str, str], schema: Draft7Validator, tmp_path: Path) -> None:
    assert loads(changed(changes), tmp_path)
    assert schema.is_valid(parsed(changed(changes)))


@pytest.mark.parametrize("changes", WRONG.values(), ids=WRONG)
def test_what_does_not_load_is_invalid(changes: Mapping[str, str], schema: Draft7Validator, tmp_path: Path) -> None:
    assert not loads(changed(changes), tmp_path)
    assert not schema.is_valid(parsed(changed(changes)))


# Recipes that extend others, and fragments, may leave out and remove what they like, but misspell nothing.

FRAGMENTS = {
    "a name alone": "extends: grpo.yaml\nname: mine\n",
    "two parents": "extends: [grpo.yaml, lab/base.yaml]\nname: mine\n",
    "a parameter of the parent's part": "extends: grpo.yaml\nestimator: {terms: {rl: {mask: {high: 0.3}}}}\n",
    "part of a schedule": "extends: lab/base.yaml\noptimizer: {lr: {steps: 100}}\n",
    "a removed block, key, parameter and term": (
        "extends: hpt.yaml\nname: mine\neval: null\ntrain: {threads: null}\n"
        "estimator: {switch: null, terms: {sft: null, rl: {mask: null, reduction: {count: null}}}}\n"
    ),
    "nothing but what is shared": "abstract: true\nrollout: {n: 4}\n",
    "code in a file": "extends: grpo.yaml\nestimator: {terms: {rl: {mask: {use: soft.py:Soft, width: 3}}}}\n",
    "code in a file, by its name alone": "extends: grpo.yaml\nestimator: {terms: {rl: {mask: [none, soft.py:Soft]}}}\n",
}
NO_FRAGMENTS = {
    "a misspelt block": "extends: grpo.yaml\nnme: mine\n",
    "a parameter that no mask has": "extends: grpo.yaml\nestimator: {terms: {rl: {mask: {hihg: 0.3}}}}\n",
    "a parameter out of bounds": "extends: grpo.yaml\nestimator: {terms: {rl: {mask: {low: 3}}}}\n",
    "a parameter that the part has not": "extends: grpo.yaml\nestimator: {terms: {rl: {mask: {use: cap, low: 0.2}}}}\n",
    "a key that may not be text": "abstract: true\nrollout: {n: four}\n",
    "a number to extend": "extends: 3\n",
    "not abstract": "abstract: false\nrollout: {n: 4}\n",
}


@pytest.mark.parametrize("text", FRAGMENTS.values(), ids=FRAGMENTS)
def test_a_recipe_that_extends_others_says_what_it_likes(text: str, schema: Draft7Validator) -> None:
    assert schema.is_valid(parsed(text))


@pytest.mark.parametrize("text", NO_FRAGMENTS.values(), ids=NO_FRAGMENTS)
def test_a_recipe_that_extends_others_misspells_nothing(text: str, schema: Draft7Validator) -> None:
    assert not schema.is_valid(parsed(text))


# Other people's packages.

HALF = '''
"""Masks of somebody's."""

from __future__ import annotations

from typing import Annotated, Any

import torch
from pydantic import BeforeValidator, Field, model_validator

from upge import Mask
from upge.part import AMask


class Half(Mask):
    """Half of everything.

        mask_t = amount

    Source: nobody.
    """

    amount: float = Field(default=0.5, ge=0, le=1)
    """How much is left."""

    def __call__(self, b):
        return torch.tensor(self.amount)


class Both(Half):
    """Another mask, and another again."""

    first: AMask
    """The one."""
    others: tuple[AMask, ...] = ()
    """The others."""


class Loose(Half):
    """Takes what its own code takes."""

    names: Annotated[tuple[str, ...], BeforeValidator(lambda value: tuple(str(value)))]
    """Anything, letter by letter."""
    anything: Any = None
    """Whatever."""


class Renamed(Half):
    """Has an old name for a key."""

    @model_validator(mode="before")
    @classmethod
    def _rename(cls, value):
        return {"amount" if key == "share" else key: each for key, each in value.items()}


class Strange(Half):
    """Has a type that JSON knows nothing of."""

    model_config = {"arbitrary_types_allowed": True}
    device: torch.device = torch.device("cpu")
    """Where."""


class Unfinished(Half):
    """Names a type that is not there."""

    missing: Nowhere
    """Nothing."""


class Rude(Half):
    """Will not be described."""

    @classmethod
    def __get_pydantic_json_schema__(cls, schema, handler):
        raise RuntimeError("no")
'''


def install(site: Site, package: str, *classes: str, module: str = "half") -> None:
    lines = "".join(f"{name.lower()} = {module}.masks:{name}\n" for name in classes)
    site.install(package, f"[upge.mask]\n{lines}", {f"{module}.masks": HALF})


def with_mask(mask: str) -> Any:
    return parsed(f"extends: grpo.yaml\nestimator: {{terms: {{rl: {{mask: {mask}}}}}}}\n")


def test_a_package_that_was_just_installed_is_known(schema: Draft7Validator, site: Site) -> None:
    wanted = with_mask("{use: half, amount: 0.25}")
    assert not schema.is_valid(wanted)
    install(site, "upge-half", "Half")
    after = made()
    assert after.is_valid(wanted)
    assert after.is_valid(with_mask("half"))
    assert after.is_valid(with_mask("upge-half/half"))
    assert not after.is_valid(with_mask("{use: half, amount: 1.5}"))
    assert not after.is_valid(with_mask("{use: half, amonut: 0.5}"))


def test_a_name_of_two_packages_is_valid_with_its_package_only(site: Site) -> None:
    install(site, "upge-half", "Half")
    install(site, "upge-third", "Half", module="third")
    schema = made()
    assert schema.is_valid(with_mask("upge-third/half"))
    assert schema.is_valid(with_mask("{use: upge-half/half, amount: 0.1}"))
    for mask in ("half", "{use: half, amount: 0.1}", "upge/half", "{use: upge-half/half, amont: 0.1}"):
        assert not schema.is_valid(with_mask(mask)), mask


def test_a_slot_that_no_installed_part_fills_still_takes_a_class_in_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    choices, _ = json_schema.installed()
    monkeypatch.setattr(json_schema, "installed", lambda: (choices | {"mask": [], "selection": []}, []))
    schema = made()
    assert schema.is_valid(with_mask("mine.py:Half"))
    assert not schema.is_valid(with_mask("half"))
    assert not schema.is_valid(with_mask("{use: half}"))


def test_a_part_may_hold_parts(site: Site) -> None:
    install(site, "upge-half", "Half", "Both")
    schema = made()
    assert schema.is_valid(with_mask("{use: both, first: none, others: [half, {use: both, first: half}]}"))
    assert not schema.is_valid(with_mask("{use: both, first: nno}"))
    assert not schema.is_valid(with_mask("{use: both, first: {use: both, frist: none}}"))


def test_what_a_part_s_own_code_decides_is_left_to_it(site: Site) -> None:
    install(site, "upge-half", "Loose", "Renamed", "Strange")
    schema = made()
    for mask in ("{use: loose, names: 3}", "{use: renamed, share: 0.1}", "{use: strange, device: 1}"):
        assert schema.is_valid(with_mask(mask)), mask
    assert not schema.is_valid(with_mask("{use: loose, name: 3}"))
    assert not schema.is_valid(with_mask("{use: strange, amount: 3}"))


def test_a_part_without_a_schema_is_left_out_and_named(site: Site) -> None:
    install(site, "upge-half", "Half", "Unfinished", "Rude")
    schema, faults = recipe_schema()
    assert [fault.partition(" of the package upge-half ")[0] for fault in faults] == [
        "the mask 'rude'",
        "the mask 'unfinished'",
    ]
    assert Draft7Validator(schema).is_valid(with_mask("half"))
    assert not Draft7Validator(schema).is_valid(with_mask("rude"))


# The command.


def test_the_command_prints_it(schema: Draft7Validator, tmp_path: Path) -> None:
    printed = command("schema", folder=tmp_path)
    assert printed.returncode == 0
    assert json.loads(printed.stdout) == schema.schema
    assert printed.stderr.strip().endswith("# yaml-language-server: $schema=upge.schema.json")


def test_the_command_writes_it_to_a_file(tmp_path: Path) -> None:
    written = command("schema", "--output", "here.json", folder=tmp_path)
    assert (written.returncode, written.stdout) == (0, "")
    assert json.loads((tmp_path / "here.json").read_text(encoding="utf-8"))["title"] == "recipe"
    assert written.stderr.strip().endswith("# yaml-language-server: $schema=here.json")


def test_a_file_that_can_not_be_written_is_said(tmp_path: Path) -> None:
    refused = command("schema", "--output", "nowhere/here.json", folder=tmp_path)
    assert (refused.returncode, refused.stdout) == (2, "")
    assert "can't write 'nowhere/here.json': No such file or directory" in refused.stderr


def test_the_command_names_what_it_leaves_out(site: Site) -> None:
    site.install("upge-broken", "[upge.mask]\nbroken = broken.masks:Broken\n", {"broken.masks": "import nowhere"})
    printed = CliRunner().invoke(app, ["schema"])
    assert printed.exit_code == 0
    assert (
        "left out: the mask 'broken' of the package upge-broken can't be imported: ModuleNotFoundError"
        in printed.stderr
    )
    assert "broken" not in printed.stdout
    assert Draft7Validator(json.loads(printed.stdout)).is_valid(with_mask("none"))


def test_a_recipe_without_a_name_has_its_files_and_not_its_parents(tmp_path: Path) -> None:
    (tmp_path / "parent.yaml").write_text(WHOLE.replace("mine", "parent"))
    (tmp_path / "my first+try.yaml").write_text("extends: parent.yaml\ntrain: {steps: 3}\n")
    (tmp_path / "named.yaml").write_text("extends: parent.yaml\nname: called\n")
    assert upge.load(tmp_path / "my first+try.yaml").name == "my-first+try"
    assert upge.load(tmp_path / "named.yaml").name == "called"
    assert upge.load(tmp_path / "my first+try.yaml", ["name=other"]).name == "other"
