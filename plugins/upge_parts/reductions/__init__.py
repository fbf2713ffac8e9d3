"""The reductions that ship with upge."""
