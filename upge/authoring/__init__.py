"""What `upge new` writes: a recipe like another one, and a package with a part."""

from upge.authoring.plugins import new_plugin
from upge.authoring.recipes import new_recipe

__all__ = ["new_plugin", "new_recipe"]
