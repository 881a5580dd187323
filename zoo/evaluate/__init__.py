"""Measuring what models have learned: `zoo eval` runs one of these files each."""
