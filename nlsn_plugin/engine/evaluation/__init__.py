"""Networks on benchmark sets: scores, costs, tables, pages, the experiments of the paper."""
