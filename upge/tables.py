"""Tables for the terminal, in which a narrow one breaks words and never leaves out their ends."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.table import Table


def fixed(number: float, digits: int = 3) -> str:
    """A number with so many digits behind its point; one of a million or more with a power of ten: `1e+30`."""
    return f"{number:.{digits + 1}g}" if abs(number) >= _LARGE else f"{number:.{digits}f}"


_LARGE = 1e6


def folding(**options: Any) -> Table:
    """An empty table whose columns fold what is wider than they are; `options` are those of `rich.table.Table`."""
    from rich import box
    from rich.table import Table

    class Folding(Table):
        def add_column(self, *names: Any, **settings: Any) -> None:
            super().add_column(*names, **{"overflow": "fold", **settings})

    return Folding(**{"box": box.SIMPLE_HEAD, **options})
