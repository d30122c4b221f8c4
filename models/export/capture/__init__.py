"""From the eager network to one graph of ATen operators with symbolic sizes, or a refusal with its fix."""
