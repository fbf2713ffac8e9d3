"""The selections that ship with upge."""
