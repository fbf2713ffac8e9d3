"""The one door: what is offered is found, and what is wrong with an offer is said."""

from __future__ import annotations

import importlib
import inspect
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from conftest import Site
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from upge import Mask, register, registry
from upge.part import SLOTS, BuildContext, Part, build

ROOT = Path(__file__).parents[2]
PARTS = ROOT / "plugins" / "upge_parts"
DECLARED = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]

MASK = '''
import torch
from upge import Mask


class Half(Mask):
    """Half of everything.

    More.
    """

    amount: float = 0.5

    def __call__(self, b):
        return torch.tensor(self.amount)
'''


def unknown(slot: str, use: str) -> registry.UnknownPartError:
    with pytest.raises(registry.UnknownPartError) as raised:
        registry.find(SLOTS[slot], use)
    return raised.value


# What ships.


def parts_defined_in(module: str) -> list[str]:
    """Public classes of a module that can be made into parts."""
    defined = [x for x in vars(importlib.import_module(module)).values() if isinstance(x, type)]
    own = [kind for kind in defined if kind.__module__ == module and not kind.__name__.startswith("_")]
    return [kind.__name__ for kind in own if issubclass(kind, Part) and not inspect.isabstract(kind)]


def test_every_part_that_ships_is_offered() -> None:
    offered = {target for group in DECLARED.values() for target in group.values()}
    for path in sorted(PARTS.rglob("*.py")):
        module = ".".join(path.relative_to(PARTS.parent).with_suffix("").parts)
        for name in parts_defined_in(module):
            assert f"{module}:{name}" in offered, f"{module}:{name} has no line in pyproject.toml"


def test_every_slot_is_a_group_and_every_group_a_slot() -> None:
    assert registry.slots() == set(SLOTS)
    assert {group for group in DECLARED if group.startswith("upge.")} <= {f"upge.{slot}" for slot in SLOTS}


def test_the_installation_offers_what_the_project_declares() -> None:
    """Otherwise: `pip install -e .` again."""
    declared = {
        (f"upge.{o.slot}", o.name): f"{o.module}:{o.attribute}" for o in registry.entries() if o.package == "upge"
    }
    wanted = {(g, n): target for g, names in DECLARED.items() for n, target in names.items() if g.startswith("upge.")}
    assert declared == wanted


@pytest.mark.parametrize("offer", registry.entries(), ids=lambda o: f"{o.slot}-{o.name}")
def test_every_offer_imports_and_is_documented(offer: registry.Entry) -> None:
    kind = registry.load(offer, SLOTS[offer.slot])
    assert registry.find(SLOTS[offer.slot], f"{offer.package}/{offer.name}") is kind
    assert registry.name_of(kind, offer.slot) in (offer.name, f"{offer.package}/{offer.name}")
    summary = registry.summary(offer)
    assert summary == (kind.__doc__ or "").partition("\n")[0]
    assert summary.endswith(".")
    for name, field in kind.model_fields.items():
        assert field.description, f"{kind.__name__}.{name} is not documented"


# Listing imports nothing.

LISTING = """
import sys
import upge
from upge import registry
offers = registry.entries()
assert len(offers) > 10, offers
assert any(registry.summary(offer) for offer in offers)
heavy = {"torch", "transformers", "pydantic", "upge_parts"}
loud = sorted(name for name in sys.modules if name.partition(".")[0] in heavy)
assert not loud, loud
"""


def test_listing_imports_nothing() -> None:
    subprocess.run([sys.executable, "-c", LISTING], check=True, capture_output=True, text=True, cwd=ROOT)


# Other people's packages.


def test_a_package_is_found_by_installing_it(site: Site) -> None:
    site.install("upge-half", "[upge.mask]\nhalf = half_parts.masks:Half\n", {"half_parts.masks": MASK})
    (offer,) = [o for o in registry.entries("mask") if o.name == "half"]
    assert (offer.package, offer.version, offer.fault) == ("upge-half", "1.0", None)
    assert registry.summary(offer) == "Half of everything."
    assert "half_parts" not in sys.modules
    part = build(Mask, {"use": "half", "amount": 0.25}, BuildContext())
    assert part.dump() == {"use": "half", "amount": 0.25}
    assert build(Mask, part.dump(), BuildContext()) == part


def test_odd_spacing_and_comments_are_read(site: Site) -> None:
    text = "# parts\n\n[ upge.mask ]\n   half   =    half_parts.masks  :  Half   \n; more\n[upge.advantage]\n"
    site.install("upge-half", text.replace("   half", "half"), {"half_parts.masks": MASK})
    assert registry.find(SLOTS["mask"], "half").__name__ == "Half"


