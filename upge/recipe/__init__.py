"""The recipe: YAML with places, composed, checked, and made into parts."""

from upge.recipe.compose import Composed
from upge.recipe.faults import Fault, Place, RecipeError
from upge.recipe.resolve import Checked, check, load, load_composed
from upge.recipe.schema import Recipe

__all__ = ["Checked", "Composed", "Fault", "Place", "Recipe", "RecipeError", "check", "load", "load_composed"]
