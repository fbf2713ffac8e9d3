"""The switches that ship with upge."""
