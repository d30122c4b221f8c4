"""The contract between the export and the server: what stands in a model's folder, and what it means.

Names, datatypes, signature and sizes of dims, the manifest with its schema, the hashes of files, how far an answer may
be off, and how a picture becomes an input. Read by `models/export` too; without torch, HTTP and processes.
"""
