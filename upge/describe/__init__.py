"""Descriptions of parts and recipes: formulas, tables, and similar estimators."""
