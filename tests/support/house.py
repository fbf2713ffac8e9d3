"""How the house stands: modules, depth, circles, fan-out, functions that are used once, and long functions.

    python tests/support/house.py          # a table
    python tests/support/house.py --chain  # the longest chain of imports too

Imports for type checkers and inside functions count, as they do in tests/house/test_floors.py.
"""

from __future__ import annotations

import ast
import functools
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from statistics import median

ROOT = Path(__file__).parents[2]
LONG = 40
"""Lines of code beyond which a function is long; its docstring is none."""


def modules() -> dict[str, ast.Module]:
    """The modules below `upge`, without the door and without `__main__`."""
    found = {}
    for path in sorted((ROOT / "upge").rglob("*.py")):
        parts = path.relative_to(ROOT / "upge").with_suffix("").parts
        name = ".".join(part for part in parts if part != "__init__")
        if name and name != "__main__":
            found[name] = ast.parse(path.read_text(encoding="utf-8"))
    return found


def imported(tree: ast.AST, there: dict[str, ast.Module]) -> Iterator[str]:
    """The modules of `there` that a module imports."""
    for node in ast.walk(tree):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        for name in names:
            module = name.removeprefix("upge.")
            if name.startswith("upge."):
                yield from [each for each in (module, module.rpartition(".")[0]) if each in there][:1]


def chains(graph: dict[str, set[str]]) -> dict[str, list[str]]:
    """The longest chain of imports that begins at each module; empty for those in a circle or above one."""
    left = {name: set(its) for name, its in graph.items()}
    while leaves := {name for name, its in left.items() if not its & left.keys()}:
        for name in leaves:
            del left[name]

    @functools.cache
    def chain(name: str) -> list[str]:
        below = [chain(each) for each in sorted(graph[name]) if each not in left]
        return [name, *max(below, key=len, default=[])]

    return {name: [] if name in left else chain(name) for name in graph}


def functions(tree: ast.AST) -> Iterator[ast.FunctionDef]:
    yield from (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef))


def code_lines(function: ast.FunctionDef) -> int:
    """The lines of a function, without those of its docstring."""
    first = function.body[0]
    documented = isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant)
    whole = (function.end_lineno or 0) - function.lineno + 1
    return whole - ((first.end_lineno or 0) - first.lineno + 1 if documented else 0)


def used_once(tree: ast.AST) -> tuple[int, int]:
    """How many private functions a module has, and how many of them it names once."""
    named = Counter(
        node.id if isinstance(node, ast.Name) else node.attr
        for node in ast.walk(tree)
        if (isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)) or isinstance(node, ast.Attribute)
    )
    private = [each.name for each in functions(tree) if each.name.startswith("_") and not each.name.startswith("__")]
    return len(private), sum(named[name] == 1 for name in private)


def main() -> None:
    """Print the table."""
    there = modules()
    graph = {name: set(imported(tree, there)) - {name} for name, tree in there.items()}
    longest = chains(graph)
    importers = Counter(each for its in graph.values() for each in its)
    wide = max(graph, key=lambda name: len(graph[name]))
    private, once = (sum(numbers) for numbers in zip(*map(used_once, there.values()), strict=True))
    sizes = [len(ast.unparse(tree).splitlines()) for tree in there.values()]
    long = [f for tree in there.values() for f in functions(tree) if code_lines(f) > LONG]
    deepest = max(longest.values(), key=len)
    rows = {
        "modules": len(there),
        "median of their lines, without comments": int(median(sizes)),
        "imported by exactly one other": sum(importers[name] == 1 for name in there),
        "depth of the import graph": len(deepest),
        "modules in or above a circle": sum(not chain for chain in longest.values()),
        f"most modules that one imports ({wide})": len(graph[wide]),
        "private functions": private,
        "of these named once, per cent": round(100 * once / private),
        f"functions of more than {LONG} lines": len(long),
    }
    for name, number in rows.items():
        print(f"{number:6}  {name}")
    if "--chain" in sys.argv:
        print(" > ".join(deepest))


if __name__ == "__main__":
    main()
