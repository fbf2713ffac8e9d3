"""GMPO, arXiv 2507.20673, as a mask and a recipe for upge."""
