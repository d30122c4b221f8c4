"""Fresh inputs that the network takes, drawn in the image of its example."""
