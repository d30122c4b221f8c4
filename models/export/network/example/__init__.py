"""The example that the network comes with: what forward takes, as flat tensors of named, dynamic axes with the rows
in dim 0."""
