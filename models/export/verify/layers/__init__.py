"""Proof of the files layer by layer: a fault in a layer that hardly reaches an output is found at its layer."""
