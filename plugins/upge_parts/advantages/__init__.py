"""The advantages that ship with upge."""
