"""Measuring a policy, and comparing measurements."""
