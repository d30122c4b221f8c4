"""ONNX Runtime, with its telemetry off. Whoever needs onnxruntime imports it from here, and nowhere else.

onnxruntime 1.31 keeps a database in the home folder and reports from it: to whom it belongs, which files it opens, and
the text of every failed run, with values that clients sent. It looks at the variable below when it is imported;
`disable_telemetry_events()` afterwards comes too late. A test looks for imports that pass this by.
"""

import os

os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # whatever it was: child processes inherit it too

import onnxruntime

__all__ = ["onnxruntime"]
