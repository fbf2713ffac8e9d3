"""Bias and variance of estimators, on policies so small that every sequence can be listed."""
