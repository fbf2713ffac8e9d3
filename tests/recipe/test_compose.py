"""Composing a recipe: what it extends, shorthands, overrides, and where everything then stands."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from upge.recipe.compose import Composed, compose, locate, merge
from upge.recipe.faults import Fault, RecipeError
from upge.recipe.yaml import MAX_BYTES, Node, parse, plain

BASE = """\
model: tiny
reward: exact
estimator:
  terms:
    rl: {mask: [{use: clip, low: 0.2}, none], advantage: group_norm}
optimizer: {lr: 1e-6, betas: [0.9, 0.99]}
train: {steps: 100}
"""


def shorthand(path: tuple[str, ...]) -> str | None:
    match path:
        case ("model",):
            return "path"
        case ("reward",) | ("estimator", "terms", _, "mask" | "advantage") | ("estimator", "terms", _, "mask", _):
            return "use"
    return None


class Folder:
    """A folder of recipes, and composing one of them."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.shipped: Path | None = None

    def write(self, **texts: str) -> "Folder":
        for name, text in texts.items():
            file = self.path / f"{name.replace('__', '/')}.yaml"
            file.parent.mkdir(exist_ok=True, parents=True)
            file.write_text(text)
        return self

    def compose(self, name: str, *overrides: str) -> Composed:
        return compose(self.path / f"{name}.yaml", overrides, shipped=self.shipped, shorthand=shorthand)

    def data(self, name: str, *overrides: str) -> Any:
        return plain(self.compose(name, *overrides).root)

    def faults(self, name: str, *overrides: str) -> tuple[Fault, ...]:
        with pytest.raises(RecipeError) as caught:
            self.compose(name, *overrides)
        assert str(caught.value)
        return caught.value.faults

    def fault(self, name: str, *overrides: str) -> Fault:
        (fault,) = self.faults(name, *overrides)
        return fault


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path / "recipes").write(base=BASE)


def at(data: Any, path: Sequence[str | int]) -> Any:
    for step in path:
        data = data[step]
    return data


@pytest.mark.parametrize(
    ("child", "path", "value"),
    [
        ("train: {steps: 3}", ["train"], {"steps": 3}),
        ("train: {log: 1}", ["train"], {"steps": 100, "log": 1}),
        ("optimizer: {betas: [0.5]}", ["optimizer"], {"lr": 1e-6, "betas": (0.5,)}),
        ("optimizer: {lr: null}", ["optimizer"], {"betas": (0.9, 0.99)}),
        ("optimizer: sgd", ["optimizer"], "sgd"),
        ("model: big", ["model"], {"path": "big"}),
        ("model: {dtype: bf16}", ["model"], {"path": "tiny", "dtype": "bf16"}),
        ("reward: {scale: 2}", ["reward"], {"use": "exact", "scale": 2}),
        ("reward: {use: exact, scale: 2}", ["reward"], {"use": "exact", "scale": 2}),
        ("estimator: {terms: {rl: {mask: clip}}}", ["estimator", "terms", "rl", "mask"], {"use": "clip"}),
        ("estimator: {terms: {rl: {mask: ['none']}}}", ["estimator", "terms", "rl", "mask"], ({"use": "none"},)),
        ("estimator: {terms: {rl: {weight: 2}}}", ["estimator", "terms", "rl", "advantage"], {"use": "group_norm"}),
    ],
)
def test_a_child_merges_over_what_it_extends(folder: Folder, child: str, path: list[str], value: object) -> None:
    data = folder.write(child="extends: base.yaml\n" + child).data("child")
    assert at(data, path) == value
    assert "extends" not in data


def test_shorthands_become_maps_at_the_string_s_place(folder: Folder) -> None:
    root = folder.compose("base").root
    assert plain(root)["estimator"]["terms"]["rl"]["mask"] == ({"use": "clip", "low": 0.2}, {"use": "none"})
    path = ("estimator", "terms", "rl", "mask", 1, "use")
    places = {str(locate(root, end, prefer=prefer)) for end in (path, path[:-1]) for prefer in ("key", "value")}
    assert places == {f"{folder.path}/base.yaml:5:40"}


def test_a_block_whose_use_changes_is_replaced_whole(folder: Folder) -> None:
    folder.write(old="reward: {use: exact, scale: 2, deep: {use: a, x: 1}}")
    folder.write(other="extends: old.yaml\nreward: judge", same="extends: old.yaml\nreward: {deep: {use: b}}")
    folder.write(fragment="reward: {scale: 3}", named="extends: fragment.yaml\nreward: judge")
    assert folder.data("other") == {"reward": {"use": "judge"}}
    assert folder.data("same") == {"reward": {"use": "exact", "scale": 2, "deep": {"use": "b"}}}
    assert folder.data("named") == {"reward": {"scale": 3, "use": "judge"}}


