"""Runs: training and testing on the toolbox's own parts."""
