"""Deliberate faults in written files, and whether the proof of an export catches them.

in_graph.py, in_onnx.py     the faults: in the graph that TorchScript is written from, in the ONNX file
trial.py                    writes each wrong file where the export left the right one, and lets the export verify it
__main__.py                 all of it: every network of models/, every precision, both files; `make torture`
"""
