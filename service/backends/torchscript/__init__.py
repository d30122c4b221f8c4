"""Runs model.pt: sessions on the CPU and on CUDA. The only folder of the server that imports torch."""