def test_extras_and_capitals_are_kept(site: Site) -> None:
    text = "[upge.mask]\nHalf = half_parts.masks:Half [extra]\nhalf = half_parts.masks:Half\n"
    site.install("upge-half", text, {"half_parts.masks": MASK})
    assert {o.name for o in registry.entries("mask") if o.package == "upge-half"} == {"Half", "half"}
    assert registry.find(SLOTS["mask"], "Half") is registry.find(SLOTS["mask"], "half")


@pytest.mark.parametrize(
    "text",
    [
        "no section at all\n",
        "[unclosed\nx = y\n",
        "[console_scripts]\nthis is not a pair\n",
        "[upge.mask]\n= nameless:Thing\n",
        "[console_scripts]\na = b:c\na = d:e\n[console_scripts]\na = f:g\n",
        "\x00\x01\x02",
        "[upge.nonsense]\nx = y:Z\n",
        "[upge.]\nx = y:Z\n",
        "",
    ],
)
def test_someone_elses_broken_package_is_no_reason_to_stop(site: Site, text: str) -> None:
    before = registry.entries()
    site.install("unrelated", text)
    assert [o for o in registry.entries() if o.package != "unrelated"] == before
    assert registry.find(SLOTS["mask"], "clip").__name__ == "Clip"


def test_bytes_that_are_no_text_are_no_reason_to_stop(site: Site) -> None:
    site.install("unrelated", "")
    (site.folder / "unrelated-1.0.dist-info" / "entry_points.txt").write_bytes(b"\xff\xfe[upge.mask]\x80")
    registry.refresh()
    assert registry.find(SLOTS["mask"], "clip").__name__ == "Clip"


