"""The rewards that ship with upge."""
