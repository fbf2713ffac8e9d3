"""The house's floors: nothing imports what is above it, and the machine knows no algorithm by name."""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import house

import upge

ROOT = Path(__file__).parents[2]
MACHINE = sorted((ROOT / "upge").rglob("*.py"))
PARTS = sorted((ROOT / "plugins" / "upge_parts").rglob("*.py"))

PEER = ROOT / "upge" / "bench" / "trl.py"
"""Sets up another library's trainer, whose settings have algorithms' names."""

FLOORS = [
    {"types", "errors", "files", "suggestions", "tables", "strict_model", "ema", "part_checks", "processes"},
    {"field_names", "model_paths"},
    {
        "registry",
        "field_names",
        "session_results",
        "estimator.batch",
        "estimator.noise",
        "estimator.order_statistics",
        "estimator.view",
    },
    {"part"},
    {"schedule", "code"},
    {"estimator", "testing.batches"},
    {"recipe"},
    {"describe", "model", "study"},
    {"runs", "distributed", "testing"},
    {"rollouts"},
    {"evaluate"},
    {"train"},
    {"plan", "report", "bench", "sweep"},
    {"cli", "__main__"},
]
"""From the ground; a module named apart from its block stands on a floor of its own.

`upge/__init__.py` is the door, and imports names from any floor when they are first used.
"""

ALGORITHMS = (
    {"sft", "dft", "ppo", "grpo", "drgrpo", "dapo", "gspo", "gmpo", "cispo", "rloo", "reinforce", "luffy", "srft"}
    | {"hpt", "upt", "chord", "sapo", "topr", "opo", "vespo", "luspo", "tis", "dpo"}
)  # fmt: skip


def module_of(path: Path) -> str:
    """`upge/recipe/yaml.py` → `recipe.reading`; the door is ""."""
    parts = path.relative_to(ROOT / "upge").with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


def floor(module: str) -> int | None:
    """The floor of what lies below `upge`, that of the longest name that is on one; None: no name is."""
    names = [name for name in (module, *_above(module)) if any(name in each for each in FLOORS)]
    return next((number for number, each in enumerate(FLOORS) if names and names[0] in each), None)


def _above(module: str) -> Iterator[str]:
    """`a.b.c` → `a.b`, `a`."""
    while "." in module:
        module = module.rpartition(".")[0]
        yield module


def imports(path: Path, *, checking: bool = False) -> Iterator[str]:
    """The module or module.name of each import, also inside functions; without those for type checkers only."""
    yield from _imports(ast.parse(path.read_text(encoding="utf-8")), checking)


def _imports(node: ast.AST, checking: bool) -> Iterator[str]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.dump(child.test) and not checking:
            continue
        if isinstance(child, ast.Import):
            yield from (alias.name for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            assert child.level == 0, f"line {child.lineno}: imports are absolute"
            yield from (f"{child.module}.{alias.name}" for alias in child.names)
        yield from _imports(child, checking)


def within_upge(name: str) -> str | None:
    """The block of `upge.block.…`, or None for another package."""
    head, _, rest = name.partition(".")
    return rest.partition(".")[0] if head == "upge" else None


def relative(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", MACHINE, ids=relative)
def test_no_module_imports_a_floor_above_its_own(path: Path) -> None:
    module = module_of(path)
    if not module:
        return
    own = floor(module)
    assert own is not None, f"upge.{module} is on no floor: put it on one in {Path(__file__).name}"
    for name in imports(path, checking=True):
        if within_upge(name) is None:
            continue
        other = floor(name.removeprefix("upge."))
        if other is None:
            assert name.startswith("upge.__"), f"{name} comes through the door upge/__init__.py"
            continue
        assert other <= own, f"upge.{module} (floor {own}) imports {name} (floor {other})"


def test_imports_make_no_circle() -> None:
    """Imports for type checkers and inside functions count: a reader follows them all the same."""
    there = house.modules()
    chains = house.chains({name: set(house.imported(tree, there)) - {name} for name, tree in there.items()})
    circle = sorted(name for name, chain in chains.items() if not chain)
    assert not circle, f"these import one another, or what does: {', '.join(circle)}"


def test_a_circle_of_imports_is_seen() -> None:
    assert house.chains({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": set()}) == {"a": [], "b": [], "c": [], "d": ["d"]}
    assert house.chains({"a": {"b", "c"}, "b": {"c"}, "c": set()})["a"] == ["a", "b", "c"]


def test_the_laws_may_open_a_policy_and_synthetic_batches_may_not() -> None:
    laws, batches, policy = floor("testing.engine_laws"), floor("testing.batches.Case"), floor("model")
    assert batches < policy < laws  # type: ignore[operator]


@pytest.mark.parametrize("path", MACHINE, ids=relative)
def test_no_machine_goes_around_its_floor(path: Path) -> None:
    """A module that `import_module` gets by its name is an import that no floor sees."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and "import_module" in ast.dump(node.func):
            named = [a.value for a in node.args if isinstance(a, ast.Constant) and isinstance(a.value, str)]
            assert not [name for name in named if name.partition(".")[0] == "upge"], f"line {node.lineno}: {named}"


def test_the_estimator_knows_neither_models_nor_recipes() -> None:
    files = [ROOT / "upge" / f"{name}.py" for name in ("types", "part", "registry", "schedule")]
    for file in (*files, *(ROOT / "upge" / "estimator").glob("*.py")):
        for imported in imports(file, checking=True):
            assert imported.partition(".")[0] not in {"transformers", "accelerate", "ruamel", "typer", "rich"}
            assert within_upge(imported) not in {"recipe", "model", "train", "cli"}


def test_the_registry_alone_imports_entrypoints() -> None:
    importers = [p for p in (*MACHINE, *PARTS) if any(n.partition(".")[0] == "entrypoints" for n in imports(p))]
    assert [relative(path) for path in importers] == ["upge/registry.py"]


@pytest.mark.parametrize("path", PARTS, ids=relative)
def test_parts_use_only_the_public_names(path: Path) -> None:
    """What ships has no privilege: it is written with what anybody has."""
    names = [name.removeprefix("upge.") for name in imports(path, checking=True) if within_upge(name) is not None]
    private = [name for name in names if name not in upge.__all__]
    assert not private, f"imports {', '.join(private)}: not in upge.__all__"


@pytest.mark.parametrize("path", MACHINE, ids=relative)
def test_no_machine_imports_a_part(path: Path) -> None:
    assert not [name for name in imports(path, checking=True) if name.partition(".")[0] == "upge_parts"]


@pytest.mark.parametrize("path", [path for path in MACHINE if path != PEER], ids=relative)
def test_the_machine_names_no_algorithm(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    documentation = {id(n.value) for n in ast.walk(tree) if isinstance(n, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in documentation:
            named = ALGORITHMS & set(re.findall(r"[a-z]+", node.value.lower()))
            assert not named, f"line {node.lineno} names {', '.join(sorted(named))}: {node.value!r}"


def test_the_door_names_what_exists() -> None:
    for name in upge.__all__:
        assert getattr(upge, name) is not None


def test_no_two_test_files_have_one_name() -> None:
    """Of two that have, pytest imports the first and refuses the second: `import file mismatch`."""
    names = Counter(path.name for path in (ROOT / "tests").rglob("test_*.py"))
    assert [name for name, count in names.items() if count > 1] == []
