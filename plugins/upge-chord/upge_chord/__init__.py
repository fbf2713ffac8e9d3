"""CHORD, arXiv 2508.11408, as a mask and two recipes for upge."""
