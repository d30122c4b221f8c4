"""How a constant map gets past a call, or into its weights: one family of operators a file."""
