"""What is changed in torch while it traces and exports a network, and put back: where it is wrong, slow or keeps too
much."""
