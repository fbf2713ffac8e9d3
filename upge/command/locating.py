"""Where a recipe names the part that went wrong."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from upge.recipe import Composed


@contextmanager
def located(composed: Composed) -> Iterator[None]:
    """A part's error gets the place at which the recipe names the part."""
    from upge.asking import PartError
    from upge.recipe import Fault
    from upge.recipe.merging import place_of

    try:
        yield
    except PartError as error:
        raise PartError(str(Fault(str(error), place_of(composed.root, error.place))), error.place) from error
