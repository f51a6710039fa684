"""Benchmarks: ratios measured in one run on one machine, never absolute figures to be proud of."""