@given(text=st.text(max_size=60))
def test_no_text_at_all_stops_the_scan(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    folder = tmp_path_factory.mktemp("site")
    metadata = folder / "strange-1.0.dist-info"
    metadata.mkdir()
    (metadata / "entry_points.txt").write_text("[upge.mask]\n" + text, encoding="utf-8", errors="replace", newline="")
    for offer in registry._scan.__wrapped__((str(folder),)):
        assert offer.slot == "mask"


def test_two_packages_may_offer_one_name_and_then_both_must_be_called_in_full(site: Site) -> None:
    site.install("Upge_Half", "[upge.mask]\nhalf = half_parts.masks:Half\n", {"half_parts.masks": MASK})
    site.install("upge-other", "[upge.mask]\nhalf = other_parts.masks:Half\n", {"other_parts.masks": MASK})
    error = unknown("mask", "half")
    assert "2 packages define a mask called 'half'" in str(error)
    assert error.hint == "write one of: 'upge-half/half' or 'upge-other/half'"
    ours, theirs = registry.find(SLOTS["mask"], "upge-half/half"), registry.find(SLOTS["mask"], "upge-other/half")
    assert ours is not theirs
    for kind, name in ((ours, "upge-half/half"), (theirs, "upge-other/half")):
        part = build(Mask, name, BuildContext())
        assert type(part) is kind
        assert part.dump()["use"] == name


def test_a_package_twice_on_the_path_counts_once(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    site.install("upge-half", "[upge.mask]\nhalf = half_parts.masks:Half\n", {"half_parts.masks": MASK})
    second = tmp_path / "second"
    second.mkdir()
    monkeypatch.syspath_prepend(str(second))
    Site(second).install("upge-half", "[upge.mask]\nhalf = half_parts.masks:Half\n")
    assert len([o for o in registry.entries("mask") if o.name == "half"]) == 1


def test_a_shipped_name_offered_by_another_package_is_ambiguous_too(site: Site) -> None:
    site.install("upge-half", "[upge.mask]\nclip = half_parts.masks:Half\n", {"half_parts.masks": MASK})
    assert unknown("mask", "clip").hint == "write one of: 'upge/clip' or 'upge-half/clip'"
    assert registry.find(SLOTS["mask"], "upge/clip").__name__ == "Clip"


# Offers that can't be had.


@pytest.mark.parametrize(
    ("target", "source", "complaint"),
    [
        ("bad_parts.masks:Half", "raise RuntimeError('no licence')", "can't be imported: RuntimeError: no licence"),
        ("bad_parts.masks:Half", "import there_is_no_such_module", "ModuleNotFoundError"),
        ("bad_parts.masks:Half", "def broken(:", "SyntaxError"),
        ("bad_parts.masks:Gone", MASK, "AttributeError"),
        ("bad_parts.masks:Half", "class Half: ...", "is not a subclass of upge.Mask"),
        ("bad_parts.masks:Half", "Half = 3", "is not a subclass of upge.Mask"),
        (
            "bad_parts.masks:Half",
            "from upge import Advantage\nclass Half(Advantage): ...",
            "not a subclass of upge.Mask",
        ),
        (
            "bad_parts.masks:Half",
            "from upge import Mask\nclass Half(Mask): ...",
            "has no __call__, which every mask needs",
        ),
        (
            "bad_parts.masks:Half",
            "from upge import Mask\nclass Half(Mask):\n    scope = 'all'",
            "can't be imported: TypeError: Half.scope = 'all'",
        ),
        ("bad_parts.masks", MASK, "names no class"),
        ("bad_parts.elsewhere:Half", MASK, "there is no module bad_parts.elsewhere"),
        ("no_such_package.masks:Half", MASK, "there is no module no_such_package.masks"),
        ("not a target!", MASK, "is not module:Class"),
        ("", MASK, "is not module:Class"),
    ],
)
def test_an_offer_that_cannot_be_had_names_its_package(site: Site, target: str, source: str, complaint: str) -> None:
    site.install("upge-bad", f"[upge.mask]\nhalf = {target}\n", {"bad_parts.masks": source})
    error = unknown("mask", "half")
    assert "the mask 'half' of the package upge-bad" in str(error)
    assert complaint in str(error)
    assert registry.find(SLOTS["mask"], "clip").__name__ == "Clip"  # the others are still there
    with pytest.raises(ValidationError, match="upge-bad"):
        _Mask.model_validate({"mask": "half"})


class _Mask(Part):
    """Something with a mask."""

    slot = "mask"
    mask: Any

    def model_post_init(self, context: Any) -> None:
        build(Mask, self.mask, BuildContext())


def test_a_visible_fault_is_listed_without_importing(site: Site) -> None:
    site.install("upge-bad", "[upge.mask]\nhalf = bad_parts.gone:Half\n", {"bad_parts.masks": MASK})
    (offer,) = [o for o in registry.entries("mask") if o.package == "upge-bad"]
    assert offer.fault == "there is no module bad_parts.gone"
    assert registry.summary(offer) == ""


# Names.


@pytest.mark.parametrize(
    ("slot", "use", "hint"),
    [
        ("mask", "clpi", "did you mean 'clip'?"),
        ("mask", "Clip", "did you mean 'clip'?"),
        ("advantage", "grup_norm", "did you mean 'group_norm'?"),
        ("mask", "upge/clpi", "did you mean 'clip'?"),
        ("mask", "someone/clip", "did you mean 'clip'?"),
        ("denominator", "zzzzzz", "there are: "),
        ("denominator", "", "there are: "),
    ],
)
def test_an_unknown_name_comes_with_the_nearest_right_one(slot: str, use: str, hint: str) -> None:
    error = unknown(slot, use)
    assert str(error) == f"no {slot} is called '{use}'"
    assert error.hint.startswith(hint)


@pytest.mark.usefixtures("fresh_registry")
def test_a_notebook_registers_a_part_for_its_own_process() -> None:
    @register("mine")
    class Mine(Mask):
        """Mine."""

        def __call__(self, b: Any) -> Any:
            return b.ratio

    assert registry.find(SLOTS["mask"], "mine") is Mine
    assert Mine().dump() == {"use": "mine"}
    assert unknown("mask", "mien").hint == "did you mean 'mine'?"
    with pytest.raises(registry.UnknownPartError):
        registry.find(SLOTS["advantage"], "mine")


@pytest.mark.usefixtures("fresh_registry")
def test_a_registered_name_does_not_turn_an_installed_part_into_another() -> None:
    """Either register refuses the name, or the shipped part goes by `upge/clip` from then on."""
    shipped = build(Mask, {"use": "clip", "low": 0.1, "high": 0.2}, BuildContext())

    try:

        @register("clip")
        class Mine(Mask):
            """Mine."""

            def __call__(self, b: Any) -> Any:
                return b.ratio

    except (ValueError, LookupError):
        return
    assert build(Mask, shipped.dump(), BuildContext()) == shipped


def test_a_plugin_that_exits_does_not_take_the_command_along(site: Site) -> None:
    site.install("upge-bad", "[upge.mask]\nhalf = bad_parts.masks:Half\n", {"bad_parts.masks": "raise SystemExit(3)"})
    assert "upge-bad" in str(unknown("mask", "half"))


def test_a_class_that_nobody_offers_is_named_by_its_file() -> None:
    assert registry.name_of(_Mask, "mask") == f"{__file__}:_Mask"
