"""Proof in numbers: the eager network's answers in float64, and how far the fold and the files are from them."""
