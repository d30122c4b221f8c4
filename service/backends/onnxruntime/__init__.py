"""Runs model.onnx: sessions on the CPU and on CUDA, and whether the file is what the signature says."""
