"""The masks that ship with upge."""
