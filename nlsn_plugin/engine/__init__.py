"""Runs on the toolbox's own parts: option files, training, benchmarks, evaluation, enlarging pictures."""
