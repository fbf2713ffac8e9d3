"""Recipes × settings × seeds: many runs by one command, and what they say together."""
