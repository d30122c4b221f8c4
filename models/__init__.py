"""The networks, one a file, and the export; registry.py names them."""

if __name__ != "foldserve.models":
    from foldserve.one_name import lead_to_foldserve

    lead_to_foldserve("models")