def test_of_several_parents_the_later_wins_and_nulls_remove_from_the_earlier(folder: Folder) -> None:
    folder.write(a="x: {one: 1, two: 1}\ny: 1", b="x: {two: 2}\ny: null", child="extends: [a.yaml, b.yaml]\nz: 3")
    composed = folder.compose("child")
    assert plain(composed.root) == {"x": {"one": 1, "two": 2}, "z": 3}
    assert [file.name for file in composed.files] == ["child.yaml", "a.yaml", "b.yaml"]
    assert [(path, place.line) for path, place in composed.removed] == [(("y",), 2)]


def test_extends_is_relative_to_the_file_that_says_it(folder: Folder) -> None:
    folder.write(lab__deep__leaf="extends: ../stem.yaml", lab__stem="extends: ../base.yaml\ntrain: {steps: 7}")
    composed = folder.write(top="extends: lab/deep/leaf.yaml").compose("top")
    assert plain(composed.root)["train"] == {"steps": 7}
    names = [str(file.relative_to(folder.path)) for file in composed.files]
    assert names == ["top.yaml", "lab/deep/leaf.yaml", "lab/stem.yaml", "base.yaml"]


def test_what_is_not_beside_the_file_is_looked_up_among_the_shipped(folder: Folder, tmp_path: Path) -> None:
    Folder(tmp_path / "shipped").write(grpo="extends: lab/base.yaml\na: 1", lab__base="b: 2", base="c: 3")
    folder.shipped = tmp_path / "shipped"
    assert folder.write(mine="extends: grpo.yaml").data("mine") == {"b": 2, "a": 1}
    assert "c" not in folder.write(near="extends: base.yaml").data("near")


def test_a_ladder_of_files_is_merged_once_per_file(folder: Folder) -> None:
    for rung in range(25):
        folder.write(**{f"r{rung}": f"extends: [r{rung + 1}.yaml, r{rung + 1}.yaml]\n"})
    assert folder.write(r25="a: 1").data("r0") == {"a": 1}


def test_a_circle_is_refused_with_its_chain(folder: Folder) -> None:
    folder.write(a="extends: b.yaml", b="x: 1\nextends: [c.yaml]", c="extends: b.yaml", me="extends: ./me.yaml")
    fault = folder.fault("a")
    assert str(fault.place) == f"{folder.path}/c.yaml:1:10"
    chain = fault.message.replace(f"{folder.path}/", "")
    assert chain == "a circle: b.yaml extends c.yaml extends b.yaml"
    assert "circle" in folder.fault("me").message


def test_a_chain_is_bounded(folder: Folder) -> None:
    for link in range(40):
        folder.write(**{f"c{link}": f"extends: c{link + 1}.yaml"})
    assert "more than 32 files" in folder.fault("c0").message


