"""Measurements that anyone can repeat: ratios of things timed in one run, in turns, with their spread.

One file a benchmark; each gives a `Table`, and `upge bench NAME` prints it.
"""
