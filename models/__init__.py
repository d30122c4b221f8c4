"""The networks, one a file, and the export; registry.py names them."""

if __name__ != "foldserve.models":  # under a second name each module would be there twice
    raise ImportError("import foldserve.models instead of models", name=__name__)