def test_a_recipe_is_bounded_with_all_that_it_extends(folder: Folder) -> None:
    padding = "#" * (MAX_BYTES // 2)
    folder.write(a=f"a: 1\n{padding}", b=f"b: 1\n{padding}", both="extends: [a.yaml, b.yaml]")
    assert folder.write(one="extends: a.yaml").data("one") == {"a": 1}
    assert f"the recipe, with it, is larger than {MAX_BYTES} bytes" in folder.fault("both").message
    many = folder.write(many=f"extends: [{', '.join(['base.yaml'] * 33)}]").fault("many")
    assert "more than 32 files" in many.message


def test_what_is_extended_stays_in_the_folder(folder: Folder, tmp_path: Path) -> None:
    Folder(tmp_path).write(secret="a: 1")
    (folder.path / "link.yaml").symlink_to(tmp_path / "secret.yaml")
    (folder.path / "up").symlink_to(tmp_path)
    (folder.path / "loop.yaml").symlink_to("loop.yaml")
    for escape in ("../secret.yaml", f"{tmp_path}/secret.yaml", "link.yaml", "up/secret.yaml", "/etc/passwd"):
        fault = folder.write(child=f"extends: {escape}").fault("child")
        assert "leads out of the recipe's folder" in fault.message, escape
        assert str(fault.place) == f"{folder.path}/child.yaml:1:10"
    assert "no file" in folder.write(child="extends: loop.yaml").fault("child").message
    assert folder.write(child=f"extends: {folder.path}/base.yaml").data("child")["train"] == {"steps": 100}


@pytest.mark.parametrize(
    ("extends", "column", "message", "hint"),
    [
        ("bsae.yaml", 10, "there is no file 'bsae.yaml' to extend", "did you mean 'base.yaml'?"),
        ("base", 10, "there is no file 'base' to extend", "did you mean 'base.yaml'?"),
        ("[base.yaml, zzz]", 22, "there is no file 'zzz' to extend", None),
        ("3", 10, "extends names a file, and not the number 3", "write extends: base.yaml"),
        ("{a: b}", 10, "extends names a file, and not a map", "write extends: base.yaml"),
        ("[[base.yaml]]", 11, "extends names a file, and not a list of 1", "write extends: base.yaml"),
        ("''", 10, "extends names a file, and not the text ''", "write extends: base.yaml"),
        ('"a\\0b"', 10, "extends names a file, and not the text 'a\\x00b'", "write extends: base.yaml"),
        ("a" * 5000, 10, "there is no file", None),
    ],
)
def test_an_extends_that_names_no_file(folder: Folder, extends: str, column: int, message: str, hint: object) -> None:
    fault = folder.write(child=f"extends: {extends}").fault("child")
    assert message in fault.message
    assert (fault.place and fault.place.column, fault.hint) == (column, hint)


def test_the_faults_of_all_files_and_overrides_come_at_once(folder: Folder) -> None:
    folder.write(a="x: *y", b="x: 1\nx: 2", child="extends: [a.yaml, b.yaml, c.yaml]\n")
    places = [str(fault.place).replace(f"{folder.path}/", "") for fault in folder.faults("child", "x", "y=[")]
    assert places == ["a.yaml:1:4", "b.yaml:2:1", "child.yaml:1:27", "command line:1:1", "command line:2:4"]


@pytest.mark.parametrize(
    ("override", "path", "value"),
    [
        ("train.steps=10", ["train", "steps"], 10),
        (" train . steps = 10", ["train", "steps"], 10),
        ("optimizer.lr=1e-5", ["optimizer", "lr"], 1e-5),
        ("train.note=no", ["train", "note"], "no"),
        ("train.note=a=b", ["train", "note"], "a=b"),
        ("train.note=''", ["train", "note"], ""),
        ("train={log: 1}", ["train"], {"steps": 100, "log": 1}),
        ("optimizer.lr=null", ["optimizer"], {"betas": (0.9, 0.99)}),
        ("optimizer.betas.1=0.5", ["optimizer", "betas"], (0.9, 0.5)),
        ("rollout.engine.use=vllm", ["rollout"], {"engine": {"use": "vllm"}}),
        ("model=big", ["model"], {"path": "big"}),
        ("model.dtype=bf16", ["model"], {"path": "tiny", "dtype": "bf16"}),
        ("reward=judge", ["reward"], {"use": "judge"}),
        ("reward={use: judge, n: 1}", ["reward"], {"use": "judge", "n": 1}),
        (
            "estimator.terms.rl.mask.0.high=0.3",
            ["estimator", "terms", "rl", "mask", 0],
            {"use": "clip", "low": 0.2, "high": 0.3},
        ),
        ("estimator.terms.rl.mask.1=cap", ["estimator", "terms", "rl", "mask", 1], {"use": "cap"}),
        ("estimator.terms.rl.mask=[cap]", ["estimator", "terms", "rl", "mask"], ({"use": "cap"},)),
        (
            "estimator.terms.rl.advantage.eps=1",
            ["estimator", "terms", "rl", "advantage"],
            {"use": "group_norm", "eps": 1},
        ),
    ],
)
def test_an_override_is_one_more_layer(folder: Folder, override: str, path: list[str | int], value: object) -> None:
    assert at(folder.data("base", override), path) == value


def test_later_overrides_see_earlier_ones(folder: Folder) -> None:
    assert folder.data("base", "train=null", "train.log=1")["train"] == {"log": 1}
    assert folder.data("base", "a=[1, 2]", "a.0=3", "a.0={b: 1}", "a.0.c=2")["a"] == ({"b": 1, "c": 2}, 2)


def test_an_override_s_places_are_on_the_command_line(folder: Folder) -> None:
    root = folder.compose("base", "x=1", "optimizer.lr={a: 2}").root
    lr = locate(root, ("optimizer", "lr"), prefer="key")
    assert (str(lr), lr.text, lr.width) == ("command line:2:11", "optimizer.lr={a: 2}", 2)
    assert str(locate(root, ("optimizer", "lr", "a"), prefer="value")) == "command line:2:18"
    assert str(locate(root, ("optimizer", "betas"), prefer="key")) == f"{folder.path}/base.yaml:6:23"


@pytest.mark.parametrize(
    ("override", "column", "message", "hint"),
    [
        ("train.steps", 1, "an override needs a '='", "write train.steps=value"),
        ("", 1, "an override needs a '='", "write a.b=value"),
        ("train.steps=", 12, "needs a value after the '='", "null removes"),
        ("train.steps= # 3", 12, "needs a value after the '='", "null removes"),
        ("=3", 1, "a name is missing", "'.'"),
        ("train..steps=3", 7, "a name is missing", "'.'"),
        ("extends=other.yaml", 1, "cannot change what a recipe extends", "write a recipe"),
        ("extends.0=other.yaml", 1, "cannot change what a recipe extends", "write a recipe"),
        ("train.steps.x=1", 13, "train.steps is the number 100, which has nothing named 'x'", ""),
        ("optimizer.betas.2=1", 17, "optimizer.betas has no item 2, being a list of 2", "0 to 1"),
        ("optimizer.betas.-1=1", 17, "optimizer.betas is a list, which '-1' cannot index", "betas.0"),
        ("optimizer.betas.first=1", 17, "optimizer.betas is a list, which 'first' cannot index", "betas.0"),
        ("optimizer.betas.0=null", 17, "an item of a list cannot be removed", "optimizer.betas=[...]"),
        ("train.steps=[1", 15, "expected ',' or ']'", ""),
        ("train.steps=&x 1", 13, "anchors", "remove"),
        ("train={a: 1, a: 2}", 14, "duplicate key 'a'", ""),
        ("train=a: b: c", 11, "a ':' where no value can start", "quote"),
        ("train=\x00", 7, "U+0000", "escape"),
        ("a." * 40 + "b=1", 1, "a path of more than 32 names", ""),
        ("x=" + "[" * 50, 35, "deeper than 32", ""),
    ],
)
def test_an_override_that_cannot_be(folder: Folder, override: str, column: int, message: str, hint: str) -> None:
    fault = folder.fault("base", "first=1", override)
    assert str(fault.place) == f"command line:2:{column}"
    assert fault.place is not None
    assert fault.place.text == override
    assert message in fault.message
    assert hint in (fault.hint or "")


@pytest.mark.parametrize(
    ("path", "prefer", "where"),
    [
        ((), "value", "1:1"),
        (("nothing",), "value", "1:1"),
        (("train",), "key", "7:1"),
        (("train",), "value", "7:8"),
        (("train", "stpes"), "value", "7:1"),
        (("train", "steps"), "value", "7:16"),
        (("train", "steps", "deeper", 3), "value", "7:9"),
        (("optimizer", "betas", 1), "value", "6:36"),
        (("optimizer", "betas", "1"), "key", "6:36"),
        (("optimizer", "betas", 2), "value", "6:23"),
        (("optimizer", "betas", -1), "value", "6:23"),
        (("estimator", "terms", "rl", "mask", 0, "use"), "value", "5:23"),
        (("estimator", "terms", "rl", "mask", 0, "hgih"), "key", "5:17"),
        (("model", "path"), "value", "1:8"),
    ],
)
def test_locate(folder: Folder, path: tuple[str | int, ...], prefer: Any, where: str) -> None:
    place = locate(folder.compose("base").root, path, prefer=prefer)
    assert str(place) == f"{folder.path}/base.yaml:{where}"


def test_nulls_are_gone_from_maps_and_stay_in_lists(folder: Folder) -> None:
    composed = folder.write(n="a: null\nb: [null, {c: ~, d: 1}]\ne: {f: }").compose("n")
    assert plain(composed.root) == {"b": (None, {"d": 1}), "e": {}}
    assert [path for path, _ in composed.removed] == [("a",), ("b", "1", "c"), ("e", "f")]


def test_a_missing_or_broken_recipe_is_refused(folder: Folder) -> None:
    assert folder.fault("basse").hint == f"did you mean '{folder.path}/base.yaml'?"
    assert "empty" in folder.write(empty="").fault("empty").message


WORDS = st.sampled_from(["use", "a", "b", "c"])
LEAVES = st.none() | st.integers(0, 3) | st.sampled_from(["x", "y"])
TREES = st.dictionaries(
    WORDS, st.recursive(LEAVES, lambda inner: st.lists(inner, max_size=2) | st.dictionaries(WORDS, inner, max_size=3))
).map(lambda data: parse(repr(data).replace("None", "null"), "tree"))


@given(TREES, TREES)
def test_the_laws_of_merging(parent: Node, child: Node) -> None:
    empty = parse("{}", "tree")
    assert merge(empty, child) == child
    assert plain(merge(parent, empty)) == plain(parent)
    assert merge(child, child) == child
    once = merge(parent, child)
    assert merge(once, child) == once
    assert set(plain(once)) >= set(plain(child))
