"""The data sources that ship with upge."""
