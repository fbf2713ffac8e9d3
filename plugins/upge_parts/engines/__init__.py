"""The engines that ship with upge."""
