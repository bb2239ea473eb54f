"""Oracles: each op once more, in float64 NumPy loops written from the equations. They import nothing of rlseq."""
