"""What an author of estimators asks the command: list, show, explain, diff, check."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from conftest import Site
from support import tiny
from support.command import SOUND, UNSOUND, call
from torch import Tensor

import upge
from upge import registry
from upge.describe.formula import filled, formula, latex, verbatim
from upge.describe.part import described, used_by
from upge.describe.recipe import explained
from upge.describe.similarity import alike, apart
from upge.errors import InputError
from upge.part import SLOTS
from upge.recipe.catalog import shelved
from upge.testing import examined

OFFERS = "[upge.mask]\nsoft_clip = soft:SoftClip\n"


def shown(*arguments: str) -> str:
    result = call(*arguments)
    assert result.exit_code == 0, result.output
    return result.stdout


# list.


def test_list_marks_what_metadata_can_tell_and_check_what_it_cannot(site: Site) -> None:
    site.install("plug-in", "[upge.mask]\ngone = nowhere:Mask\nbroken = broken:Mask\n", {"broken": "1 / 0"})
    plain = shown("list", "mask")
    assert re.search(r"gone +plug-in 1.0 +there is no module nowhere", plain)
    assert "ZeroDivisionError" not in plain
    checked = call("list", "mask", "--check")
    assert checked.exit_code == 1
    assert re.search(r"broken +plug-in 1.0 .*can't be imported: ZeroDivisionError", checked.stdout)
    assert "PPO's clip" in checked.stdout


def test_list_tells_of_entry_points_that_nobody_reads(site: Site) -> None:
    site.install("plug-in", "[upge.maskk]\nmine = mine:Mine\n[upgerade]\nx = y:z\n")
    assert (
        call("list", "mask").stderr
        == "plug-in: there is no entry-point group 'upge.maskk'; did you mean 'upge.mask'?\n"
    )


def test_list_recipes_names_those_of_packages_too(site: Site) -> None:
    site.install("plug-in", "[upge.recipes]\nany = plug.shelf\n", {"plug.__init__": ""})
    (site.folder / "plug" / "shelf").mkdir()
    (site.folder / "plug" / "shelf" / "mine.yaml").write_text("extends: nowhere.yaml\nabout: of my own\n")
    assert re.search(r"mine +plug-in +of my own", shown("list", "recipes"))
    checked = call("list", "recipes", "--check")
    assert checked.exit_code == 1
    assert "there is no file 'nowhere.yaml' to extend" in checked.stdout


# show.


def test_show_has_formula_parameters_bounds_defaults_source_users_and_file() -> None:
    sheet = shown("show", "clip")
    for part in ("mask clip   upge", "mask_t = 0", "low: number ≥ 0, ≤ 1; required", "denominator | old | rollout"):
        assert part in sheet
    assert "arXiv 1707.06347" in sheet
    assert "a trust region" in sheet
    assert re.search(r"used by .*grpo.*hpt", sheet)
    assert "cispo" not in sheet
    assert re.search(r"file .*masks/clip\.py:\d+", sheet)
    assert "length: whole number > 0; follows rollout.max_tokens" in shown("show", "constant")


def test_show_takes_every_slot_that_has_the_name_unless_told() -> None:
    assert {"denominator one", "advantage one"} <= set(re.findall(r"^\w+ one", shown("show", "one"), re.MULTILINE))
    assert "denominator one" not in shown("show", "one", "--slot", "advantage")


def test_show_of_a_name_that_is_none_says_the_nearest() -> None:
    result = call("show", "klip")
    assert isinstance(result.exception, InputError)
    assert "did you mean 'clip'?" in str(result.exception)
    assert isinstance(call("show", "clip", "--slot", "masks").exception, InputError)


@pytest.mark.parametrize("offer", [o for o in registry.entries() if o.package == "upge"], ids=lambda o: o.name)
def test_every_part_that_ships_can_be_described_and_used(offer: registry.Entry) -> None:
    kind = registry.load(offer, SLOTS[offer.slot])
    sheet = described(kind)
    assert sheet.line.endswith(".")
    assert all(parameter.about for parameter in sheet.parameters)
    assert not any("<class" in parameter.kind or "typing" in parameter.kind for parameter in sheet.parameters)


def test_users_are_those_that_resolve_to_the_part() -> None:
    entries = {offer.name: offer for offer in registry.entries("denominator")}
    assert used_by(registry.load(entries["sequence"], SLOTS["denominator"])) == ["gspo"]


# explain.


def test_explain_fills_in_the_numbers_and_says_where_they_come_from(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("extends: hpt.yaml\nname: mine\nrollout: {max_tokens: 50}\n")
    text = shown("explain", str(tmp_path / "mine.yaml"), "estimator.terms.rl.mask.high=0.28")
    assert "s_rl(q) · n_t · mask_t · (π_θ/π_ref)_t · Â_t · ∇log π_θ(t)" in text
    assert "ρ_t > 1 + 0.28" in text
    assert re.search(r"low=0\.2 \(.*hpt\.yaml:10\), high=0\.28 \(command line\), against=denominator \(default\)", text)
    assert "s_sft(q) = 1 − s_rl(q)" in text
    assert "n_t = 1 / (N · 50)" in text
    assert re.search(r"length=50 \(rollout\.max_tokens, .*mine\.yaml:3\)", text)
    assert "none:" not in text
    assert "reads reward" in text


def test_explain_says_what_it_reduces_to() -> None:
    text = shown("explain", "gspo")
    assert "    grpo, where π_old is π_θ (on-policy)\n" in text
    assert "dapo, where π_old is π_θ (on-policy)\n" not in shown(
        "explain", "cispo"
    )  # a price on length tells them apart
    assert "    sft, up to step 31\n" in shown("explain", "sft_then_grpo")


@pytest.mark.parametrize("form", ["markdown", "latex"])
@pytest.mark.parametrize("recipe", shelved(), ids=lambda each: each.name)
def test_explanations_for_papers_are_balanced_and_leave_no_unicode_in_formulas(recipe: object, form: str) -> None:
    from upge.describe.recipe import rendered

    text = rendered(explained(upge.load(recipe.path)), form)  # type: ignore[attr-defined]
    formulas = re.findall(r"\$\$(.+?)\$\$|\$(.+?)\$", text)
    if form == "latex":
        assert text.isascii(), [c for c in text if not c.isascii()]
        assert text.count(r"\begin") == text.count(r"\end")
    assert formulas
    for pair in formulas:
        math = "".join(pair)
        assert math.isascii()
        assert math.count("{") == math.count("}")


def test_every_formula_that_ships_becomes_latex() -> None:
    for offer in registry.entries():
        for line in formula(registry.load(offer, SLOTS[offer.slot])):
            assert latex(line).isascii(), line
    assert latex("√(var(A) + 1e-08) · Σ_{i ≥ t} π_θ²") == (
        r"\sqrt{\operatorname{var}(A) + 10^{-8}} \cdot \sum_{i \ge t} \pi_{\theta}^2"
    )
    assert latex("mask_t where the rest is") == r"\mathrm{mask}_{t} \text{ where the rest is }"
    assert verbatim("100 % of π_0") == r"100 \% of $\pi$\_0"


def test_only_the_chosen_alternative_of_a_formula_is_kept() -> None:
    def of(text: str, slot: str) -> list[str]:
        from support.part_cases import made

        name, _, parameters = text.partition(" ")
        pairs = (pair.split("=") for pair in parameters.split())
        values = {key: float(value) if value.replace(".", "").isdigit() else value for key, value in pairs}
        return filled(made(slot, {"use": name, **values}))

    assert of("kl estimator=k2 coefficient=0.5", "advantage") == ["Â_t = −0.5 · ln(π_θ/π_0)_t"]
    assert of("kl estimator=k3 coefficient=0.5", "advantage") == ["Â_t = −0.5 · (1 − (π_0/π_θ)_t)"]
    assert of("sequence of=product", "denominator")[0].startswith("log π_ref = log π_θ −         Σ_i") is False
    assert "1/|o|" not in " ".join(of("sequence of=product", "denominator"))
    assert of("truncated_importance cap=2.0 level=sequence", "mask") == ["mask_t = min(Π_i (π_old/π_rollout)_i, 2)"]


# diff and likeness.


def test_diff_shows_the_parts_that_differ_and_the_angle() -> None:
    text = shown("diff", "grpo", "dapo")
    assert re.search(r"rl\.mask\.0 +clip\(low=0\.2, high=0\.2\) +clip\(low=0\.2, high=0\.28\)", text)
    assert re.search(r"switch\.0 +informative\(keep=rl\)", text)
    assert "rl.advantage" not in text
    assert re.search(r"off-policy: norms .* cosine 0\.9", text)
    assert "rollout.refill" in shown("diff", "grpo", "dapo", "--all")
    assert "no part differs" in shown("diff", "grpo", "upge/grpo")


def test_distances_are_those_of_the_gradients() -> None:
    grpo, hpt = (upge.load(name).estimator for name in ("grpo", "hpt"))
    assert [each.cosine for each in apart(grpo, grpo)] == [pytest.approx(1.0)] * 3
    assert all(each.cosine < 0.99 for each in apart(grpo, hpt))
    doubled = upge.load("grpo", ["estimator.terms.rl.weight=2.0"]).estimator
    assert [str(each) for each in alike(doubled, {"grpo": grpo})] == ["2 times grpo"]
    assert alike(upge.load("grpo", ["estimator.terms.rl.weight=-1.0"]).estimator, {"grpo": grpo}) == []
    assert alike(upge.load("grpo", ["estimator.terms.rl.weight=0.0"]).estimator, {"grpo": grpo}) == []


# check.


def test_check_passes_what_is_sound_and_shows_the_smallest_example_of_what_is_not(site: Site) -> None:
    site.install("sound", OFFERS, {"soft": SOUND})
    text = shown("check", "sound", "--examples", "10")
    assert text.count("mask soft_clip  ok") == 15
    assert "BROKEN" not in text
    assert "mask soft_clip  ok" in shown("check", "soft_clip", "width=0.5", "--examples", "5")


def test_check_finds_the_width_at_which_a_mask_is_no_trust_region(site: Site) -> None:
    site.install("unsound", OFFERS, {"soft": UNSOUND})
    result = call("check", "soft_clip", "--examples", "20")
    assert result.exit_code == 1
    assert "BROKEN  a trust region never masks on-policy data" in result.stdout
    assert "SoftClip(width=0.0)" in result.stdout
    assert call("check", "soft_clip", "width=0.2", "--examples", "5").exit_code == 0


WRONG = {
    "gives NaN": ("b.ratio * float('nan')", "NaN"),
    "has another shape": ("b.ratio[:-1]", "shape"),
    "is no tensor": ("1.0", "expected a tensor, got float"),
    "carries gradient": ("b._batch.logp.exp()", "carry gradient"),
    "reads what it does not declare": ("b.old_logp", "without declaring it"),
    "draws": ("torch.rand(b.ratio.shape, dtype=b.dtype)", "draws from torch's global generator"),
    "looks beyond its scope": ("b.ratio / b.ratio.sum().clamp(min=1e-9)", "expected "),
    "changes its input": ("b.ratio.mul_(0) + b.to_tokens(b._batch.reward.mul_(2.0))", "in place"),
    "changes the ratio": ("b.ratio.mul_(0.5)", "changes b.ratio in place"),
    "changes the advantage": ("b.advantage.mul_(2) * 0 + b.ratio", "changes b.advantage in place"),
    "is NaN at a later step": ("b.ratio * (float('nan') if b.step == 1 else 1)", "returned NaN"),
    "rounds to float32": ("torch.where(b.advantage > 0, 0.1, 0.7)", "rounds to float32"),
    "depends on the order": ("torch.arange(len(b.ratio), dtype=b.dtype)", "in another order of trajectories: token "),
}


@pytest.mark.parametrize(("expression", "said"), WRONG.values(), ids=WRONG)
def test_every_kind_of_wrong_mask_is_found(expression: str, said: str) -> None:
    namespace: dict[str, type[upge.Mask]] = {}
    source = SOUND.replace("torch.exp(-((b.ratio.log() / self.width) ** 2))", expression)
    exec(compile(source.replace("    trust_region = True\n", ""), "wrong", "exec"), namespace)
    broken = []
    for finding in examined(namespace["SoftClip"], examples=20):  # up to the law in question
        if finding.failure:
            broken.append(str(finding))
            if said in broken[-1]:
                return
    pytest.fail(f"not found: {said!r}, but {broken}")


def test_a_part_without_its_documentation_is_told_what_lacks() -> None:
    class Bare(upge.Mask):
        """No full stop, no formula"""

        def __call__(self, b: upge.View) -> object:
            return 1 + 0 * b.ratio

    first = next(iter(examined(Bare)))
    assert first.failure is not None
    for lacking in ("full stop", "formula", "Shapes:", "Source:"):
        assert lacking in first.failure


def test_check_of_a_file_needs_leave_to_run_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("soft.py").write_text(SOUND)
    assert "--allow-code" in str(call("check", "soft.py:SoftClip").exception)
    assert call("check", "soft.py:SoftClip", "--allow-code", "--examples", "5").exit_code == 0
    for wrong, said in (("api = 3", "was written for version 3 of the part API"), ("scope = 'all'", "SoftClip.scope")):
        Path("soft.py").write_text(SOUND.replace("trust_region = True", wrong))
        assert said in str(call("check", "soft.py:SoftClip", "--allow-code").exception)
    Path("soft.py").write_text("import upge\nclass SoftClip(upge.Mask): ...")
    assert "has no __call__, which every mask needs" in str(call("check", "soft.py:SoftClip", "--allow-code").exception)


def test_check_of_a_package_looks_at_what_is_sound_beside_what_is_not(site: Site) -> None:
    site.install("mixed", f"{OFFERS}broken = broken:Mask\n", {"soft": SOUND, "broken": "1 / 0"})
    result = call("check", "mixed", "--examples", "3")
    assert result.exit_code == 1
    assert result.stdout.count("mask soft_clip  ok") == 15
    assert "mask broken  BROKEN  it can be imported" in result.stdout
    assert "ZeroDivisionError" in result.stdout
    assert "1 law is broken" in result.stderr


def test_check_of_a_recipe_holds_its_estimator_to_the_laws(tmp_path: Path) -> None:
    assert shown("check", "hpt", "estimator.switch.threshold=0.25", "--examples", "3").count("recipe hpt  ok") == 7
    file = tiny.recipe(tmp_path)
    assert "BROKEN" not in shown("check", str(file), "--examples", "3")
    with pytest.raises(upge.RecipeError, match="there is no such file"):
        raise call("check", "nowhere.yaml").exception or AssertionError


def test_check_says_a_failure_once(site: Site) -> None:
    site.install("failing", OFFERS, {"soft": SOUND.replace("torch.exp(", "torch.nowhere(")})
    result = call("check", "soft_clip", "--examples", "3")
    assert result.stdout.count("has no attribute 'nowhere'") == 1, "whichever call of the part raised it"
    assert "as above (" in result.stdout
    assert re.search(r"has no attribute 'nowhere'.*soft\.py:\d+\)", result.stdout)


def test_check_of_wrong_names_says_what_would_be_right(tmp_path: Path) -> None:
    assert "did you mean 'group_norm'?" in str(call("check", "grup_norm").exception)
    assert "success_rate: threshold = 'abc':" in str(call("check", "success_rate", "threshold=abc").exception)
    same = str(call("check", "success_rate", "above=a", "otherwise=a").exception)
    assert "otherwise = 'a': 'above' names this term already" in same
    assert "clip: low = -1: Input should be greater" in str(call("check", "clip", "low=-1").exception)
    assert "it has against, ratio_max" in str(call("check", "cap", "max=3").exception)
    tiny.recipe(tmp_path)
    assert isinstance(call("check", "cap", "ratio_max").exception, upge.RecipeError)


def test_a_formula_stays_on_one_line() -> None:
    class Long(upge.Mask):
        """x.

            mask_t = 1 where ρ_t < 1 + high
                     and ρ_t > 1 − high

        Shapes: → (T,).
        """

        high: float = 0.2

        def __call__(self, b: upge.View) -> Tensor:
            return b.ratio

    assert filled(Long()) == ["mask_t = 1 where ρ_t < 1 + 0.2 and ρ_t > 1 − 0.2"]
    text = shown("explain", "grpo")
    assert "n_t = 1 / (N · |o_i|)   with N all counted trajectories of the optimizer step\n" in text
