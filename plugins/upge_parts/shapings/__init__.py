"""The shapings that ship with upge."""
