"""Evaluation of networks on benchmark sets: scores, costs, tables, pages, and the paper's experiments."""
