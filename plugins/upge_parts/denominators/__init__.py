"""The denominators that ship with upge."""
