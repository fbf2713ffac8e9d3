"""Deliberately wrong parts, a file a slot, no two by one fault; the default tier tries the first of each."""
