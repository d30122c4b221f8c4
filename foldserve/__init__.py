"""Fold, export and serve torch networks."""
