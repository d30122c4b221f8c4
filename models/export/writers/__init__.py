"""From the folded graph to the two files, model.pt and model.onnx, without a second copy of the weights in memory."""
